package integration

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/nasfleet/nasfleet/internal/bus"
	"github.com/nasfleet/nasfleet/messages"
	"github.com/nasfleet/nasfleet/tests/lab"
)

// stallTimeout is the worker's in these tests: far above what the lab's servers take to answer on a busy
// machine.
const stallTimeout = 8 * time.Second

// lossy is a world whose NAS is lost: a guest to back up, an image for another job that goes to
// another repository meanwhile, and an sshd.
type lossy struct {
	*world
	vm    *lab.VM
	disk  string
	other string
	sshd  *lab.SSHServer
}

func newLossy(t *testing.T) *lossy {
	t.Helper()
	l := lab.Libvirtd(t)
	s := lab.Sshd(t)
	w := newWorld(t, l.URI, "--stall-timeout", stallTimeout.String(), "--mount-timeout", "10s", "--jobs", "3")
	x := &lossy{world: w, sshd: s}
	x.disk = noise(t, filepath.Join(w.dir, "vm.raw"), 256, 80)
	x.vm = l.DefineVM(t, lab.VMOptions{Name: "web", Disks: []lab.Disk{{Path: x.disk, Format: "raw"}}})
	x.other = noise(t, filepath.Join(w.dir, "other.raw"), 64, 48)
	return x
}

// onNAS are the flags of a take to the sshd.
func (x *lossy) onNAS(args ...string) []string {
	return x.onRepo("fuse.sshfs", x.sshd.Address(), x.sshd.Options(), append([]string{"--vm", "web"}, args...)...)
}

// beside starts a job on another repository that lasts for half a minute, and returns what checks that
// it has succeeded.
func (x *lossy) beside(t *testing.T) func() {
	t.Helper()
	job := newJobID()
	x.publisher(t, x.takeArgs("--image", x.other, "--bandwidth", "2", "--attempts", "1", "--job-id", job)...)
	x.awaitPhase(t, job, messages.PhaseCopying)
	return func() {
		t.Helper()
		if ev := x.awaitFinal(t, job); ev.Kind != messages.KindSucceeded || ev.Attempt != 1 {
			t.Errorf("the job beside: %s", asJSON(ev))
		}
	}
}

// awaitCopied waits until a job has copied, or read back, some of its data.
func (w *world) awaitCopied(t *testing.T, job string, phase messages.Phase) {
	t.Helper()
	watch, err := w.connect(t).Watch(t.Context(), bus.Filter{Zone: zone, Host: host, Job: job})
	if err != nil {
		t.Fatal(err)
	}
	defer watch.Stop()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for {
		u, err := watch.Next(ctx)
		if err != nil {
			t.Fatalf("job %s does not get on with %s: %v", job, phase, err)
		}
		if u.Event != nil && (u.Event.Kind.Final() || u.Event.Kind == messages.KindRetrying) {
			t.Fatalf("job %s ended before it had copied anything: %s", job, asJSON(u.Event))
		}
		if u.Progress != nil && u.Progress.Phase == phase && len(u.Progress.Disks) > 0 && u.Progress.Disks[0].Done > 4*lab.MiB {
			return
		}
	}
}

// awaitFailed waits for the end of a job that must fail with the code, and checks that the guest goes on
// and nothing is left.
func (x *lossy) awaitFailed(t *testing.T, job string, want messages.Code) messages.Event {
	t.Helper()
	ev := x.awaitFinal(t, job)
	if ev.Kind != messages.KindFailed || ev.Error == nil || ev.Error.Code != want {
		t.Fatalf("want %s: %s\n%s", want, asJSON(ev), x.log.Tail(30))
	}
	x.unharmed(t)
	return ev
}

// unharmed checks the guest.
func (x *lossy) unharmed(t *testing.T) {
	t.Helper()
	x.vm.Running(t)
	if x.vm.HasBackupJob(t) {
		t.Error("libvirt still runs a backup job")
	}
	if err := x.vm.TryWrite(t, "vda", 0, lab.MiB, 0x42); err != nil {
		t.Error(err)
	}
}

// pids returns the worker's child processes whose program's name ends so.
func (w *world) pids(t testing.TB, name string) []int {
	t.Helper()
	var found []int
	for _, c := range children(t, w.worker.Process.Pid) {
		args, _ := os.ReadFile("/proc/" + c + "/cmdline") // it may have just ended
		program, _, _ := strings.Cut(string(args), "\x00")
		var pid int
		if _, err := fmt.Sscan(c, &pid); err == nil && strings.HasSuffix(program, name) {
			found = append(found, pid)
		}
	}
	if len(found) == 0 {
		t.Fatalf("the worker has no child %s", name)
	}
	return found
}

// TestLostNAS takes the NAS away while a running VM is copied to it, in each way there is.
func TestLostNAS(t *testing.T) {
	t.Parallel()
	x := newLossy(t)
	for _, c := range []struct {
		name string
		lose func(t testing.TB)
		// back brings it back for the next attempt.
		back func(t testing.TB)
	}{
		{"hangs", x.sshd.Hang, x.sshd.Resume},
		{"sshfs is killed", func(t testing.TB) { kill(t, x.pids(t, "sshfs")...) }, func(testing.TB) {}},
		{"sshfs hangs", func(t testing.TB) {
			for _, pid := range x.pids(t, "sshfs") {
				if err := syscall.Kill(pid, syscall.SIGSTOP); err != nil {
					t.Fatal(err)
				}
			}
		}, func(testing.TB) {}},
		{"sessions end", x.sshd.KillSessions, func(testing.TB) {}},
	} {
		t.Run(c.name, func(t *testing.T) {
			beside := x.beside(t)
			job := newJobID()
			x.publisher(t, x.onNAS("--bandwidth", "4", "--attempts", "6", "--job-id", job)...)
			x.awaitCopied(t, job, messages.PhaseCopying)
			c.lose(t)
			lost := time.Now()
			x.awaitRetrying(t, job, messages.CodeRepositoryLost)
			if took := time.Since(lost); took > stallTimeout+45*time.Second {
				t.Errorf("the job went on for %s", took)
			}
			x.unharmed(t)
			c.back(t)
			x.publisher(t, "ls") // the worker is there
			if ev := x.awaitFinal(t, job); ev.Kind != messages.KindSucceeded || ev.Attempt < 2 {
				t.Fatalf("the job did not succeed when the NAS was back: %s", asJSON(ev))
			}
			beside()
			x.nothingLeft(t)
			lab.NoFilesMatching(t, x.sshd.Export, "*.partial")
			x.unharmed(t)
		})
	}
	t.Run("server ends", func(t *testing.T) {
		beside := x.beside(t)
		job := newJobID()
		x.publisher(t, x.onNAS("--bandwidth", "4", "--attempts", "1", "--job-id", job)...)
		x.awaitCopied(t, job, messages.PhaseCopying)
		x.sshd.Kill()
		x.awaitFailed(t, job, messages.CodeRepositoryLost)
		x.mustFail(t, messages.CodeMountFailed, x.onNAS("--attempts", "1")...)
		beside()
		x.take(t, "--vm", "web") // the next job, elsewhere
		x.nothingLeft(t)
	})
}

func kill(t testing.TB, pids ...int) {
	t.Helper()
	for _, pid := range pids {
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
	}
}

// awaitRetrying waits for an attempt at a job that ended with the code, and fails the test when it was another.
func (w *world) awaitRetrying(t *testing.T, job string, want messages.Code) {
	t.Helper()
	watch, err := w.connect(t).Watch(t.Context(), bus.Filter{Zone: zone, Host: host, Job: job, History: true})
	if err != nil {
		t.Fatal(err)
	}
	defer watch.Stop()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	var got *messages.Event
	for got == nil {
		u, err := watch.Next(ctx)
		if err != nil {
			t.Fatalf("the attempt does not end: %v\n%s", err, w.log.Tail(30))
		}
		if u.Event != nil && (u.Event.Kind == messages.KindRetrying || u.Event.Kind.Final()) {
			got = u.Event
		}
	}
	if got.Kind != messages.KindRetrying || got.Error == nil || got.Error.Code != want {
		t.Fatalf("want a retry because of %s: %s", want, asJSON(got))
	}
}

// inside returns a path as the worker sees it: its mounts are its own.
func (w *world) inside(path string) string {
	return fmt.Sprintf("/proc/%d/root%s", w.worker.Process.Pid, path)
}

// TestFilledBySomebodyElse fills the repository while a backup is copied to it.
func TestFilledBySomebodyElse(t *testing.T) {
	t.Parallel()
	x := newLossy(t)
	image := lab.LoopImage(t, 256)
	onLoop := func(args ...string) []string { return x.onRepo("ext4", image, "loop", args...) }
	for _, c := range []struct {
		name string
		args []string
	}{
		{"copying", []string{"--vm", "web", "--bandwidth", "4"}},
		{"compressed", []string{"--vm", "web", "--bandwidth", "4", "--compress", "--verify"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			beside := x.beside(t)
			job := newJobID()
			x.publisher(t, onLoop(append(c.args, "--job-id", job)...)...)
			x.awaitCopied(t, job, messages.PhaseCopying)
			folder := x.inside(filepath.Join(x.dir, "run", job, "mnt"))
			fillWith(t, filepath.Join(folder, "somebody's"))
			if ev := x.awaitFailed(t, job, messages.CodeTargetFull); ev.Attempt != 1 {
				t.Errorf("attempt %d", ev.Attempt)
			}
			beside()
			x.nothingLeft(t)
			// What somebody has written is there, what the backup has is not.
			point := x.mkdir(t, "look")
			lab.Run(t, "mount", "-o", "loop", image, point)
			lab.NoFilesMatching(t, point, "*.partial")
			if err := os.Remove(filepath.Join(point, "somebody's")); err != nil {
				t.Error(err)
			}
			lab.Run(t, "umount", point)
			x.mustJob(t, onLoop("--vm", "web")...)
		})
	}
}

// fillWith writes a file until nothing is free, but for what a few names take.
func fillWith(t *testing.T, path string) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	for piece := lab.MiB; piece >= 4096; {
		if _, err := f.Write(make([]byte, piece)); err != nil {
			if !errors.Is(err, syscall.ENOSPC) {
				t.Fatal(err)
			}
			piece /= 2
		}
	}
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
}

// TestAKilledStorageDaemon kills the daemons of a job in mid-copy, as the OOM killer would. The job begins anew.
func TestAKilledStorageDaemon(t *testing.T) {
	t.Parallel()
	x := newLossy(t)
	stored := x.mustJob(t, x.onNAS()...)
	for _, c := range []struct {
		name  string
		phase messages.Phase
		args  []string
	}{
		{"target", messages.PhaseCopying, x.onNAS("--bandwidth", "8")},
		{"source and target", messages.PhaseCopying, x.takeArgs("--image", x.other, "--bandwidth", "4")},
		{"verifying", messages.PhaseVerifying, []string{"verify", "--backup", stored.BackupID, "--bandwidth", "8"}},
		{"restoring", messages.PhaseCopying, []string{"restore", "--backup", stored.BackupID, "--to", filepath.Join(x.dir, "to"), "--bandwidth", "8"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			job := newJobID()
			x.publisher(t, append(c.args, "--job-id", job)...)
			x.awaitCopied(t, job, c.phase)
			kill(t, x.pids(t, "qemu-storage-daemon")...)
			x.awaitRetrying(t, job, messages.CodeStorageDaemonFailed)
			if ev := x.awaitFinal(t, job); ev.Kind != messages.KindSucceeded || ev.Attempt != 2 {
				t.Errorf("the second attempt: %s", asJSON(ev))
			}
			x.unharmed(t)
			x.nothingLeft(t)
			lab.NoFilesMatching(t, x.sshd.Export, "*.partial")
		})
	}
}
