package integration

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/nasfleet/nasfleet/internal/bus"
	"github.com/nasfleet/nasfleet/messages"
	"github.com/nasfleet/nasfleet/tests/lab"
)

// slow is how long what should take seconds may take on a machine that is busy with other tests.
const slow = time.Minute

// cancel cancels a job and returns how long it took from the request to the event, which must come.
func (w *world) cancel(t *testing.T, job string) (messages.Event, time.Duration) {
	t.Helper()
	asked := time.Now()
	reply, err := w.connect(t).Control(t.Context(), zone, host, messages.NewControlRequest(messages.ActionCancel, job))
	if err != nil || reply.Reply != messages.ReplyCancelling && reply.Reply != messages.ReplyCancelled {
		t.Fatalf("cancel: %s, %v", asJSON(reply), err)
	}
	ev := w.awaitFinal(t, job)
	took := ev.Time.Sub(asked)
	if took > slow {
		t.Errorf("the job ended %s after it was cancelled", took)
	}
	return ev, took
}

// childTime is how much of a processor the worker's children have used.
func (w *world) childTime(t *testing.T) time.Duration {
	t.Helper()
	var ticks int64
	for _, pid := range children(t, w.worker.Process.Pid) {
		stat, _ := os.ReadFile("/proc/" + pid + "/stat") // it may have just ended
		_, rest, _ := strings.Cut(string(stat), ") ")
		if f := strings.Fields(rest); len(f) > 12 {
			for _, field := range f[11:13] { // utime and stime (proc(5)), in hundredths of a second
				n, _ := strconv.ParseInt(field, 10, 64)
				ticks += n
			}
		}
	}
	return time.Duration(ticks) * 10 * time.Millisecond
}

// TestCancelInEachPhase cancels the encrypted backup of a running VM to a mounted repository. Whatever
// it is at: there is a backup and the job has succeeded, or there is none and it is cancelled; and
// nothing is left but the VM, which runs on.
func TestCancelInEachPhase(t *testing.T) {
	t.Parallel()
	l := lab.Libvirtd(t)
	w := newWorld(t, l.URI)
	disks := []lab.Disk{{Path: noise(t, filepath.Join(w.dir, "vm.raw"), 256, 64), Format: "raw"}}
	vm := l.DefineVM(t, lab.VMOptions{Name: "web", Disks: disks})
	fs := lab.LoopImage(t, 512)
	pass := w.passphraseFile(t, "correct horse battery staple")
	// The key of the LUKS container: nothing interrupts it, and QEMU measures for two seconds how fast it is.
	const deriving messages.Phase = "deriving"
	for _, phase := range []messages.Phase{
		messages.PhaseMounting, deriving, messages.PhaseFreezing, messages.PhaseCopying, messages.PhaseVerifying, messages.PhaseCommitting,
	} {
		t.Run(string(phase), func(t *testing.T) {
			job, limit := newJobID(), "64"
			if phase == messages.PhaseCopying {
				limit = "4"
			}
			at := phase
			if phase == deriving {
				at = messages.PhaseMounting
			}
			reached := w.watchPhase(t, job, at)
			w.publisher(t, w.onRepo("ext4", fs, "loop", "--vm", "web", "--encrypt", "--passphrase-file", pass, "--compress",
				"--verify", "--bandwidth", limit, "--job-id", job)...)
			await(t, "the phase", reached)
			if phase == deriving {
				lab.Eventually(t, "a storage daemon is at it", func() bool { return w.childTime(t) > time.Second })
			}
			ev, took := w.cancel(t, job)
			t.Logf("%s %s after the request", ev.Kind, took.Round(time.Millisecond))
			switch {
			case ev.Kind == messages.KindSucceeded && phase == messages.PhaseCommitting:
			case ev.Kind != messages.KindCancelled || ev.Error.Code != messages.CodeCancelled || ev.Attempt != 1:
				t.Errorf("ended with %s", asJSON(ev))
			}
			w.acknowledged(t)
			w.nothingLeft(t)
			vm.Running(t)
			if vm.HasBackupJob(t) {
				t.Error("libvirt still runs a backup job")
			}
			vm.Write(t, "vda", 0, lab.MiB, 0x42)
			// The repository says the same as the event.
			w.publisher(t, "ls", "--refresh", "--zone", zone, "--host", host, "--repo-type", "ext4", "--repo-address", fs, "--repo-options", "loop")
			there := false
			for _, b := range w.ls(t) {
				there = there || b["id"] == job
			}
			if there != (ev.Kind == messages.KindSucceeded) {
				t.Errorf("the job was %s, and that a backup is there is %t", ev.Kind, there)
			}
		})
	}
}

// TestCancelWhileItWaits: for a free slot, for its VM, for its next attempt.
func TestCancelWhileItWaits(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "none", "--jobs", "2", "--retry-delay", "1h")
	image := noise(t, filepath.Join(w.dir, "busy.raw"), 64, 64)
	start := func(args ...string) string {
		job := newJobID()
		w.publisher(t, append([]string{"take", "--zone", zone, "--host", host, "--job-id", job}, args...)...)
		return job
	}
	busy := start("--image", image, "--bandwidth", "1", "--repo", w.nas)
	w.awaitPhase(t, busy, messages.PhaseCopying)

	sameVM := start("--image", image, "--repo", w.nas)
	other := noise(t, filepath.Join(w.dir, "other.raw"), 8, 8)
	retrying := start("--image", other, "--repo", filepath.Join(w.dir, "nowhere"), "--attempts", "5")
	w.awaitRetrying(t, retrying, messages.CodeMountFailed)
	second := start("--image", other, "--bandwidth", "1", "--repo", w.nas)
	w.awaitPhase(t, second, messages.PhaseCopying)
	noSlot := start("--image", noise(t, filepath.Join(w.dir, "third.raw"), 1, 1), "--repo", w.nas)

	for what, job := range map[string]string{"for its VM": sameVM, "for its next attempt": retrying, "for a slot": noSlot} {
		asked := time.Now()
		w.publisher(t, "cancel", job)
		ev := w.awaitFinal(t, job)
		t.Logf("waiting %s: %s after the request, the command took %s", what, ev.Time.Sub(asked).Round(time.Millisecond), time.Since(asked).Round(time.Millisecond))
		if ev.Kind != messages.KindCancelled {
			t.Errorf("waiting %s: %s", what, asJSON(ev))
		}
	}
	for _, job := range []string{busy, second} {
		if ev, _ := w.cancel(t, job); ev.Kind != messages.KindCancelled {
			t.Errorf("ended with %s", asJSON(ev))
		}
	}
	w.acknowledged(t)
	for _, job := range []string{sameVM, noSlot} {
		if events := w.events(t, job); len(events) != 1 {
			t.Errorf("a job that never ran has the events %s", asJSON(events))
		}
	}
	_, errs, code := w.try("cancel", busy)
	if code != 1 {
		t.Errorf("exit code %d for a job that is over: %s", code, errs)
	}
	w.nothingLeft(t)
}

// TestCancelWithoutTheHost: of a job that its host never began the management side stores the end; of
// one that it had begun only the host can, which ends what was left when it is back.
func TestCancelWithoutTheHost(t *testing.T) {
	t.Parallel()
	l := lab.Libvirtd(t)
	n := startNATS(t)
	w := newWorldOn(t, n, l.URI)
	vm := l.DefineVM(t, lab.VMOptions{Name: "web", Disks: []lab.Disk{{Path: noise(t, filepath.Join(w.dir, "vm.raw"), 128, 64), Format: "raw"}}})
	begun := newJobID()
	w.publisher(t, w.takeArgs("--vm", "web", "--bandwidth", "2", "--job-id", begun)...)
	w.awaitPhase(t, begun, messages.PhaseCopying)
	w.kill(t)

	queued := newJobID()
	w.publisher(t, w.takeArgs("--vm", "web", "--job-id", queued)...)
	w.publisher(t, "cancel", queued)
	if ev := w.awaitFinal(t, queued); ev.Kind != messages.KindCancelled || ev.Attempt != 0 {
		t.Errorf("ended with %s", asJSON(ev))
	}
	if _, errs, code := w.try("cancel", begun); code != 1 {
		t.Errorf("exit code %d for a job that had begun: %s", code, errs)
	}

	w.start(t)
	w.publisher(t, "cancel", begun)
	if ev := w.awaitFinal(t, begun); ev.Kind != messages.KindCancelled {
		t.Errorf("ended with %s", asJSON(ev))
	}
	w.acknowledged(t)
	w.nothingLeft(t)
	if events := w.events(t, queued); len(events) != 1 {
		t.Errorf("the host has begun a cancelled job: %s", asJSON(events))
	}
	vm.Running(t)
	if vm.HasBackupJob(t) {
		t.Error("libvirt still runs a backup job")
	}
	if list := w.ls(t); len(list) != 0 {
		t.Errorf("%d backups in the catalog", len(list))
	}
}

// TestThrottleOfARunningJob measures the rate before and after, and how soon the new one is seen.
func TestThrottleOfARunningJob(t *testing.T) {
	const before, after = 4, 24 // MiB/s
	w := newWorld(t, "none")
	image := noise(t, filepath.Join(w.dir, "one.raw"), 256, 256)
	job := newJobID()
	watch, err := w.connect(t).Watch(t.Context(), bus.Filter{Zone: zone, Host: host, Job: job})
	if err != nil {
		t.Fatal(err)
	}
	defer watch.Stop()
	w.publisher(t, w.takeArgs("--image", image, "--bandwidth", "4", "--verify", "--job-id", job)...)
	next := func() report {
		for {
			u, err := watch.Next(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			if u.Event != nil && u.Event.Kind.Final() {
				t.Fatalf("the job ended too soon: %s", asJSON(u.Event))
			}
			if u.Progress != nil && u.Progress.Phase == messages.PhaseCopying && len(u.Progress.Disks) == 1 {
				return report{at: time.Now(), bytes: u.Progress.Disks[0].Done}
			}
		}
	}
	rate := func(a, b report) float64 { return float64(b.bytes-a.bytes) / lab.MiB / b.at.Sub(a.at).Seconds() }
	first := next()
	last := first
	for last.at.Sub(first.at) < 4*time.Second {
		last = next()
	}
	slowRate := rate(first, last)
	if slowRate > 1.5*before {
		t.Errorf("%.1f MiB/s under a limit of %d", slowRate, before)
	}
	asked := time.Now()
	out := w.publisher(t, "throttle", job, "24")
	answered := time.Since(asked)
	// The first second that is clearly faster than the old limit allows.
	at := last
	for {
		if now := next(); rate(at, now) > 2*before {
			t.Logf("%.1f MiB/s; throttle answered after %s (%q); %.1f MiB/s was seen %s after the request",
				slowRate, answered.Round(time.Millisecond), out, rate(at, now), now.at.Sub(asked).Round(time.Millisecond))
			if now.at.Sub(asked) > slow {
				t.Error("that is late")
			}
			break
		} else {
			at = now
		}
	}
	// Without a limit it ends soon: for the verify phase it holds as well.
	w.publisher(t, "throttle", job, "0")
	if ev := w.awaitFinal(t, job); ev.Kind != messages.KindSucceeded {
		t.Errorf("ended with %s", asJSON(ev))
	}
	var changes []messages.Throttle
	for _, e := range w.events(t, job) {
		if e.Kind == messages.KindThrottled {
			changes = append(changes, *e.Throttled)
		}
	}
	if len(changes) != 2 || changes[0] != (messages.Throttle{From: before, To: after}) || changes[1] != (messages.Throttle{From: after}) {
		t.Errorf("the events tell %+v", changes)
	}
}

// TestJobTimeout: a backup that would take minutes is given three seconds.
func TestJobTimeout(t *testing.T) {
	t.Parallel()
	l := lab.Libvirtd(t)
	w := newWorld(t, l.URI)
	vm := l.DefineVM(t, lab.VMOptions{Name: "web", Disks: []lab.Disk{{Path: noise(t, filepath.Join(w.dir, "vm.raw"), 300, 300), Format: "raw"}}})
	ev := w.mustFail(t, messages.CodeJobTimeout, w.takeArgs("--vm", "web", "--bandwidth", "1", "--timeout", "3s")...)
	if ev.Attempt != 1 || ev.Error.Retryable {
		t.Errorf("%s", asJSON(ev))
	}
	t.Logf("ended %.1f s after it was accepted", ev.Seconds)
	w.acknowledged(t)
	w.nothingLeft(t)
	vm.Running(t)
	if vm.HasBackupJob(t) {
		t.Error("libvirt still runs a backup job")
	}
}
