package lab

import (
	"encoding/binary"
	"fmt"
	"os"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// Gate holds up whoever opens a chosen file: a process can then be killed at exactly that step. It is
// fanotify's permission event (fanotify(7)), which waits for an answer before open returns.
type Gate struct {
	fd   *os.File
	held chan struct{}
	once sync.Once
	done chan struct{}

	mu      sync.Mutex
	hold    func(path string) bool
	waiting []int32 // descriptors of the events that wait for an answer
}

// HoldOpens watches the file system that the path lies on, which must be the test's own (LoopFS), and holds
// up the first process but this one that opens a file or folder whose path hold chooses. It goes on when
// the gate is opened, at the latest with the test. hold is called from one goroutine, and must open nothing on
// that file system itself: it would wait for its own answer.
func HoldOpens(t testing.TB, path string, hold func(path string) bool) *Gate {
	t.Helper()
	fd, err := unix.FanotifyInit(unix.FAN_CLASS_CONTENT|unix.FAN_CLOEXEC|unix.FAN_NONBLOCK, unix.O_RDONLY|unix.O_CLOEXEC)
	if err != nil {
		t.Fatalf("fanotify: %v", err)
	}
	g := &Gate{fd: os.NewFile(uintptr(fd), "fanotify"), held: make(chan struct{}), done: make(chan struct{}), hold: hold}
	err = unix.FanotifyMark(fd, unix.FAN_MARK_ADD|unix.FAN_MARK_FILESYSTEM, unix.FAN_OPEN_PERM|unix.FAN_ONDIR, unix.AT_FDCWD, path)
	if err != nil {
		_ = g.fd.Close()
		t.Fatalf("fanotify %s: %v", path, err)
	}
	go g.watch()
	t.Cleanup(g.Open)
	return g
}

// Held is closed when somebody waits at the gate.
func (g *Gate) Held() <-chan struct{} { return g.held }

// Open lets everybody pass, and ends the gate. It may be called again.
func (g *Gate) Open() {
	g.once.Do(func() {
		g.mu.Lock()
		g.hold = func(string) bool { return false }
		for _, event := range g.waiting {
			g.allow(event)
		}
		g.waiting = nil
		g.mu.Unlock()
		// The kernel allows what is still on its way when the last descriptor is closed.
		_ = g.fd.Close()
	})
	<-g.done
}

// eventSize is that of struct fanotify_event_metadata.
const eventSize = 24

func (g *Gate) watch() {
	defer close(g.done)
	buf := make([]byte, 64*eventSize)
	for {
		n, err := g.fd.Read(buf)
		if err != nil {
			return
		}
		for b := buf[:n]; len(b) >= eventSize; b = b[binary.NativeEndian.Uint32(b):] {
			g.event(int32(binary.NativeEndian.Uint32(b[16:])), int(int32(binary.NativeEndian.Uint32(b[20:]))))
		}
	}
}

func (g *Gate) event(fd int32, pid int) {
	path, err := os.Readlink(fmt.Sprintf("/proc/self/fd/%d", fd))
	g.mu.Lock()
	defer g.mu.Unlock()
	if err == nil && pid != os.Getpid() && len(g.waiting) == 0 && g.hold(path) {
		g.waiting = append(g.waiting, fd)
		select {
		case <-g.held:
		default:
			close(g.held)
		}
		return
	}
	g.allow(fd)
}

func (g *Gate) allow(fd int32) {
	answer := binary.NativeEndian.AppendUint32(nil, uint32(fd))
	answer = binary.NativeEndian.AppendUint32(answer, unix.FAN_ALLOW)
	// It fails where the one who waited was killed, or the gate has been closed: nobody waits then.
	_, _ = g.fd.Write(answer)
	_ = unix.Close(int(fd))
}
