package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/nasfleet/nasfleet/messages"
	"github.com/nasfleet/nasfleet/tests/lab"
)

// kill ends the worker as a crash would, and waits until the kernel has taken what was its own.
func (w *world) kill(t *testing.T) {
	t.Helper()
	pid := w.worker.Process.Pid
	was := map[string]string{}
	for _, p := range descendants(t, pid) {
		was[p] = identityOf(p)
	}
	if err := w.worker.Process.Signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if err := <-w.ended; err == nil {
		t.Error("the worker ended in order although it was killed")
	}
	w.worker = nil
	// What it has started dies with it.
	lab.Eventually(t, "the worker's children are gone", func() bool {
		return len(lab.ProcessesWithArg(t, filepath.Join(w.dir, "run")+"/")) == 0 && len(alive(was)) == 0
	})
}

// killPoint is a moment in a job's life.
type killPoint struct {
	name string
	// flags of the take.
	flags []string
	// stop arranges that the worker stops at the point; the channel is closed when it has. release lets go of it.
	stop func(t *testing.T, s *killScene, job string) (reached <-chan struct{}, release func())
	// attempt of the final event; 0 for any.
	attempt int
}

// killScene is where workers are killed: a VM with two disks, and every way out of the worker in the
// test's hand.
type killScene struct {
	*world
	nats    *natsServer
	libvirt *lab.Proxy
	sshd    *lab.SSHServer
	vm      *lab.VM
	disks   []lab.Disk
}

func newKillScene(t *testing.T) *killScene {
	l := lab.Libvirtd(t)
	s := &killScene{nats: startNATS(t), sshd: lab.Sshd(t)}
	proxy, uri := libvirtProxy(t, l)
	s.libvirt = proxy
	s.world = newWorldOn(t, s.nats, uri)
	s.disks = []lab.Disk{
		{Path: noise(t, filepath.Join(s.dir, "a.raw"), 64, 24), Format: "raw"},
		{Path: noise(t, filepath.Join(s.dir, "b.raw"), 16, 4), Format: "raw"},
	}
	s.vm = l.DefineVM(t, lab.VMOptions{Name: "web", Disks: s.disks})
	return s
}

// inPhase stops nothing: the job is slow enough to be met there.
func inPhase(phase messages.Phase) func(*testing.T, *killScene, string) (<-chan struct{}, func()) {
	return func(t *testing.T, s *killScene, job string) (<-chan struct{}, func()) {
		watch := s.watchPhase(t, job, phase)
		return watch, func() {}
	}
}

func lost(proxy func(*killScene) *lab.Proxy, rule func(job string) func(lab.Way, []byte) bool) func(*testing.T, *killScene, string) (<-chan struct{}, func()) {
	return func(_ *testing.T, s *killScene, job string) (<-chan struct{}, func()) {
		trap := proxy(s).Lose(rule(job))
		return trap.Sprung(), trap.Remove
	}
}

func ofNATS(s *killScene) *lab.Proxy    { return s.nats.proxy }
func ofLibvirt(s *killScene) *lab.Proxy { return s.libvirt }

// opening stops the worker where it opens a file.
func opening(choose func(s *killScene, job, path string) bool) func(*testing.T, *killScene, string) (<-chan struct{}, func()) {
	return func(t *testing.T, s *killScene, job string) (<-chan struct{}, func()) {
		gate := lab.HoldOpens(t, s.mnt, func(path string) bool { return choose(s, job, path) })
		return gate.Held(), gate.Open
	}
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

func (s *killScene) folder(job string) string { return filepath.Join(s.nas, "web", job) }

func killPoints() []killPoint {
	event := func(lose func(string, messages.Kind) func(lab.Way, []byte) bool, kind messages.Kind) func(string) func(lab.Way, []byte) bool {
		return func(job string) func(lab.Way, []byte) bool { return lose(job, kind) }
	}
	return []killPoint{
		{"accepted, not stored", nil, lost(ofNATS, event(loseEvent, messages.KindAccepted)), 2},
		{"accepted", nil, lost(ofNATS, event(loseStored, messages.KindAccepted)), 2},
		{"freezing, not begun", nil, lost(ofLibvirt, func(string) func(lab.Way, []byte) bool { return loseBegin }), 2},
		{"freezing, begun", nil, lost(ofLibvirt, func(string) func(lab.Way, []byte) bool { return loseBegun() }), 2},
		{"copying", []string{"--bandwidth", "8"}, inPhase(messages.PhaseCopying), 2},
		{"verifying", []string{"--bandwidth", "8"}, inPhase(messages.PhaseVerifying), 2},
		{"committing, no manifest", nil, opening(func(s *killScene, job, path string) bool {
			return strings.Contains(path, job+".partial/manifest.json") && !exists(s.folder(job)+".partial/manifest.json")
		}), 2},
		{"committing, manifest", nil, opening(func(s *killScene, job, path string) bool {
			return strings.HasSuffix(path, job+".partial") && exists(s.folder(job)+".partial/manifest.json")
		}), 2},
		{"committed, not synced", nil, opening(func(s *killScene, job, path string) bool {
			return strings.HasSuffix(path, "/web") && exists(s.folder(job))
		}), 2},
		{"committed, not noted", nil, opening(func(s *killScene, job, path string) bool {
			return strings.Contains(path, "/state/") && strings.Contains(path, job) && exists(s.folder(job))
		}), 2},
		{"committed, not told", nil, lost(ofNATS, event(loseEvent, messages.KindSucceeded)), 1},
		{"told, and not heard that it is", nil, lost(ofNATS, event(loseStored, messages.KindSucceeded)), 1},
		{"between event and ack", nil, lost(ofNATS, func(string) func(lab.Way, []byte) bool { return loseAck }), 1},
	}
}

// TestKilledInEachPhase kills the worker at each point of a backup of a running VM. The next worker takes the
// job up, does it once, and nothing else is left.
func TestKilledInEachPhase(t *testing.T) {
	t.Parallel()
	s := newKillScene(t)
	for i, p := range killPoints() {
		t.Run(p.name, func(t *testing.T) {
			// Encryption is slow to begin; once in a while will do.
			f := features{compress: true, encrypt: i%4 == 0, verify: true}
			job := newJobID()
			reached, release := p.stop(t, s, job)
			s.publisher(t, s.takeArgs(append(append(f.flags(s.world, t), "--vm", "web", "--job-id", job), p.flags...)...)...)
			await(t, p.name, reached)
			s.kill(t)
			release()
			s.vm.Running(t)
			s.start(t)
			ev := s.takenUp(t, job, p.attempt)
			s.restoreAndCompare(t, f, ev, originals(s.disks))
		})
	}
}

// TestKilledWhileMounting kills the worker while its NAS does not answer, so that the mount hangs.
func TestKilledWhileMounting(t *testing.T) {
	t.Parallel()
	s := newKillScene(t)
	job := newJobID()
	mounting := s.watchPhase(t, job, messages.PhaseMounting)
	s.sshd.Hang(t)
	s.publisher(t, s.onRepo("fuse.sshfs", s.sshd.Address(), s.sshd.Options(), "--vm", "web", "--job-id", job)...)
	await(t, "mounting", mounting)
	lab.Eventually(t, "sshfs runs", func() bool {
		return len(lab.ProcessesWithArg(t, s.sshd.Export)) > 0
	})
	s.kill(t)
	s.sshd.Resume(t)
	s.start(t)
	ev := s.takenUp(t, job, 2)
	s.restoreAndCompare(t, features{}, ev, originals(s.disks))
	lab.NoFilesMatching(t, s.sshd.Export, "*.partial")
}

// TestKilledInOtherJobs kills the worker in restores, a verify and a delete.
func TestKilledInOtherJobs(t *testing.T) {
	t.Parallel()
	s := newKillScene(t)
	ev := s.take(t, "--vm", "web")
	doomed := s.take(t, "--vm", "web")
	to := filepath.Join(s.mnt, "to")
	restored := filepath.Join(to, "vda.qcow2")
	writes := 0
	noted := func(s *killScene, job, path string) bool {
		return strings.Contains(path, "/state/") && strings.Contains(path, job)
	}
	restore := func(mib int) messages.Command {
		return &messages.RestoreBackup{
			Header: header(messages.TypeRestore), Backup: ev.Backup.Ref(), ToDir: to, Details: messages.Details{BandwidthLimit: mib},
		}
	}
	verify := &messages.VerifyBackup{
		Header: header(messages.TypeVerify), Backup: ev.Backup.Ref(), Details: messages.Details{BandwidthLimit: 8},
	}
	for _, p := range []struct {
		killPoint
		cmd messages.Command
	}{
		{killPoint{"restoring", nil, inPhase(messages.PhaseCopying), 2}, restore(8)},
		{killPoint{"restored, not noted", nil, opening(func(s *killScene, job, path string) bool {
			return noted(s, job, path) && exists(restored)
		}), 2}, restore(0)},
		{killPoint{"restored, not tidied", nil, opening(func(s *killScene, job, path string) bool {
			// Once it is restored the record is written twice: with what was done, and when it is tidied up.
			if noted(s, job, path) && strings.HasSuffix(path, ".tmp") && exists(restored) {
				writes++
			}
			return writes == 2
		}), 1}, restore(0)},
		{killPoint{"verifying", nil, inPhase(messages.PhaseVerifying), 2}, verify},
		{killPoint{"deleted, not noted", nil, opening(func(s *killScene, job, path string) bool {
			return noted(s, job, path) && !exists(s.folder(doomed.BackupID))
		}), 2}, &messages.DeleteBackup{Header: header(messages.TypeDelete), Backup: doomed.Backup.Ref()}},
	} {
		t.Run(p.name, func(t *testing.T) {
			job := p.cmd.Head().JobID
			reached, release := p.stop(t, s, job)
			if _, err := s.connect(t).Publish(t.Context(), zone, host, p.cmd); err != nil {
				t.Fatal(err)
			}
			await(t, p.name, reached)
			s.kill(t)
			release()
			s.start(t)
			final := s.over(t, job, p.attempt)
			lab.NoFilesMatching(t, s.mnt, "*.partial")
			for disk, path := range final.Restored {
				o := originals(s.disks)[disk]
				compare(t, o.format, o.path, "qcow2", path)
			}
			if err := os.RemoveAll(to); err != nil {
				t.Error(err)
			}
		})
	}
	if list := s.ls(t); len(list) != 1 || list[0]["id"] != ev.BackupID {
		t.Errorf("the catalog has %v", list)
	}
}

// takenUp waits until a job whose worker was killed has ended, and checks that it was done once and nothing
// else is left of it.
func (s *killScene) takenUp(t *testing.T, job string, attempt int) messages.Event {
	t.Helper()
	ev := s.over(t, job, attempt)
	n := 0
	for _, b := range s.ls(t) {
		if b["job_id"] == job {
			n++
		}
	}
	if n != 1 {
		t.Errorf("the catalog has the job's backup %d times", n)
	}
	return ev
}

// over is takenUp for a job of any kind.
func (s *killScene) over(t *testing.T, job string, attempt int) messages.Event {
	t.Helper()
	ev := s.awaitFinal(t, job)
	if ev.Kind != messages.KindSucceeded || attempt != 0 && ev.Attempt != attempt {
		t.Fatalf("want success in attempt %d, got %s", attempt, asJSON(ev))
	}
	s.acknowledged(t)
	s.checkStory(t, job)
	s.nothingLeft(t)
	s.vm.Running(t)
	if s.vm.HasBackupJob(t) {
		t.Error("libvirt still runs a backup job")
	}
	return ev
}

// checkStory checks that a job's events are there once each, and in order: its final event is the last.
func (w *world) checkStory(t *testing.T, job string) {
	t.Helper()
	seen := map[string]bool{}
	events := w.events(t, job)
	for i, ev := range events {
		key := fmt.Sprint(ev.Kind, " ", ev.Attempt)
		if seen[key] {
			t.Errorf("job %s: %s was stored twice: %s", job, key, w.story(t, job))
		}
		seen[key] = true
		if ev.Kind.Final() != (i == len(events)-1) {
			t.Errorf("job %s: a final event is to be the last and the only one: %s", job, w.story(t, job))
		}
		if i > 0 && ev.Attempt < events[i-1].Attempt {
			t.Errorf("job %s: attempt %d after %d", job, ev.Attempt, events[i-1].Attempt)
		}
	}
}

// acknowledged waits until the server has nothing more to hand out, and checks that the journal is empty then.
func (w *world) acknowledged(t *testing.T) {
	t.Helper()
	lab.Eventually(t, "the worker has forgotten its jobs", func() bool {
		return len(w.journal(t)) == 0
	})
}

// journal lists the files of the worker's journal but for its lock.
func (w *world) journal(t *testing.T) []string {
	t.Helper()
	entries, err := os.ReadDir(filepath.Join(w.state, zone+"."+host))
	if err != nil {
		t.Fatal(err)
	}
	var files []string
	for _, e := range entries {
		if e.Name() != "lock" {
			files = append(files, e.Name())
		}
	}
	return files
}

// TestKilledInMidCopy kills the worker while it backs up a running VM to a mounted repository that
// holds another backup already. The next worker ends what was left, does the job once, and touches
// nothing else.
func TestKilledInMidCopy(t *testing.T) {
	t.Parallel()
	l := lab.Libvirtd(t)
	w := newWorld(t, l.URI, "--ack-wait", "3s")
	disks := []lab.Disk{{Path: noise(t, filepath.Join(w.dir, "vm.raw"), 256, 80), Format: "raw"}}
	vm := l.DefineVM(t, lab.VMOptions{Name: "web", Disks: disks})
	fs := lab.LoopImage(t, 512)
	onNAS := func(args ...string) []string {
		return w.onRepo("ext4", fs, "loop", append([]string{"--vm", "web"}, args...)...)
	}
	other := w.mustJob(t, onNAS()...)

	job := newJobID()
	w.publisher(t, onNAS("--bandwidth", "8", "--job-id", job)...)
	w.awaitPhase(t, job, messages.PhaseCopying)
	w.kill(t)
	vm.Running(t)
	vm.Write(t, "vda", 0, lab.MiB, 0x42) // the guest goes on without its backup's client

	w.start(t)
	final := w.awaitFinal(t, job)
	if final.Kind != messages.KindSucceeded || final.Attempt != 2 {
		t.Fatalf("want success in the second attempt, got %s", asJSON(final))
	}
	w.nothingLeft(t)
	vm.Running(t)
	if vm.HasBackupJob(t) {
		t.Error("libvirt still runs a backup job")
	}
	if list := w.ls(t); len(list) != 2 {
		t.Errorf("%d backups in the catalog, want 2", len(list))
	}
	for _, id := range []string{other.BackupID, final.BackupID} {
		w.mustJob(t, "verify", "--backup", id)
	}
	to := filepath.Join(w.dir, "restored")
	w.mustJob(t, "restore", "--backup", final.BackupID, "--to", to)
	compare(t, "raw", disks[0].Path, "qcow2", filepath.Join(to, "vda.qcow2"))
	if err := os.RemoveAll(to); err != nil {
		t.Error(err)
	}
}
