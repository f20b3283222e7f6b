package soak

import (
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nasfleet/nasfleet/tests/lab"
)

// fault is something that goes wrong on a host, for a time. A fault of a moment has no end.
type fault struct {
	name string
	// restarts says that the worker does not survive it.
	restarts   bool
	begin, end func(*testing.T, *host)
}

func faults() []fault {
	return []fault{
		{"kill -9", true, func(t *testing.T, h *host) { h.kill(t); h.start(t) }, nil},
		{"SIGTERM", true, func(t *testing.T, h *host) { h.stop(t); h.start(t) }, nil},
		{"NATS lost", false, func(_ *testing.T, h *host) { h.nats.Cut() }, func(_ *testing.T, h *host) { h.nats.Heal() }},
		{"storage daemon killed", false, killDaemon, nil},
		{"NAS hangs", false, func(t *testing.T, h *host) { h.sshd.Hang(t) }, func(t *testing.T, h *host) { h.sshd.Resume(t) }},
		{"target full", false, fill(func(h *host) string { return h.nas }, 0), unfill(func(h *host) string { return h.nas })},
		{"scratch low", false, fill(func(h *host) string { return h.scratch }, scratchReserve/2), unfill(func(h *host) string { return h.scratch })},
	}
}

// killDaemon kills one of the worker's storage daemons, where there is one.
func killDaemon(_ *testing.T, h *host) {
	for pid, name := range h.children() {
		if name == "qemu-storage-da" { // the kernel keeps 15 bytes of a name
			_ = syscall.Kill(pid, syscall.SIGKILL) // it may have just ended
			return
		}
	}
}

// filler is the file that takes a file system's space.
const filler = "filler"

// fill leaves so many MiB of a file system free.
func fill(where func(*host) string, leave int64) func(*testing.T, *host) {
	return func(t *testing.T, h *host) {
		t.Helper()
		var st unix.Statfs_t
		if err := unix.Statfs(where(h), &st); err != nil {
			t.Fatal(err)
		}
		f, err := os.Create(filepath.Join(where(h), filler))
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = f.Close() }()
		free := st.Bavail
		if leave == 0 {
			free = st.Bfree // root, which the jobs run as, may use what is reserved
		}
		if size := int64(free)*st.Bsize - leave*lab.MiB; size > 0 {
			// An error means that a job was faster, and that the file system is full.
			_ = unix.Fallocate(int(f.Fd()), 0, 0, size)
		}
	}
}

func unfill(where func(*host) string) func(*testing.T, *host) {
	return func(t *testing.T, h *host) {
		t.Helper()
		if err := os.Remove(filepath.Join(where(h), filler)); err != nil {
			t.Fatal(err)
		}
	}
}

// weather is the faults under way: on each host one at a time.
type weather struct {
	s *soak
	// until is when a host's fault ends, or the next begins where there is none.
	until  map[*host]time.Time
	now    map[*host]*fault
	counts map[string]int
	// calm says that workers are no longer ended: those that run now are to be the survivors.
	calm bool
}

func newWeather(s *soak) *weather {
	return &weather{s: s, until: map[*host]time.Time{}, now: map[*host]*fault{}, counts: map[string]int{}}
}

// step ends and begins faults, as their time has come.
func (w *weather) step(t *testing.T) {
	t.Helper()
	for _, h := range w.s.hosts {
		if time.Now().Before(w.until[h]) {
			continue
		}
		if w.now[h] != nil {
			w.end(t, h)
			continue
		}
		choice := slices.DeleteFunc(faults(), func(f fault) bool { return w.calm && f.restarts })
		f := choice[w.s.rnd.IntN(len(choice))]
		w.counts[f.name]++
		f.begin(t, h)
		if f.end != nil {
			w.now[h] = &f
		}
		w.until[h] = time.Now().Add(w.s.between(200*time.Millisecond, 3*time.Second))
	}
}

func (w *weather) end(t *testing.T, h *host) {
	t.Helper()
	w.now[h].end(t, h)
	w.now[h] = nil
	w.until[h] = time.Now().Add(w.s.between(200*time.Millisecond, 2*time.Second))
}

// clear ends all faults.
func (w *weather) clear(t *testing.T) {
	t.Helper()
	for _, h := range w.s.hosts {
		if w.now[h] != nil {
			w.end(t, h)
		}
	}
}
