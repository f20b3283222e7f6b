package integration

import (
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"github.com/nasfleet/nasfleet/internal/bus"
	"github.com/nasfleet/nasfleet/messages"
	"github.com/nasfleet/nasfleet/tests/lab"
)

// seed returns the seed of this run, which NASFLEET_TEST_SEED sets, and prints it.
func seed(t *testing.T) uint64 {
	t.Helper()
	s := rand.Uint64()
	if text := os.Getenv("NASFLEET_TEST_SEED"); text != "" {
		var err error
		if s, err = strconv.ParseUint(text, 10, 64); err != nil {
			t.Fatalf("NASFLEET_TEST_SEED: %v", err)
		}
	}
	t.Logf("NASFLEET_TEST_SEED=%d", s)
	return s
}

// randomKills kills a worker again and again while it works off jobs of every kind.
type randomKills struct {
	*world
	bus   *bus.Bus
	rnd   *rand.Rand
	disks map[string]map[string]original // by what is backed up
	// pending are the jobs that have not ended; done are the events of those that have.
	pending map[string]messages.Command
	done    map[string]messages.Event
	// backups can be restored, verified and deleted; gone are those that a job is to delete.
	backups []messages.Event
	gone    map[string]bool
}

// TestKilledAtRandom kills the worker fifty times, whatever it is doing.
func TestKilledAtRandom(t *testing.T) {
	t.Parallel()
	const kills = 50
	l := lab.Libvirtd(t)
	w := newWorldOn(t, startNATS(t), l.URI, "--jobs", "3")
	s := seed(t)
	k := &randomKills{
		world: w, bus: w.connect(t), rnd: rand.New(rand.NewPCG(s, s)),
		pending: map[string]messages.Command{}, done: map[string]messages.Event{}, gone: map[string]bool{},
	}
	vm := k.sources(t, l)

	// At first after less than half a second. When the machine is so busy that nothing comes to its end, later.
	patience, ended := 400*time.Millisecond, 0
	for i := range kills {
		if len(k.pending) < 3 {
			k.publish(t)
		}
		time.Sleep(time.Duration(k.rnd.Int64N(int64(patience))))
		k.kill(t)
		k.launch(t)
		k.collect(t)
		if i%5 == 4 {
			if len(k.done) == ended {
				patience = patience * 3 / 2
			}
			ended = len(k.done)
		}
	}
	k.finish(t)
	t.Logf("%d kills, %d jobs", kills, len(k.done))
	k.check(t)
	vm.Running(t)
	if vm.HasBackupJob(t) {
		t.Error("libvirt still runs a backup job")
	}
}

// sources makes what is backed up: a running VM, a stopped one, and an image.
func (k *randomKills) sources(t *testing.T, l *lab.Libvirt) *lab.VM {
	t.Helper()
	raw := func(name string) lab.Disk {
		return lab.Disk{Path: noise(t, filepath.Join(k.dir, name), 16, 6), Format: "raw"}
	}
	up, down, image := []lab.Disk{raw("up-a.raw"), raw("up-b.raw")}, []lab.Disk{raw("down.raw")}, raw("image.raw")
	k.disks = map[string]map[string]original{
		"up": originals(up), "down": originals(down), "image": {"disk0": {"raw", image.Path}},
	}
	l.DefineVM(t, lab.VMOptions{Name: "down", Disks: down, Stopped: true})
	return l.DefineVM(t, lab.VMOptions{Name: "up", Disks: up})
}

// publish publishes a job of each kind: as many attempts as there are kills are allowed.
func (k *randomKills) publish(t *testing.T) {
	t.Helper()
	repo := messages.Repository{Type: messages.RepositoryDir, Address: k.nas}
	details := messages.Details{Compression: k.rnd.IntN(2) == 0, IntegrityCheck: k.rnd.IntN(2) == 0}
	for _, vm := range []string{"up", "down"} {
		k.send(t, &messages.TakeBackup{Header: header(messages.TypeTake), VM: vm, Repository: repo, Details: details})
	}
	image := messages.Image{Path: k.disks["image"]["disk0"].path}
	k.send(t, &messages.TakeBackup{Header: header(messages.TypeTake), Images: []messages.Image{image}, Repository: repo, Details: details})
	if len(k.backups) < 2 {
		return
	}
	last := k.backups[len(k.backups)-1].Backup.Ref()
	h := header(messages.TypeRestore)
	k.send(t, &messages.RestoreBackup{Header: h, Backup: last, ToDir: filepath.Join(k.dir, "restored", h.JobID)})
	k.send(t, &messages.VerifyBackup{Header: header(messages.TypeVerify), Backup: last})
	k.send(t, &messages.DeleteBackup{Header: header(messages.TypeDelete), Backup: k.backups[0].Backup.Ref()})
	k.gone[k.backups[0].BackupID] = true
	k.backups = k.backups[1:]
}

func header(typ messages.Type) messages.Header {
	return messages.Header{Version: messages.Version, Type: typ, JobID: newJobID(), IssuedAt: time.Now().UTC(), Attempts: 100}
}

func (k *randomKills) send(t *testing.T, cmd messages.Command) {
	t.Helper()
	if _, err := k.bus.Publish(t.Context(), zone, host, cmd); err != nil {
		t.Fatal(err)
	}
	k.pending[cmd.Head().JobID] = cmd
}

// collect notes which jobs have ended.
func (k *randomKills) collect(t *testing.T) {
	t.Helper()
	for id, cmd := range k.pending {
		ev, err := k.bus.FinalEvent(t.Context(), zone, host, id)
		if errors.Is(err, bus.ErrNotFound) {
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		delete(k.pending, id)
		k.done[id] = *ev
		if ev.Kind != messages.KindSucceeded {
			t.Errorf("%s ended with %s", cmd.Head().Type, asJSON(ev))
		}
		if ev.Backup != nil {
			k.backups = append(k.backups, *ev)
		}
	}
}

// finish waits for the jobs that have not ended.
func (k *randomKills) finish(t *testing.T) {
	t.Helper()
	for _, what := range []string{"the jobs have ended", "the last restores have ended"} {
		for deadline := time.Now().Add(patience); len(k.pending) > 0; k.collect(t) {
			if time.Now().After(deadline) {
				t.Fatalf("%d jobs have not ended; not seen: %s\n%s", len(k.pending), what, k.log.Tail(40))
			}
			time.Sleep(50 * time.Millisecond)
		}
		if what == "the jobs have ended" {
			for _, ev := range k.backups {
				h := header(messages.TypeRestore)
				k.send(t, &messages.RestoreBackup{Header: h, Backup: ev.Backup.Ref(), ToDir: filepath.Join(k.dir, "restored", h.JobID)})
			}
		}
	}
}

// check holds what is there against what was done: one backup a job, each the right one, and nothing else.
func (k *randomKills) check(t *testing.T) {
	t.Helper()
	k.acknowledged(t)
	k.nothingLeft(t)
	there := map[string]bool{}
	folders, err := filepath.Glob(filepath.Join(k.nas, "*", "*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range folders {
		there[filepath.Base(f)] = true
	}
	for _, ev := range k.backups {
		if !there[ev.BackupID] {
			t.Errorf("backup %s is not on the repository", ev.BackupID)
		}
	}
	if len(there) != len(k.backups) || len(folders) != len(k.backups) {
		t.Errorf("%d backups on the repository, want %d: %v", len(folders), len(k.backups), folders)
	}
	if list := k.ls(t); len(list) != len(k.backups) {
		t.Errorf("%d backups in the catalog, want %d", len(list), len(k.backups))
	}
	for id, ev := range k.done {
		k.checkStory(t, id)
		for disk, path := range ev.Restored {
			o := k.disks[ev.VM][disk]
			compare(t, o.format, o.path, "qcow2", path)
		}
	}
	lab.NoFilesMatching(t, filepath.Join(k.dir, "restored"), "*.partial")
	for id := range k.gone {
		if there[id] {
			t.Errorf("backup %s was deleted, and is there", id)
		}
	}
}

// TestKilledAroundTheBegin kills the worker within milliseconds of the call that begins the backup job, which goes
// on in libvirtd without it: the next worker, which is there at once, meets it half begun.
func TestKilledAroundTheBegin(t *testing.T) {
	t.Parallel()
	const rounds = 8
	s := newKillScene(t)
	n := seed(t)
	rnd := rand.New(rand.NewPCG(n, n))
	begins := make(chan struct{}, 100)
	s.libvirt.Lose(func(way lab.Way, frame []byte) bool {
		if loseBegin(way, frame) {
			begins <- struct{}{}
		}
		return false
	})
	for i := range rounds {
		job := newJobID()
		s.publisher(t, s.takeArgs("--vm", "web", "--job-id", job)...)
		for range 1 + i%2 {
			await(t, "the call", begins)
			time.Sleep(time.Duration(rnd.IntN(60)) * time.Millisecond)
			s.kill(t)
			s.launch(t)
		}
		ev := s.takenUp(t, job, 0)
		s.restoreAndCompare(t, features{}, ev, originals(s.disks))
		for len(begins) > 0 {
			<-begins
		}
	}
}
