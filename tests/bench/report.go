package bench

import (
	_ "embed"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"text/template"
	"time"
)

//go:embed report.md.tmpl
var reportTemplate string

// report is what docs/performance.md is made of.
type report struct {
	Date     time.Time
	Machine  machine
	Rounds   int
	DataMiB  int64
	DiskMiB  int64
	Memory   memoryCheck
	results  map[string][]sample
	contests []contestant
}

// machine says what the figures were measured on, and not which machine it was.
type machine struct {
	CPU        string
	Cores      int
	MemoryMiB  int64
	FileSystem string
	Kernel     string
	QEMU       string
	Libvirt    string
	LibNBD     string
	VirtNBD    string
}

// memoryCheck is the peak of hostworker during the backup of a big disk.
type memoryCheck struct {
	DiskMiB, DataMiB int64
	// Worker is the peak of that worker, AllRuns that of the one that did all the rounds, in bytes.
	Worker, AllRuns int64
	Took            time.Duration
}

// memoryGoal is how much memory hostworker may take, in bytes.
const memoryGoal = 100 * mib

// goal is one line of what is to be reached: a ratio of ours to a peer.
type goal struct {
	what, ours, peer string
	value            func(sample) float64
	most             float64
}

func goals() []goal {
	return []goal{
		{"compressed and encrypted: at least 5 × faster than the script", idLUKS, idScript, took, 0.2},
		{"… at no more than 0.4 × its size", idLUKS, idScript, stored, 0.4},
		{"plain: at most 0.6 × the time of virtnbdbackup", idPlain, idVirt, took, 0.6},
		{"compressed: at most 0.9 × the time of virtnbdbackup -z", idZstd, idVirtLZ4, took, 0.9},
		{"… at no more than 0.8 × its size", idZstd, idVirtLZ4, stored, 0.8},
		{"plain: the copying within 5 % of nbdcopy's", idPlain, idNBDCopy, copying, 1.05},
		{"compressed: the copying within 5 % of nbdcopy's", idZstd, idNBDCopyZstd, copying, 1.05},
	}
}

// others are ratios that no goal is set for.
func others() []goal {
	return []goal{
		{"compressed, encrypted, and every byte read back and verified, to the script: time", idFull, idScript, took, 0},
		{"plain to virtnbdbackup: time until all is on the disk", idPlain, idVirt, total, 0},
		{"compressed to virtnbdbackup -z: time until all is on the disk", idZstd, idVirtLZ4, total, 0},
		{"plain to nbdcopy: the whole job on the host", idPlain, idNBDCopy, job, 0},
		{"compressed to nbdcopy: the whole job on the host", idZstd, idNBDCopyZstd, job, 0},
	}
}

// write writes the report in Markdown.
func (r *report) write(w io.Writer) error {
	t, err := template.New("report").Funcs(template.FuncMap{
		"gib": func(mib int64) string { return fmt.Sprintf("%g", float64(mib)/1024) },
		"mib": func(bytes int64) string { return fmt.Sprintf("%.0f", float64(bytes)/mib) },
	}).Parse(reportTemplate)
	if err != nil {
		return err
	}
	return t.Execute(w, r)
}

// Runs is the table of the contestants.
func (r *report) Runs() string {
	rows := [][]string{{"what", "time, s", "sync after it, s", "stored, MiB", "peak memory, MiB"}}
	for _, c := range r.contests {
		s := r.results[c.id]
		rows = append(rows, []string{
			c.name,
			summarize(of(s, took)).format("%.2f"),
			summarize(of(s, syncing)).format("%.2f"),
			fmt.Sprintf("%.0f", summarize(of(s, stored)).median),
			peaks(s),
		})
	}
	return table(rows)
}

// Parts is the table of those whose parts can be compared.
func (r *report) Parts() string {
	rows := [][]string{{"what", "copying, s", "job on the host, s"}}
	for _, c := range r.contests {
		s := r.results[c.id]
		if len(s) > 0 && s[0].copying > 0 {
			rows = append(rows, []string{c.name, summarize(of(s, copying)).format("%.2f"), summarize(of(s, job)).format("%.2f")})
		}
	}
	return table(rows)
}

// Goals is the table of what is to be reached.
func (r *report) Goals() string {
	rows := [][]string{{"goal", "ratio", "reached"}}
	for _, g := range goals() {
		s := r.ratio(g)
		rows = append(rows, []string{g.what, s.format("%.2f"), yes(s.median <= g.most)})
	}
	most := max(r.Memory.Worker, r.Memory.AllRuns)
	rows = append(rows, []string{"hostworker: under 100 MiB of memory", fmt.Sprintf("%.0f MiB", float64(most)/mib), yes(most < memoryGoal)})
	return table(rows)
}

// Others is the table of further ratios.
func (r *report) Others() string {
	rows := [][]string{{"ratio", "median (range)"}}
	for _, g := range others() {
		rows = append(rows, []string{g.what, r.ratio(g).format("%.2f")})
	}
	return table(rows)
}

func (r *report) ratio(g goal) summary {
	return summarize(ratios(r.results[g.ours], r.results[g.peer], g.value))
}

func yes(reached bool) string {
	if reached {
		return "yes"
	}
	return "**no**"
}

// peaks names each program with its peak over all rounds.
func peaks(samples []sample) string {
	most := map[string]int64{}
	for _, s := range samples {
		for name, bytes := range s.memory {
			most[name] = max(most[name], bytes)
		}
	}
	var parts []string
	for _, name := range slices.Sorted(maps.Keys(most)) {
		parts = append(parts, fmt.Sprintf("%s %.0f", name, float64(most[name])/mib))
	}
	return strings.Join(parts, ", ")
}

// table writes rows as a Markdown table; the first one is the heading.
func table(rows [][]string) string {
	var b strings.Builder
	for i, row := range rows {
		fmt.Fprintf(&b, "| %s |\n", strings.Join(row, " | "))
		if i == 0 {
			fmt.Fprintf(&b, "|%s\n", strings.Repeat(" --- |", len(row)))
		}
	}
	return strings.TrimSuffix(b.String(), "\n")
}
