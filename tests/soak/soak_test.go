package soak

import (
	crand "crypto/rand"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/nasfleet/nasfleet/internal/bus"
	"github.com/nasfleet/nasfleet/internal/fleet"
	"github.com/nasfleet/nasfleet/internal/secret"
	"github.com/nasfleet/nasfleet/messages"
	"github.com/nasfleet/nasfleet/tests/lab"
)

// binDir holds the worker under test, built once.
var binDir string

func TestMain(m *testing.M) {
	os.Exit(lab.Main(m, &binDir, lab.Program{Name: "hostworker", Race: true}))
}

// soak is a run.
type soak struct {
	bus     *bus.Bus
	manager *fleet.Manager
	rnd     *rand.Rand
	hosts   []*host
	events  chan messages.Event
	wg      sync.WaitGroup

	passphrase string
	sealKeys   map[*host]string
	jobs       map[string]*job
	pending    map[*host]int
	backups    []*backup
	deleted    map[*backup]bool
	outcomes   map[string]int
}

// number reads an environment variable.
func number(t *testing.T, name string, otherwise uint64) uint64 {
	t.Helper()
	text := os.Getenv(name)
	if text == "" {
		return otherwise
	}
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		t.Fatalf("%s: %v", name, err)
	}
	return n
}

func (s *soak) chance(oneIn int) bool { return s.rnd.IntN(oneIn) == 0 }

func (s *soak) between(low, high time.Duration) time.Duration {
	return low + time.Duration(s.rnd.Int64N(int64(high-low)))
}

// newSoak starts the server and the hosts.
func newSoak(t *testing.T, seed uint64) *soak {
	t.Helper()
	server, err := bus.StartServer(t.Context(), bus.ServerConfig{Dir: lab.Dir(t), Listen: "127.0.0.1:0", Log: zerolog.Nop()})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(server.Stop)
	b, err := bus.Connect(t.Context(), bus.Config{URL: server.ClientURL(), Name: "soak"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.Close)
	s := &soak{
		bus: b, manager: fleet.New(b, secret.NewFolder(t.TempDir()), zerolog.Nop()), rnd: rand.New(rand.NewPCG(seed, seed)),
		passphrase: "soak " + crand.Text(), events: make(chan messages.Event, 1000),
		sealKeys: map[*host]string{}, jobs: map[string]*job{}, pending: map[*host]int{}, deleted: map[*backup]bool{}, outcomes: map[string]int{},
	}
	u, err := url.Parse(server.ClientURL())
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"h1", "h2"} {
		h := newHost(t, name, u.Host)
		s.hosts = append(s.hosts, h)
		lab.Eventually(t, name+" announces itself", func() bool {
			info, err := b.Host(t.Context(), zone, name)
			s.sealKeys[h] = info.SealKey
			return err == nil
		})
	}
	s.follow(t)
	return s
}

// follow passes the final events on.
func (s *soak) follow(t *testing.T) {
	t.Helper()
	watch, err := s.bus.Watch(t.Context(), bus.Filter{History: true})
	if err != nil {
		t.Fatal(err)
	}
	s.wg.Go(func() {
		for {
			u, err := watch.Next(t.Context())
			if err != nil {
				return
			}
			if u.Event != nil && u.Event.Kind.Final() {
				s.events <- *u.Event
			}
		}
	})
	t.Cleanup(func() { watch.Stop(); s.wg.Wait() })
}

// patience is how long nothing may come to an end, faults or not.
const patience = 5 * time.Minute

// TestSoak is the whole of it.
func TestSoak(t *testing.T) {
	seed := number(t, "NASFLEET_TEST_SEED", rand.Uint64())
	jobs := int(number(t, "NASFLEET_SOAK_JOBS", 36))
	t.Logf("NASFLEET_TEST_SEED=%d, %d jobs", seed, jobs)
	s := newSoak(t, seed)
	w := newWeather(s)
	var before map[*host]held
	for last := time.Now(); len(s.jobs) < jobs || s.open() > 0; time.Sleep(20 * time.Millisecond) {
		if s.drain(t) {
			last = time.Now()
		}
		if time.Since(last) > patience {
			t.Fatalf("nothing has ended for %s; open: %v", patience, s.openJobs())
		}
		if !w.calm && len(s.jobs) >= jobs/2 {
			// From now on the workers live; what they hold at rest is to be the same at the end.
			w.clear(t)
			if s.open() > 0 {
				continue
			}
			w.calm, before = true, s.rest(t)
		}
		for _, h := range s.hosts {
			// A few more than the worker does at a time.
			for s.pending[h] < 5 && len(s.jobs) < jobs && (w.calm || len(s.jobs) < jobs/2) {
				s.next(t, h)
			}
		}
		if len(s.jobs) < jobs {
			w.step(t)
		} else {
			w.clear(t)
		}
	}
	s.restoreTheRest(t)
	t.Logf("jobs: %v", s.outcomes)
	t.Logf("faults: %v", w.counts)
	s.check(t)
	s.checkHeld(t, before)
}

// drain takes note of what has ended.
func (s *soak) drain(t *testing.T) (any bool) {
	t.Helper()
	for {
		select {
		case ev := <-s.events:
			any = true
			s.ended(t, ev)
		default:
			return any
		}
	}
}

func (s *soak) open() int {
	n := 0
	for _, p := range s.pending {
		n += p
	}
	return n
}

func (s *soak) openJobs() []string {
	var open []string
	for id, j := range s.jobs {
		if j.final == nil {
			open = append(open, fmt.Sprintf("%s %s on %s", id, j.cmd.Head().Type, j.host.name))
		}
	}
	return open
}

// restoreTheRest restores the backups that were not yet: each that was reported is.
func (s *soak) restoreTheRest(t *testing.T) {
	t.Helper()
	for _, b := range s.backups {
		if !b.restored && !b.deleting {
			s.restore(t, b)
		}
	}
	for last := time.Now(); s.open() > 0; time.Sleep(20 * time.Millisecond) {
		if s.drain(t) {
			last = time.Now()
		}
		if time.Since(last) > patience {
			t.Fatalf("nothing has ended for %s; open: %v", patience, s.openJobs())
		}
	}
}

// rest returns what each worker holds when it has nothing to do.
func (s *soak) rest(t *testing.T) map[*host]held {
	t.Helper()
	all := map[*host]held{}
	for _, h := range s.hosts {
		lab.Eventually(t, h.name+" is at rest", func() bool {
			return len(h.children()) == 0 && h.metric(t, "nasfleet_jobs_running") == 0
		})
		all[h] = h.held(t)
	}
	return all
}

// checkHeld compares what the surviving workers hold with what they held before.
func (s *soak) checkHeld(t *testing.T, before map[*host]held) {
	t.Helper()
	// The runtime and the connection keep a few more or less; a leak grows with the jobs.
	const slack, threads = 8, 40
	for _, h := range s.hosts {
		var now held
		lab.Eventually(t, fmt.Sprintf("%s holds what it held before, %+v", h.name, before[h]), func() bool {
			now = h.held(t)
			return now.descriptors <= before[h].descriptors+slack && now.goroutines <= before[h].goroutines+slack && now.threads <= before[h].threads+threads
		})
		t.Logf("%s held %+v and holds %+v", h.name, before[h], now)
	}
}

// check holds everything that was told against everything that is there.
func (s *soak) check(t *testing.T) {
	t.Helper()
	s.rest(t)
	for id, j := range s.jobs {
		s.checkStory(t, id, j)
	}
	want := map[string]bool{}
	for _, b := range s.backups {
		if s.deleted[b] {
			continue
		}
		if want[b.ref.ID] = true; !b.restored {
			t.Errorf("backup %s was not restored", b.ref.ID)
		}
	}
	s.checkCatalog(t, want)
	for _, h := range s.hosts {
		for _, root := range []string{h.nas, h.sshd.Export} {
			folders, err := filepath.Glob(filepath.Join(root, "*", "*"))
			if err != nil {
				t.Fatal(err)
			}
			for _, f := range folders {
				if filepath.Base(filepath.Dir(f)) == "lost+found" {
					continue
				}
				if !want[filepath.Base(f)] {
					t.Errorf("left: %s", f)
				}
				delete(want, filepath.Base(f))
			}
		}
		h.checkNothingLeft(t)
	}
	for id := range want {
		t.Errorf("backup %s was reported and is not there", id)
	}
}

// checkStory checks that a job has one final event, that it is the last, and that no event is there twice.
func (s *soak) checkStory(t *testing.T, id string, j *job) {
	t.Helper()
	events, err := s.bus.JobEvents(t.Context(), zone, j.host.name, id)
	if err != nil {
		t.Fatal(err)
	}
	var story []string
	finals := 0
	for _, ev := range events {
		story = append(story, fmt.Sprintf("%s %d", ev.Kind, ev.Attempt))
		if ev.Kind.Final() {
			finals++
		}
	}
	once := slices.Compact(slices.Sorted(slices.Values(story)))
	if finals != 1 || !events[len(events)-1].Kind.Final() || len(once) != len(story) {
		t.Errorf("job %s: %s", id, strings.Join(story, ", "))
	}
}

func (s *soak) checkCatalog(t *testing.T, want map[string]bool) {
	t.Helper()
	entries, err := s.bus.Backups(t.Context(), bus.CatalogFilter{})
	if err != nil && !errors.Is(err, bus.ErrNotFound) {
		t.Fatal(err)
	}
	for _, e := range entries {
		if !want[e.ID] {
			t.Errorf("the catalog has backup %s", e.ID)
		}
	}
	if len(entries) != len(want) {
		t.Errorf("the catalog has %d backups, want %d", len(entries), len(want))
	}
}

// checkNothingLeft checks that no job of the host has left anything; its worker goes on.
func (h *host) checkNothingLeft(t *testing.T) {
	t.Helper()
	for _, dir := range []string{filepath.Join(h.dir, "run"), h.scratch, filepath.Join(h.dir, "state", zone+"."+h.name)} {
		entries, err := os.ReadDir(dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			if e.Name() != "lost+found" && e.Name() != "lock" {
				t.Errorf("left: %s", filepath.Join(dir, e.Name()))
			}
		}
	}
	mounts, err := os.ReadFile(fmt.Sprintf("/proc/%d/mountinfo", h.worker.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(mounts), filepath.Join(h.dir, "run")) {
		t.Errorf("a mount is left on %s:\n%s", h.name, mounts)
	}
	lab.NoFilesMatching(t, filepath.Join(h.dir, "restored"), "*.partial")
	for _, src := range h.sources {
		if src.vmRuns == nil {
			continue
		}
		src.vmRuns.Running(t)
		if src.vmRuns.HasBackupJob(t) {
			t.Errorf("libvirt still runs a backup job of %s", src.vm)
		}
	}
}
