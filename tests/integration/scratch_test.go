package integration

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/nasfleet/nasfleet/messages"
	"github.com/nasfleet/nasfleet/tests/lab"
)

// scratchScene is a guest that can write more than the scratch file system holds.
type scratchScene struct {
	*world
	vm      *lab.VM
	l       *lab.Libvirt
	scratch string
	disk    string
}

const (
	scratchMiB = 192
	guestMiB   = 640
)

func newScratchScene(t *testing.T, args ...string) *scratchScene {
	t.Helper()
	// Before libvirtd, which has a mount namespace of its own.
	fs := lab.LoopFS(t, scratchMiB)
	l := lab.Libvirtd(t)
	s := &scratchScene{l: l, scratch: filepath.Join(fs, "scratch")}
	s.world = newWorld(t, l.URI, append([]string{"--scratch", s.scratch, "--scratch-reserve", "48"}, args...)...)
	s.disk = noise(t, filepath.Join(s.dir, "vm.raw"), guestMiB, guestMiB)
	s.mkdir(t, "scratch") // where other worlds have theirs
	s.vm = l.DefineVM(t, lab.VMOptions{Name: "web", Disks: []lab.Disk{{Path: s.disk, Format: "raw"}}})
	return s
}

// guest writes all the while, and counts.
type guest struct {
	stop  context.CancelFunc
	done  chan struct{}
	mu    sync.Mutex
	wrote int64 // MiB
	fails []string
	// events are what libvirt says of the guest: that it was paused, say.
	events bytes.Buffer
}

// write begins to overwrite the guest's disk from its start to its end, again and again.
func (s *scratchScene) write(t *testing.T) *guest {
	t.Helper()
	ctx, stop := context.WithCancel(t.Context())
	g := &guest{stop: stop, done: make(chan struct{})}
	listen := exec.Command(lab.Tool(t, "virsh"), "--quiet", "--connect", s.l.URI, "event", "--domain", s.vm.Name, "--all", "--loop")
	listen.Stdout = &g.events
	listen.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := listen.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(g.done)
		defer func() { _ = listen.Wait() }() // it is killed, and says so
		defer func() { _ = listen.Process.Kill() }()
		const piece = 4
		for at := int64(0); ctx.Err() == nil; at = (at + piece) % guestMiB {
			err := s.vm.TryWrite(t, "vda", at*lab.MiB, piece*lab.MiB, 0x42)
			g.mu.Lock()
			g.wrote += piece
			if err != nil {
				g.fails = append(g.fails, err.Error())
			}
			g.mu.Unlock()
		}
	}()
	t.Cleanup(func() { stop(); <-g.done })
	return g
}

func (g *guest) written() int64 {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.wrote
}

// goesOn waits until the guest has written some more.
func (g *guest) goesOn(t *testing.T) {
	t.Helper()
	before := g.written()
	lab.Eventually(t, "the guest writes on", func() bool { return g.written() > before+8 })
}

// unharmed ends the guest's writing and checks that it never noticed anything.
func (g *guest) unharmed(t *testing.T, vm *lab.VM) {
	t.Helper()
	g.stop()
	<-g.done
	vm.Running(t)
	if len(g.fails) > 0 {
		t.Errorf("%d writes of the guest failed: %s", len(g.fails), g.fails[0])
	}
	for line := range strings.Lines(g.events.String()) {
		for _, word := range []string{"Suspended", "Paused", "Stopped", "Crashed", "io-error", "I/O error"} {
			if strings.Contains(strings.ToLower(line), strings.ToLower(word)) {
				t.Errorf("libvirt says of the guest: %s", line)
			}
		}
	}
}

// empty checks that no scratch file is left.
func (s *scratchScene) empty(t *testing.T) {
	t.Helper()
	left, err := os.ReadDir(s.scratch)
	if err != nil || len(left) > 0 {
		t.Errorf("left in the scratch folder: %v, %v", left, err)
	}
	if s.vm.HasBackupJob(t) {
		t.Error("libvirt still runs a backup job")
	}
	s.nothingLeft(t)
}

// TestScratchFull fills the scratch file system with what a guest overwrites during its backup, which a
// bandwidth limit makes long. The backup ends, and the guest does not notice.
func TestScratchFull(t *testing.T) {
	t.Parallel()
	s := newScratchScene(t)
	g := s.write(t)
	ev := s.mustFail(t, messages.CodeScratchFull, s.takeArgs("--vm", "web", "--bandwidth", "1", "--attempts", "1")...)
	if ev.Attempt != 1 {
		t.Errorf("attempt %d", ev.Attempt)
	}
	g.goesOn(t)
	s.empty(t)
	t.Log(s.log.About("is ended"))
	if n := g.written(); n < 16 {
		t.Errorf("the guest had written %d MiB only", n)
	}

	// Without room to begin with it does not begin.
	fill := filepath.Join(filepath.Dir(s.scratch), "somebody's")
	lab.Run(t, "fallocate", "--length", "150M", fill)
	s.mustFail(t, messages.CodeScratchFull, s.takeArgs("--vm", "web", "--attempts", "1")...)
	g.goesOn(t)
	s.empty(t)
	if err := os.Remove(fill); err != nil {
		t.Fatal(err)
	}
	g.unharmed(t, s.vm)
	// With the room back, and a guest that does not outrun it, the next one is a backup.
	s.take(t, "--vm", "web")
	s.empty(t)
}

// TestScratchGrowsWithoutAWorker kills the worker while the scratch files grow. The next one ends the
// backup job first of all, although the command comes back after an hour.
func TestScratchGrowsWithoutAWorker(t *testing.T) {
	t.Parallel()
	s := newScratchScene(t, "--ack-wait", "1h")
	g := s.write(t)
	job := newJobID()
	s.publisher(t, s.takeArgs("--vm", "web", "--bandwidth", "1", "--job-id", job)...)
	s.awaitPhase(t, job, messages.PhaseCopying)
	g.goesOn(t)
	s.kill(t)
	if !s.vm.HasBackupJob(t) {
		t.Fatal("the backup job ended with the worker: there is nothing to protect the guest from")
	}
	s.start(t)
	lab.Eventually(t, "the backup job of the killed worker is ended", func() bool { return !s.vm.HasBackupJob(t) })
	g.goesOn(t)
	lab.Eventually(t, "its scratch files are gone", func() bool {
		left, err := os.ReadDir(s.scratch)
		return err == nil && len(left) == 0
	})
	g.unharmed(t, s.vm)
}
