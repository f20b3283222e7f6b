package integration

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/nasfleet/nasfleet/messages"
	"github.com/nasfleet/nasfleet/tests/lab"
)

// TestWatchdog kills and stops the worker while it freezes a guest. What makes the moment sure is the
// agent's hook: it holds the freeze, and the worker with it, until the test has done its part.
func TestWatchdog(t *testing.T) {
	t.Parallel()
	s := newScene(t, "--ack-wait", "3s")
	t.Run("killed before the guest is frozen", s.testKilledFreezing)
	t.Run("killed while the guest is frozen", s.testKilledFrozen)
	t.Run("killed with its watchdog", s.testKilledBoth)
	t.Run("the worker hangs", s.testWorkerHangs)
	t.Run("libvirtd hangs", s.testLibvirtHangs)
	t.Run("the agent hangs", s.testAgentHangsFrozen)
	s.g.Unharmed(t)
	s.nothingLeft(t)
}

// freezing publishes a job and waits until its freeze waits in the agent.
func (s *scene) freezing(t *testing.T, how string) (job string) {
	t.Helper()
	s.g.WriteRecords(t, "vda")
	s.g.HoldFreeze(t)
	job = newJobID()
	s.publisher(t, s.takeArgs("--vm", "web", "--quiesce="+how, "--job-id", job)...)
	s.g.AwaitHeld(t)
	return job
}

// frozenHeld stops the worker in the middle of its freeze and lets the guest be frozen: now the worker
// is between freeze and thaw, for as long as the test likes.
func (s *scene) frozenHeld(t *testing.T, how string) (job string) {
	t.Helper()
	job = s.freezing(t, how)
	signal(t, s.worker.Process.Pid, syscall.SIGSTOP)
	s.g.ReleaseFreeze(t)
	lab.Eventually(t, "the guest is frozen", func() bool { return s.g.Frozen(t) })
	return job
}

func signal(t *testing.T, pid int, sig syscall.Signal) {
	t.Helper()
	if err := syscall.Kill(pid, sig); err != nil {
		t.Fatal(err)
	}
}

// goesOn shows that the guest, with no worker, is thawed and that its writer goes on.
func (s *scene) goesOn(t *testing.T) {
	t.Helper()
	if s.worker != nil {
		t.Fatal("a worker runs")
	}
	s.writesOn(t)
}

// again starts the next worker, which must do the job.
func (s *scene) again(t *testing.T, job string, attempt int) {
	t.Helper()
	s.start(t)
	final := s.awaitFinal(t, job)
	if final.Kind != messages.KindSucceeded || final.Attempt != attempt {
		t.Errorf("the job ended with %s", asJSON(final))
	}
	if m := s.manifest(t, job); !m.Quiesced {
		t.Errorf("the manifest says %s", asJSON(m))
	}
	s.noWatchdog(t)
	s.nothingLeft(t)
}

// testKilledFreezing: the worker dies before its freeze has happened; it happens after that.
func (s *scene) testKilledFreezing(t *testing.T) {
	job := s.freezing(t, "required")
	s.killAlone(t)
	s.g.AwaitWrites(t, 20)
	s.g.ReleaseFreeze(t)
	s.goesOn(t)
	s.again(t, job, 2)
}

func (s *scene) testKilledFrozen(t *testing.T) {
	job := s.frozenHeld(t, "required")
	s.killAlone(t)
	s.goesOn(t)
	s.again(t, job, 2)
}

// testKilledBoth: with the watchdog gone too, the next worker thaws the guest by its note.
func (s *scene) testKilledBoth(t *testing.T) {
	job := s.frozenHeld(t, "required")
	for _, pid := range s.watchdogs(t) {
		signal(t, pid, syscall.SIGKILL)
	}
	s.killAlone(t)
	if !s.g.Frozen(t) {
		t.Error("the guest is not frozen although nobody was left to thaw it")
	}
	s.again(t, job, 2)
	s.writesOn(t)
}

// testWorkerHangs: after half a minute the watchdog thaws the guest. The worker, when it goes on, does
// not take the backup for one of a frozen guest.
func (s *scene) testWorkerHangs(t *testing.T) {
	job := s.frozenHeld(t, "best_effort")
	lab.EventuallyIn(t, patience, "the watchdog thaws", func() bool { return !s.g.Frozen(t) })
	s.g.AwaitWrites(t, 50)
	signal(t, s.worker.Process.Pid, syscall.SIGCONT)
	final := s.awaitFinal(t, job)
	m := s.manifest(t, job)
	if final.Kind != messages.KindSucceeded || m.Quiesced || !strings.Contains(strings.Join(m.Notes, " "), "watchdog") {
		t.Errorf("the job ended with %s and the manifest %s", asJSON(final), asJSON(m))
	}
	s.writesOn(t)
}

// testLibvirtHangs: the worker is killed while libvirtd hangs; the guest is thawed when it goes on.
func (s *scene) testLibvirtHangs(t *testing.T) {
	job := s.freezing(t, "required")
	s.l.Signal(t, syscall.SIGSTOP)
	s.g.ReleaseFreeze(t)
	s.killAlone(t)
	s.l.Signal(t, syscall.SIGCONT)
	s.goesOn(t)
	s.again(t, job, 2)
}

// testAgentHangsFrozen: the agent freezes the guest and then answers no more. The job goes on and says
// so; the watchdog thaws the guest when the agent is back, with no worker there.
func (s *scene) testAgentHangsFrozen(t *testing.T) {
	job := s.frozenHeld(t, "required")
	s.g.HangAgent(t)
	signal(t, s.worker.Process.Pid, syscall.SIGCONT)
	final := s.awaitFinal(t, job)
	m := s.manifest(t, job)
	if final.Kind != messages.KindSucceeded || !m.Quiesced || !strings.Contains(strings.Join(m.Notes, " "), "may still be frozen") {
		t.Errorf("the job ended with %s and the manifest %s", asJSON(final), asJSON(m))
	}
	lab.CheckRecords(t, s.disk(job, "vda"), "qcow2", s.g.SyncedBy(m.CreatedAt))
	s.watchdogs(t) // it is at work
	s.killAlone(t)
	s.g.ResumeAgent(t)
	s.goesOn(t)
	s.start(t)
}

// killAlone kills the worker and waits for nothing but its own end: its watchdog is to live.
func (s *scene) killAlone(t *testing.T) {
	t.Helper()
	pid := s.worker.Process.Pid
	signal(t, pid, syscall.SIGKILL)
	lab.Eventually(t, "the worker is dead", func() bool {
		stat, err := os.ReadFile(filepath.Join("/proc", strconv.Itoa(pid), "stat"))
		return err != nil || strings.Contains(string(stat), ") Z ")
	})
	ended := s.ended
	t.Cleanup(func() {
		if err := <-ended; err == nil {
			t.Error("the worker ended in order although it was killed")
		}
	})
	s.worker = nil
}

func (s *scene) watchdogs(t *testing.T) []int {
	t.Helper()
	pids := lab.ProcessesWithArg(t, "thaw-watchdog "+s.l.URI)
	if len(pids) != 1 {
		t.Errorf("there are %d watchdogs", len(pids))
	}
	return pids
}
