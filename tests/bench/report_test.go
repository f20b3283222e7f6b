package bench

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/nasfleet/nasfleet/tests/lab"
)

func TestSummarize(t *testing.T) {
	for _, c := range []struct {
		values []float64
		want   summary
	}{
		{nil, summary{}},
		{[]float64{3}, summary{3, 3, 3}},
		{[]float64{9, 1, 5}, summary{5, 1, 9}},
		{[]float64{4, 1, 2, 9}, summary{3, 1, 9}},
	} {
		if got := summarize(c.values); got != c.want {
			t.Errorf("summarize(%v) = %v, want %v", c.values, got, c.want)
		}
	}
	if got := summarize([]float64{9, 1, 5}).format("%.1f"); got != "5.0 (1.0–9.0)" {
		t.Error(got)
	}
}

func TestRatiosAreOfOneRound(t *testing.T) {
	seconds := func(all ...time.Duration) (samples []sample) {
		for _, s := range all {
			samples = append(samples, sample{took: s * time.Second})
		}
		return samples
	}
	// The second round was ten times slower for everybody, which must not show.
	if got := summarize(ratios(seconds(1, 10), seconds(2, 20), took)); got != (summary{0.5, 0.5, 0.5}) {
		t.Error(got)
	}
}

func TestReport(t *testing.T) {
	r := report{
		Date: time.Date(2031, 5, 4, 0, 0, 0, 0, time.UTC), Rounds: 1, DataMiB: 2048, DiskMiB: 8192,
		results: map[string][]sample{}, contests: contestants(),
		Memory: memoryCheck{DiskMiB: bigDiskMiB, DataMiB: 1, Worker: 120 * mib, AllRuns: 60 * mib},
	}
	for i, c := range r.contests {
		r.results[c.id] = []sample{{
			took: time.Duration(i+1) * time.Second, job: time.Second, copying: time.Second,
			stored: 100 * mib, memory: map[string]int64{"program": int64(i) * mib},
		}}
	}
	var text bytes.Buffer
	if err := r.write(&text); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"2031-05-04, 1 rounds",
		"| nasfleet, plain | 1.00 (1.00–1.00) | 0.00 (0.00–0.00) | 100 | program 0 |",
		"| plain: at most 0.6 × the time of virtnbdbackup | 0.50 (0.50–0.50) | yes |",
		"| … at no more than 0.8 × its size | 1.00 (1.00–1.00) | **no** |",
		"| hostworker: under 100 MiB of memory | 120 MiB | **no** |",
		"an image of 4096 GiB",
	} {
		if !strings.Contains(text.String(), want) {
			t.Errorf("the report lacks %q:\n%s", want, text.String())
		}
	}
}

func TestEveryGoalHasItsContestants(t *testing.T) {
	known := map[string]bool{}
	for _, c := range contestants() {
		known[c.id] = true
	}
	for _, g := range append(goals(), others()...) {
		if !known[g.ours] || !known[g.peer] {
			t.Errorf("%s compares %q and %q", g.what, g.ours, g.peer)
		}
	}
}

func TestHarmReport(t *testing.T) {
	lapOf := func(p99 time.Duration) []lap {
		return []lap{{lab.Laps{Count: 100, Median: time.Millisecond, P99: p99, Max: 2 * p99}, 10 * time.Second, 4 * time.Millisecond}}
	}
	r := harmReport{Date: time.Date(2031, 5, 4, 0, 0, 0, 0, time.UTC), Rounds: 1, results: map[string][]lap{
		idAlone: lapOf(4 * time.Millisecond), idOursFast: lapOf(8 * time.Millisecond), idPushFast: lapOf(8 * time.Millisecond),
		idOursSlow: lapOf(7 * time.Millisecond), idPushSlow: lapOf(400 * time.Millisecond),
	}}
	var text bytes.Buffer
	if err := r.write(&text); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{
		"2031-05-04, 1 rounds",
		"| the guest alone | 1.00 (1.00–1.00) | 4.00 (4.00–4.00) | 8 (8–8) | 10 (10–10) |",
		"| nasfleet, slow target: at most 1.5 | 1.75 (1.75–1.75) | **no** |",
		"| push mode, slow target | 100.00 (100.00–100.00) |  |",
	} {
		if !strings.Contains(text.String(), want) {
			t.Errorf("the report lacks %q:\n%s", want, text.String())
		}
	}
}
