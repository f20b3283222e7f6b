package integration

import (
	"crypto/rand"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/nasfleet/nasfleet/internal/bus"
	"github.com/nasfleet/nasfleet/messages"
	"github.com/nasfleet/nasfleet/tests/lab"
)

// noise makes a raw image of which the first data MiB are random, and the rest is a hole.
func noise(t *testing.T, path string, sizeMiB, dataMiB int) string {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	buf := make([]byte, lab.MiB)
	for range dataMiB {
		_, _ = rand.Read(buf)
		if _, err := f.Write(buf); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.Truncate(int64(sizeMiB) * lab.MiB); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestBandwidthLimit measures jobs of 20 s or more: the rate over the whole job, all disks
// together, stays within 5 % of the limit, and the holes (most of each disk) cost nothing.
func TestBandwidthLimit(t *testing.T) {
	const limit, dataMiB = 8, 84 // MiB/s, MiB a disk
	l := lab.Libvirtd(t)
	w := newWorld(t, l.URI, "--jobs", "4")
	pair := func(name string) []lab.Disk {
		return []lab.Disk{
			{Path: noise(t, filepath.Join(w.dir, name+"-a.raw"), 2048, dataMiB), Format: "raw"},
			{Path: noise(t, filepath.Join(w.dir, name+"-b.raw"), 2048, dataMiB), Format: "raw"},
		}
	}
	l.DefineVM(t, lab.VMOptions{Name: "up", Disks: pair("up")})
	l.DefineVM(t, lab.VMOptions{Name: "down", Disks: pair("down"), Stopped: true})
	one := noise(t, filepath.Join(w.dir, "one.raw"), 4096, 2*dataMiB)

	for name, args := range map[string][]string{
		"running": {"--vm", "up"},
		"stopped": {"--vm", "down"},
		"one":     {"--image", one},
	} {
		// Side by side: each job has a limit of its own, and together they need a fraction of the machine.
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			rate := w.measureRate(t, append(args, "--bandwidth", fmt.Sprint(limit))...)
			if rate < 0.95*limit || rate > 1.05*limit {
				t.Errorf("copied at %.2f MiB/s, the limit is %d", rate, limit)
			}
		})
	}
}

// measureRate takes a backup and returns its rate in MiB/s between the first and the last report
// of its copy, by this process's clock.
func (w *world) measureRate(t *testing.T, args ...string) float64 {
	t.Helper()
	job := newJobID()
	watch, err := w.connect(t).Watch(t.Context(), bus.Filter{Zone: zone, Host: host, Job: job})
	if err != nil {
		t.Fatal(err)
	}
	defer watch.Stop()
	w.publisher(t, w.takeArgs(append(args, "--job-id", job)...)...)
	var first, last report
	for {
		u, err := watch.Next(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if u.Event != nil && u.Event.Kind.Final() {
			if u.Event.Kind != messages.KindSucceeded {
				t.Fatalf("the job ended with %s", asJSON(u.Event))
			}
			break
		}
		if u.Progress == nil || u.Progress.Phase != messages.PhaseCopying {
			continue
		}
		now := report{at: time.Now()}
		for _, d := range u.Progress.Disks {
			now.bytes += d.Done
		}
		if first.bytes == 0 {
			first = now
		}
		// A report that repeats the last says that the copy has ended before it.
		if now.bytes > last.bytes {
			last = now
		}
	}
	took := last.at.Sub(first.at)
	if took < 15*time.Second {
		t.Fatalf("the copy was seen for %s only", took)
	}
	return float64(last.bytes-first.bytes) / lab.MiB / took.Seconds()
}

// report is what a job had copied when it was heard.
type report struct {
	at    time.Time
	bytes int64
}
