package integration

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nasfleet/nasfleet/internal/exec/repository"
	"github.com/nasfleet/nasfleet/messages"
	"github.com/nasfleet/nasfleet/tests/lab"
)

// scene is a worker and a guest with a real Linux: vda and vdd hold file systems, vdb and vdc are raw.
type scene struct {
	*world
	l *lab.Libvirt
	g *lab.Guest
}

func newScene(t *testing.T, args ...string) *scene {
	t.Helper()
	l := lab.Libvirtd(t)
	w := newWorld(t, l.URI, args...)
	g := l.BootGuest(t, lab.GuestOptions{
		Name: "web", Mounted: []string{"vda", "vdd"},
		Disks: []lab.Disk{
			{Path: lab.GuestDisk(t, filepath.Join(w.dir, "vda.qcow2"), 64)},
			{Path: lab.Image(t, filepath.Join(w.dir, "vdb.qcow2"), "qcow2", 8)},
			{Path: lab.Image(t, filepath.Join(w.dir, "vdc.raw"), "raw", 8), Format: "raw"},
			{Path: lab.GuestDisk(t, filepath.Join(w.dir, "vdd.qcow2"), 16)},
		},
	})
	return &scene{w, l, g}
}

// manifest reads a backup's manifest from the repository.
func (s *scene) manifest(t *testing.T, id string) repository.Manifest {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(s.nas, "web", id, "manifest.json"))
	if err != nil {
		t.Fatal(err)
	}
	var m repository.Manifest
	if err := json.Unmarshal(data, &m); err != nil {
		t.Fatal(err)
	}
	return m
}

// disk is the path of a backup's disk in the repository, which is plain qcow2.
func (s *scene) disk(id, name string) string { return filepath.Join(s.nas, "web", id, name+".qcow2") }

// TestQuiesce backs up a guest that writes all the while.
func TestQuiesce(t *testing.T) {
	t.Parallel()
	s := newScene(t)
	t.Run("frozen", s.testFrozen)
	t.Run("one moment", s.testOneMoment)
	t.Run("frozen by others", s.testFrozenByOthers)
	t.Run("the agent hangs", s.testAgentHangs)
	t.Run("the freeze takes too long", s.testFreezeTooLong)
	t.Run("no agent", s.testNoAgent)
	s.g.Unharmed(t)
	s.nothingLeft(t)
}

// testFrozen: the file systems are clean without a repair, hold everything that was synced by the
// backup's moment, and were frozen only around it.
func (s *scene) testFrozen(t *testing.T) {
	for _, how := range []string{"required", "best_effort"} {
		s.g.WriteRecords(t, "vda")
		s.g.AwaitWrites(t, 20)
		// The copy takes seconds, and the guest's disk is not still meanwhile.
		job := newJobID()
		s.publisher(t, s.takeArgs("--vm", "web", "--quiesce="+how, "--bandwidth", "4", "--job-id", job)...)
		s.awaitPhase(t, job, messages.PhaseCopying)
		copying := s.g.Synced()
		s.g.AwaitWrites(t, 20)
		final := s.awaitFinal(t, job)
		felt := s.g.StopWriter(t)
		if final.Kind != messages.KindSucceeded {
			t.Fatalf("the job ended with %s", asJSON(final))
		}
		m := s.manifest(t, job)
		frozen := time.Duration(m.FrozenSeconds * float64(time.Second))
		t.Logf("frozen for %v; the guest's longest write took %v, of %d", frozen, felt.Longest, felt.Written)
		for line := range strings.Lines(s.log.String()) {
			if strings.Contains(line, "the guest was frozen") {
				t.Log(strings.TrimSpace(line))
			}
		}
		if !m.Quiesced || frozen <= 0 || !strings.Contains(m.Consistency, "frozen") || len(m.Notes) != 0 {
			t.Errorf("the manifest says %s", asJSON(m))
		}
		if took := m.FinishedAt.Sub(m.CreatedAt); frozen >= took {
			t.Errorf("frozen for %v, and the whole backup took %v", frozen, took)
		}
		if felt.Failed != 0 {
			t.Errorf("the guest felt %+v", felt)
		}
		n := lab.CheckRecords(t, s.disk(job, "vda"), "qcow2", s.g.SyncedBy(m.CreatedAt))
		if n > copying {
			t.Errorf("the backup holds %d records, and the guest had synced %d when it was under way", n, copying)
		}
		lab.CheckRecords(t, s.disk(job, "vda"), "qcow2", n)
		if out, err := lab.Try(t, "e2fsck", "-fn", lab.Raw(t, s.disk(job, "vdd"), "qcow2")); err != nil {
			t.Errorf("vdd is not clean: %v\n%s", err, out)
		}
	}
}

// testOneMoment: without a freeze all disks are of one moment. The guest writes each number to vdb
// and then to vdc, so that vdc is never ahead, nor more than one behind.
func (s *scene) testOneMoment(t *testing.T) {
	s.g.WriteCounter(t, "vdb", "vdc")
	for range 5 {
		s.g.AwaitWrites(t, 5)
		before := s.g.Synced()
		m := s.manifest(t, s.take(t, "--vm", "web").BackupID)
		if m.Quiesced || m.FrozenSeconds != 0 || !strings.Contains(m.Consistency, "crash-consistent") {
			t.Errorf("the manifest says %s", asJSON(m))
		}
		first := lab.Counter(t, lab.Raw(t, s.disk(m.ID, "vdb"), "qcow2"))
		then := lab.Counter(t, lab.Raw(t, s.disk(m.ID, "vdc"), "qcow2"))
		if then > first || first > then+1 {
			t.Errorf("vdb holds %d and vdc %d", first, then)
		}
		if synced := s.g.SyncedBy(m.CreatedAt); then < synced || synced < before {
			t.Errorf("vdc holds %d, and the guest had written %d", then, synced)
		}
	}
	if felt := s.g.StopWriter(t); felt.Failed != 0 {
		t.Errorf("the guest felt %+v", felt)
	}
	// The same of a file system: its journal makes it whole.
	s.g.WriteRecords(t, "vda")
	s.g.AwaitWrites(t, 20)
	m := s.manifest(t, s.take(t, "--vm", "web").BackupID)
	s.g.StopWriter(t)
	lab.RecoverRecords(t, s.disk(m.ID, "vda"), "qcow2", s.g.SyncedBy(m.CreatedAt))
}

// testFrozenByOthers: a freeze of somebody else is not used, and not ended.
func (s *scene) testFrozenByOthers(t *testing.T) {
	s.g.Freeze(t)
	defer s.g.Thaw(t)
	s.mustFail(t, messages.CodeFreezeFailed, s.takeArgs("--vm", "web", "--quiesce=required", "--attempts", "1")...)
	m := s.manifest(t, s.take(t, "--vm", "web", "--quiesce").BackupID)
	if m.Quiesced || !strings.Contains(strings.Join(m.Notes, " "), "somebody else") {
		t.Errorf("the manifest says %s", asJSON(m))
	}
	if !s.g.Frozen(t) {
		t.Error("the worker has thawed what somebody else had frozen")
	}
}

// testAgentHangs: an agent that does not answer costs the freeze, and not the backup.
func (s *scene) testAgentHangs(t *testing.T) {
	s.g.WriteRecords(t, "vda")
	s.g.HangAgent(t)
	s.mustFail(t, messages.CodeFreezeFailed, s.takeArgs("--vm", "web", "--quiesce=required", "--attempts", "1")...)
	m := s.manifest(t, s.take(t, "--vm", "web", "--quiesce").BackupID)
	if m.Quiesced || !strings.Contains(strings.Join(m.Notes, " "), "not frozen") {
		t.Errorf("the manifest says %s", asJSON(m))
	}
	s.g.AwaitWrites(t, 20)
	s.g.ResumeAgent(t)
	s.writesOn(t)
}

// testFreezeTooLong: the agent takes the freeze and is late with it. The job goes on, and the guest is
// thawed when the agent has frozen it after all.
func (s *scene) testFreezeTooLong(t *testing.T) {
	s.g.WriteRecords(t, "vda")
	s.g.HoldFreeze(t)
	m := s.manifest(t, s.take(t, "--vm", "web", "--quiesce").BackupID)
	if m.Quiesced || !strings.Contains(strings.Join(m.Notes, " "), "not frozen") {
		t.Errorf("the manifest says %s", asJSON(m))
	}
	s.g.ReleaseFreeze(t)
	s.writesOn(t)
}

func (s *scene) testNoAgent(t *testing.T) {
	s.g.KillAgent(t)
	s.mustFail(t, messages.CodeFreezeFailed, s.takeArgs("--vm", "web", "--quiesce=required", "--attempts", "1")...)
	if m := s.manifest(t, s.take(t, "--vm", "web", "--quiesce").BackupID); m.Quiesced || len(m.Notes) == 0 {
		t.Errorf("the manifest says %s", asJSON(m))
	}
}

// writesOn waits until no watchdog is at work, and shows that the guest is not frozen: its agent says
// so, and its writer, which is ended, has gone on without a failure.
func (s *scene) writesOn(t *testing.T) {
	t.Helper()
	s.noWatchdog(t)
	s.g.AwaitWrites(t, 50)
	if felt := s.g.StopWriter(t); felt.Failed != 0 {
		t.Errorf("the guest felt %+v", felt)
	}
	if s.g.Frozen(t) {
		t.Error("the guest is frozen")
	}
}

// noWatchdog waits until every watchdog has ended and its note is gone.
func (s *scene) noWatchdog(t *testing.T) {
	t.Helper()
	lab.Eventually(t, "the watchdog ends", func() bool {
		notes, _ := filepath.Glob(filepath.Join(s.dir, "run", "*.frozen"))
		return len(notes) == 0 && len(lab.ProcessesWithArg(t, "thaw-watchdog "+s.l.URI)) == 0
	})
}
