package bench

import (
	_ "embed"
	"fmt"
	"io"
	"text/template"
	"time"
)

//go:embed harm.md.tmpl
var harmTemplate string

// harmReport is what docs/performance-guest.md is made of.
type harmReport struct {
	Date          time.Time
	Rounds        int
	DiskMiB, Rate int
	results       map[string][]lap
}

// slowGoal is what the 99th percentile may be during a backup to a slow target, to that of the
// guest alone.
const slowGoal = 1.5

func (r *harmReport) write(w io.Writer) error {
	t, err := template.New("harm").Parse(harmTemplate)
	if err != nil {
		return err
	}
	return t.Execute(w, r)
}

// Felt is the table of what the guest felt.
func (r *harmReport) Felt() string {
	rows := [][]string{{"while", "median, ms", "99th percentile, ms", "longest, ms", "writes a second"}}
	for _, id := range []string{idAlone, idOursFast, idPushFast, idOursSlow, idPushSlow} {
		rows = append(rows, []string{
			id,
			r.of(id, func(l lap) float64 { return ms(l.Median) }).format("%.2f"),
			r.of(id, func(l lap) float64 { return ms(l.P99) }).format("%.2f"),
			r.of(id, func(l lap) float64 { return ms(l.Max) }).format("%.0f"),
			r.of(id, func(l lap) float64 { return float64(l.Count) / l.span.Seconds() }).format("%.0f"),
		})
	}
	return table(rows)
}

// Goals is the table of the ratios to the guest alone, and whether the one with a goal is reached.
func (r *harmReport) Goals() string {
	rows := [][]string{{"99th percentile, to the guest alone", "ratio", "reached"}}
	for _, id := range []string{idOursFast, idPushFast, idOursSlow, idPushSlow} {
		s, reached := r.ratio(id), ""
		if id == idOursSlow {
			reached = yes(s.median <= slowGoal)
			id += fmt.Sprintf(": at most %.1f", slowGoal)
		}
		rows = append(rows, []string{id, s.format("%.2f"), reached})
	}
	return table(rows)
}

func (r *harmReport) of(id string, value func(lap) float64) summary {
	var values []float64
	for _, l := range r.results[id] {
		values = append(values, value(l))
	}
	return summarize(values)
}

func (r *harmReport) ratio(id string) summary {
	var values []float64
	for _, l := range r.results[id] {
		values = append(values, ms(l.P99)/ms(l.alone))
	}
	return summarize(values)
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
