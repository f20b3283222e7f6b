package storaged

import (
	"bytes"
	"context"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// quick is an iter-time for tests, where nobody attacks the passphrase.
const quick = 10 * time.Millisecond

// logBuffer is a log that a test reads while the daemon writes it, and that tells when a line
// has appeared.
type logBuffer struct {
	mu   sync.Mutex
	buf  bytes.Buffer
	want []string
	seen chan struct{}
}

func (l *logBuffer) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.buf.Write(b)
	if l.want == nil {
		return len(b), nil
	}
	for _, part := range l.want {
		if !bytes.Contains(b, []byte(part)) {
			return len(b), nil
		}
	}
	l.want = nil
	close(l.seen)
	return len(b), nil
}

// expect returns a channel that is closed when a line with all these parts is next logged.
func (l *logBuffer) expect(parts ...string) <-chan struct{} {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.want, l.seen = parts, make(chan struct{})
	return l.seen
}

func (l *logBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.String()
}

// shortDir makes a folder whose path leaves room for a socket.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "nf")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

// startDaemon starts a daemon that the test's end stops, and that must then have left nothing.
func startDaemon(t *testing.T, iterTime time.Duration) (*Daemon, *logBuffer) {
	t.Helper()
	log, dir := &logBuffer{}, shortDir(t)
	d, err := Start(t.Context(), Config{Dir: dir, IterTime: iterTime, Log: zerolog.New(log)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := d.Stop(); err != nil {
			t.Errorf("Stop: %v", err)
		}
		requireGone(t, d)
		if left := entries(t, dir); len(left) != 0 {
			t.Errorf("left in the daemon's folder: %v", left)
		}
	})
	return d, log
}

func requireGone(t *testing.T, d *Daemon) {
	t.Helper()
	select {
	case <-d.Done():
	default:
		t.Error("the daemon has not ended")
	}
	if err := syscall.Kill(d.PID(), 0); err == nil {
		t.Errorf("process %d still exists", d.PID())
	}
}

func entries(t *testing.T, dir string) []string {
	t.Helper()
	found, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range found {
		names = append(names, e.Name())
	}
	return names
}

// requireEmpty fails unless the daemon holds no node, export, job or secret.
func requireEmpty(t *testing.T, d *Daemon) {
	t.Helper()
	for _, q := range []struct {
		command string
		args    any
	}{
		{"query-named-block-nodes", object{"flat": true}},
		{"query-block-exports", nil},
		{"query-jobs", nil},
		{"qom-list", object{"path": "/objects"}},
	} {
		var found []map[string]any
		err := d.qmp.execute(t.Context(), q.command, q.args, &found)
		if err != nil && !strings.Contains(err.Error(), "'/objects' not found") { // there never was one
			t.Fatal(err)
		}
		for _, f := range found {
			if f["name"] != "type" {
				t.Errorf("%s: left in the daemon: %v", q.command, f)
			}
		}
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.exports) != 0 {
		t.Errorf("exports still known: %v", d.exports)
	}
}

// run runs a tool that must be there and must succeed.
func run(t *testing.T, stdin, name string, args ...string) string {
	t.Helper()
	out, err := try(t, stdin, name, args...)
	for range 20 {
		// As with the daemon: qemu-img now and then cannot time its key derivation.
		if err == nil || !strings.Contains(out, "Unable to get accurate CPU usage") {
			break
		}
		out, err = try(t, stdin, name, args...)
	}
	if err != nil {
		t.Fatalf("%s %q: %v\n%s", name, args, err, out)
	}
	return out
}

func try(t *testing.T, stdin, name string, args ...string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Stdin = strings.NewReader(stdin)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// uri names an export for nbdcopy and qemu-img.
func (d *Daemon) uri(export string) string {
	return "nbd+unix:///" + export + "?socket=" + d.Socket()
}

// copyIn writes a file into an export in whole clusters, as compression needs.
func copyIn(t *testing.T, d *Daemon, file, export string) {
	t.Helper()
	run(t, "", "nbdcopy", "--sparse=0", "--no-extents", "--flush", file, d.uri(export))
}

// copyOut reads an export.
func copyOut(t *testing.T, d *Daemon, export string) []byte {
	t.Helper()
	file := filepath.Join(t.TempDir(), "out")
	run(t, "", "nbdcopy", d.uri(export), file)
	got, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	return got
}

// content makes size bytes that are text, noise and zeroes in turns.
func content(size int) []byte {
	rnd := rand.New(rand.NewPCG(1, uint64(size)))
	out := make([]byte, size)
	for at := 0; at < size; {
		n := min(size-at, 1+rnd.IntN(200<<10))
		switch part := out[at : at+n]; rnd.IntN(3) {
		case 0:
			for i := range part {
				part[i] = byte(rnd.Uint32())
			}
		case 1:
			for i := range part {
				part[i] = "all work and no play "[i%21]
			}
		}
		at += n
	}
	out[size-1] = 'z'
	return out
}

func writeFile(t *testing.T, path string, data []byte) string {
	t.Helper()
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// requireSame compares without printing a megabyte.
func requireSame(t *testing.T, got, want []byte) {
	t.Helper()
	if !bytes.Equal(got, want) {
		t.Errorf("the content differs (%d bytes, want %d)", len(got), len(want))
	}
}
