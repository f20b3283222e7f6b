package main

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/nasfleet/nasfleet/tests/lab"
)

// manager is the socket that systemd listens on.
type manager struct {
	path string
	conn *net.UnixConn
}

func newManager(t *testing.T) *manager {
	t.Helper()
	path := filepath.Join(lab.Dir(t), "notify")
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return &manager{path: path, conn: conn}
}

// next returns the lines of the next message.
func (m *manager) next(t *testing.T) []string {
	t.Helper()
	if err := m.conn.SetReadDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 4096)
	n, err := m.conn.Read(buf)
	if err != nil {
		t.Fatal(err)
	}
	return strings.Split(string(buf[:n]), "\n")
}

// until returns the first message that has a line which begins so.
func (m *manager) until(t *testing.T, prefix string) []string {
	t.Helper()
	for {
		if lines := m.next(t); slices.ContainsFunc(lines, func(l string) bool { return strings.HasPrefix(l, prefix) }) {
			return lines
		}
	}
}

// start starts a worker that systemd looks after.
func (m *manager) start(t *testing.T, dir string, args ...string) *node {
	t.Helper()
	n := &node{dir: dir, log: &lab.Output{}, ended: make(chan struct{})}
	n.cmd = program(t, []string{"NOTIFY_SOCKET=" + m.path, "WATCHDOG_USEC=20000000"}, append(nodeArgs(dir), args...)...)
	n.start(t)
	return n
}

// TestSystemd follows a worker from its start to its stop on a socket like systemd's.
func TestSystemd(t *testing.T) {
	m, dir := newManager(t), lab.Dir(t)
	server := startServer(t, "127.0.0.1:0")
	n := m.start(t, dir, "--nats", server.ClientURL())
	if first := m.until(t, "READY=1"); !slices.Contains(first, "WATCHDOG=1") || !slices.Contains(first, "STATUS=takes commands; no job at work") {
		t.Errorf("the first message: %q", first)
	}
	b := connect(t, server.ClientURL())
	cmd := newTake(image(t, dir, 64), folder(t, dir+"/nas"), 4)
	until(t, publish(t, b, cmd), "it copies", copying)
	if lines := m.until(t, "STATUS=takes commands; 1 of 2 jobs at work: "+cmd.JobID); !slices.Contains(lines, "WATCHDOG=1") || slices.Contains(lines, "READY=1") {
		t.Errorf("with a job: %q", lines)
	}
	if err := n.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	m.until(t, "STOPPING=1")
	b.Close()
	n.stop(t, patience) // the second signal: the job does not get the grace
}

// TestSystemdDoesNotWaitForNATS: a boot must not.
func TestSystemdDoesNotWaitForNATS(t *testing.T) {
	m := newManager(t)
	n := m.start(t, lab.Dir(t), "--nats", "nats://"+freeAddress(t))
	if lines := m.until(t, "READY=1"); !slices.Contains(lines, "STATUS=waits for NATS") {
		t.Errorf("%q", lines)
	}
	if lines := m.next(t); !slices.Contains(lines, "WATCHDOG=1") || slices.Contains(lines, "READY=1") {
		t.Errorf("then: %q", lines)
	}
	n.stop(t, prompt)
}

// TestWatchdogOfAWorkerThatHangs: no sign of life comes from a worker whose main loop has none.
func TestWatchdogOfAWorkerThatHangs(t *testing.T) {
	m := newManager(t)
	t.Setenv("NOTIFY_SOCKET", m.path)
	s := &supervisor{log: zerolog.Nop(), watchdog: 40 * time.Millisecond, slots: 2}
	lives, hangs := make(chan struct{}), errors.New("no answer")
	end := s.follow(t.Context(), func(context.Context) ([]string, error) {
		select {
		case <-lives:
			return []string{"J"}, nil
		default:
			return nil, hangs
		}
	})
	defer end()
	for range 3 {
		lines := m.next(t)
		if slices.Contains(lines, "WATCHDOG=1") || slices.Contains(lines, "READY=1") || !strings.HasPrefix(lines[0], "STATUS=hangs") {
			t.Errorf("it hangs: %q", lines)
		}
	}
	close(lives)
	m.until(t, "WATCHDOG=1")
}

// TestWithoutSystemd: where nobody listens nothing is told, and nothing fails.
func TestWithoutSystemd(t *testing.T) {
	if err := os.Unsetenv("NOTIFY_SOCKET"); err != nil {
		t.Fatal(err)
	}
	var log lab.Output
	s := newSupervisor(1, zerolog.New(&log))
	s.waits("NATS")
	s.follow(t.Context(), func(context.Context) ([]string, error) { return nil, nil })()
	if log.String() != "" {
		t.Errorf("%s", log.String())
	}
}
