package integration

import (
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/nasfleet/nasfleet/internal/bus"
	"github.com/nasfleet/nasfleet/messages"
	"github.com/nasfleet/nasfleet/tests/lab"
)

// TestShutdownOfARunningBackup stops a worker that backs up a running VM: with a grace that is over soon,
// and with one that a second signal cuts short. The job is cleaned up and given back without an attempt
// spent, and the next worker does it.
func TestShutdownOfARunningBackup(t *testing.T) {
	t.Parallel()
	l := lab.Libvirtd(t)
	n := startNATS(t)
	w := newWorldOn(t, n, l.URI)
	vm := l.DefineVM(t, lab.VMOptions{Name: "web", Disks: []lab.Disk{{Path: noise(t, filepath.Join(w.dir, "vm.raw"), 128, 32), Format: "raw"}}})
	base := w.args
	for name, c := range map[string]struct {
		grace   string
		signals int
	}{"grace": {"100ms", 1}, "hurried": {"1h", 2}} {
		t.Run(name, func(t *testing.T) {
			w.stop(t)
			w.args = append(append([]string{}, base...), "--grace", c.grace)
			w.start(t)
			job := newJobID()
			w.publisher(t, w.takeArgs("--vm", "web", "--bandwidth", "2", "--attempts", "1", "--job-id", job)...)
			w.awaitPhase(t, job, messages.PhaseCopying)
			asked := time.Now()
			for range c.signals {
				if err := w.worker.Process.Signal(syscall.SIGTERM); err != nil {
					t.Fatal(err)
				}
				lab.Eventually(t, "the worker has withdrawn its host", func() bool {
					hosts, err := w.connect(t).Hosts(t.Context())
					return err == nil && len(hosts) == 0
				})
			}
			if err := <-w.ended; err != nil {
				t.Errorf("the worker ended with %v", err)
			}
			t.Logf("ended %s after the first signal", time.Since(asked).Round(time.Millisecond))
			w.worker = nil
			if vm.HasBackupJob(t) {
				t.Error("libvirt still runs a backup job")
			}
			vm.Running(t)
			lab.NoFilesMatching(t, w.nas, "*.partial")
			lab.NoLeftovers(t, filepath.Join(w.dir, "run"))
			w.args = base
			w.start(t)
			w.publisher(t, "throttle", job, "0")
			if ev := w.awaitFinal(t, job); ev.Kind != messages.KindSucceeded || ev.Attempt != 1 {
				t.Errorf("the next worker: %s", asJSON(ev))
			}
			w.acknowledged(t)
			w.nothingLeft(t)
		})
	}
}

// TestPoison: each attempt at one command kills the worker, and whatever is at work beside it loses an
// attempt as well. The poison fails when its attempts are spent; the others succeed.
func TestPoison(t *testing.T) {
	t.Parallel()
	n := startNATS(t)
	w := newWorldOn(t, n, "none", "--jobs", "3")
	image := func(name string) string { return noise(t, filepath.Join(w.dir, name), 8, 8) }
	poison := newJobID()
	watch, err := w.connect(t).Watch(t.Context(), bus.Filter{Zone: zone, Host: host, Job: poison})
	if err != nil {
		t.Fatal(err)
	}
	defer watch.Stop()
	var good []string
	take := func(file, job string) {
		w.publisher(t, w.takeArgs("--image", image(file), "--bandwidth", "2", "--attempts", "3", "--job-id", job)...)
	}
	for _, file := range []string{"a.raw", "b.raw"} {
		good = append(good, newJobID())
		take(file, good[len(good)-1])
		w.awaitPhase(t, good[len(good)-1], messages.PhaseCopying)
	}
	take("poison.raw", poison)
	kills := 0
	for {
		u, err := watch.Next(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if u.Event == nil {
			continue
		}
		if u.Event.Kind == messages.KindAccepted {
			kills++
			w.kill(t)
			w.start(t)
		}
		if u.Event.Kind.Final() {
			if u.Event.Kind != messages.KindFailed || u.Event.Error.Code != messages.CodeInternal || kills != 3 {
				t.Errorf("after %d kills: %s", kills, asJSON(u.Event))
			}
			break
		}
	}
	for _, job := range good {
		if ev := w.awaitFinal(t, job); ev.Kind != messages.KindSucceeded {
			t.Errorf("a job beside the poison ended with %s", asJSON(ev))
		}
	}
	w.acknowledged(t)
	w.nothingLeft(t)
}
