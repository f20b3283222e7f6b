package main

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/vbauerster/mpb/v8"
	"go.uber.org/goleak"

	"github.com/nasfleet/nasfleet/internal/fleet"
	"github.com/nasfleet/nasfleet/messages"
)

const mib = 1 << 20

func progress(phase messages.Phase, done ...int64) messages.Progress {
	p := messages.Progress{Attempt: 1, Phase: phase}
	for i, d := range done {
		p.Disks = append(p.Disks, messages.DiskProgress{Name: "vd" + string(rune('a'+i)), Done: d * mib, Total: 100 * mib})
	}
	return p
}

func TestJobLinesComeAboutEveryFiveSeconds(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	var out bytes.Buffer
	l := &jobLines{lines: lines{w: &out, now: func() time.Time { return now }}, meters: meters{}}
	l.draw(progress(messages.PhaseMounting))
	for second := range int64(11) { // 10 MiB/s and 1 MiB/s
		l.draw(progress(messages.PhaseCopying, second*10, second))
		now = now.Add(time.Second)
	}
	l.draw(progress(messages.PhaseVerifying, 0, 0))
	want := `mounting
copying | vda   0 % 0 B / 100 MiB | vdb   0 % 0 B / 100 MiB
copying | vda  50 % 50 MiB / 100 MiB 10 MiB/s ETA 5s | vdb   5 % 5.0 MiB / 100 MiB 1.0 MiB/s ETA 1m35s
copying | vda 100 % 100 MiB / 100 MiB 10 MiB/s | vdb  10 % 10 MiB / 100 MiB 1.0 MiB/s ETA 1m30s
verifying | vda   0 % 0 B / 100 MiB | vdb   0 % 0 B / 100 MiB
`
	if diff := cmp.Diff(want, out.String()); diff != "" {
		t.Error(diff)
	}
}

func TestMeterFollowsTheRate(t *testing.T) {
	at := time.Unix(0, 0)
	m := &meter{}
	for i := range int64(60) { // slows down from 10 MiB/s to 1 MiB/s
		done := i * 10 * mib
		if i > 10 {
			done = (100 + i - 10) * mib
		}
		m.update(done, at.Add(time.Duration(i)*time.Second))
	}
	if got := m.rate / mib; got < 0.99 || got > 1.01 {
		t.Errorf("%.2f MiB/s", got)
	}
	m.update(m.done, m.at) // twice in one moment
	m.update(0, at.Add(time.Hour))
	if m.known {
		t.Error("the rate of the pass before is kept")
	}
}

func TestFleetLinesAreFew(t *testing.T) {
	now := time.Unix(0, 0)
	var out bytes.Buffer
	l := &fleetLines{lines{w: &out, now: func() time.Time { return now }}}
	for range 100 {
		l.draw(fleet.Tally{Jobs: 2, Queued: 2})
		now = now.Add(60 * time.Millisecond)
	}
	l.close(fleet.Tally{Jobs: 2, Succeeded: 1, Refused: 1})
	want := strings.Repeat("2 queued, 0 running, 0 succeeded, 0 failed\n", 2) + "0 queued, 0 running, 1 succeeded, 0 failed, 1 refused\n"
	if diff := cmp.Diff(want, out.String()); diff != "" {
		t.Error(diff)
	}
}

func TestJobBars(t *testing.T) {
	defer goleak.VerifyNone(t)
	var out bytes.Buffer
	j := newJobBars(&out, mpb.WithAutoRefresh())
	j.say("accepted\x1b[2J")
	j.draw(progress(messages.PhaseMounting))
	j.draw(progress(messages.PhaseCopying, 50, 20))
	last := progress(messages.PhaseVerifying, 100, 10)
	j.draw(last)
	j.close(last)
	for _, want := range []string{
		"accepted [2J", "mounting", "copying vda", "50 % 50 MiB / 100 MiB", "20 % 20 MiB / 100 MiB", "verifying vdb", "100 % 100 MiB / 100 MiB",
	} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("there is no %q in\n%q", want, out.String())
		}
	}
}

func TestFleetBar(t *testing.T) {
	defer goleak.VerifyNone(t)
	var out bytes.Buffer
	f := newFleetBar(&out, mpb.WithAutoRefresh())
	f.say("z1/h1 web1: refused: no room")
	f.draw(fleet.Tally{Jobs: 3, Queued: 2, Refused: 1})
	f.close(fleet.Tally{Jobs: 3, Succeeded: 2, Refused: 1})
	for _, want := range []string{"web1: refused", "0 queued, 0 running, 2 succeeded, 0 failed, 1 refused"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("there is no %q in\n%q", want, out.String())
		}
	}
	newFleetBar(&out, mpb.WithAutoRefresh()).close(fleet.Tally{}) // nothing was drawn
}

func TestTablesHoldWhatHostsSay(t *testing.T) {
	var out bytes.Buffer
	hostile := messages.CatalogEntry{ID: "X", VM: "a\tb\nc\x1b[31m", StoredBytes: -1}
	if err := printBackups(&out, []messages.CatalogEntry{hostile}); err != nil {
		t.Fatal(err)
	}
	if s := out.String(); strings.Count(s, "\n") != 2 || strings.Contains(s, "\x1b") || !strings.Contains(s, "a b c [31m") {
		t.Errorf("%q", s)
	}
}

func TestSeconds(t *testing.T) {
	for s, want := range map[float64]string{0: "0.0 s", 6.61: "6.6 s", 59.9: "59.9 s", 75: "1m15s", 7260: "2h1m0s"} {
		if got := seconds(s); got != want {
			t.Errorf("%v: %s, want %s", s, got, want)
		}
	}
}
