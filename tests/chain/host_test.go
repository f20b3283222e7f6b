package chain

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/nasfleet/nasfleet/messages"
	"github.com/nasfleet/nasfleet/tests/lab"
)

const (
	zone = "z1"
	name = "h1"
)

// patience bounds what takes a second on a quiet machine.
const patience = 3 * time.Minute

// binDir holds the programs under test, built once.
var binDir string

func TestMain(m *testing.M) {
	os.Exit(lab.Main(m, &binDir, lab.Program{Name: "publisher"}, lab.Program{Name: "hostworker"}))
}

// host is a hostworker with a NATS server of its own.
type host struct{ dir, url string }

// startHost starts a worker; the test's end stops it.
func startHost(t *testing.T, libvirt string) *host {
	t.Helper()
	h := &host{dir: lab.Dir(t)}
	logFile, err := os.Create(h.path("log"))
	if err != nil {
		t.Fatal(err)
	}
	worker := exec.Command(filepath.Join(binDir, "hostworker"), "--log-level", "debug", "run", "--zone", zone, "--host", name,
		"--libvirt", libvirt, "--embedded-nats", h.path("nats"), "--listen", "127.0.0.1:0", "--run-dir", h.path("run"),
		"--state-dir", h.path("state"), "--scratch", h.path("scratch"), "--scratch-reserve", "16", "--luks-iter-time", "10ms")
	worker.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	worker.Stderr = logFile
	if err := worker.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = worker.Process.Signal(syscall.SIGTERM)
		if err := worker.Wait(); err != nil {
			t.Errorf("the worker ended with %v", err)
		}
		_ = logFile.Close()
		lab.NoLeftovers(t, h.path("run"))
		if t.Failed() {
			lines := strings.Split(h.log(t), "\n")
			t.Logf("the worker's log:\n%s", strings.Join(lines[max(0, len(lines)-80):], "\n"))
		}
	})
	address := regexp.MustCompile(`nats://127\.0\.0\.1:\d+`)
	lab.EventuallyIn(t, patience, "the worker is ready", func() bool {
		text := h.log(t)
		h.url = address.FindString(text)
		return h.url != "" && strings.Contains(text, `"message":"ready"`)
	})
	lab.EventuallyIn(t, patience, "the worker announces itself", func() bool {
		out, _, err := h.publisher("hosts", "--json")
		return err == nil && strings.Contains(out, `"`+name+`"`)
	})
	return h
}

func (h *host) path(name string) string { return filepath.Join(h.dir, name) }

func (h *host) log(t *testing.T) string {
	t.Helper()
	text, err := os.ReadFile(h.path("log"))
	if err != nil {
		t.Error(err)
	}
	return string(text)
}

// logged says whether the worker has logged something about a job.
func (h *host) logged(t *testing.T, job, what string) bool {
	t.Helper()
	for line := range strings.Lines(h.log(t)) {
		if strings.Contains(line, job) && strings.Contains(line, what) {
			return true
		}
	}
	return false
}

// publisher runs publisher. The error says what it printed.
func (h *host) publisher(args ...string) (stdout, stderr string, err error) {
	cmd := exec.Command(filepath.Join(binDir, "publisher"), args...)
	cmd.Env = append(os.Environ(), "NASFLEET_NATS="+h.url, "NASFLEET_KEYS="+h.path("keys"))
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err = cmd.Run(); err != nil {
		err = fmt.Errorf("publisher %s: %w\n%s%s", strings.Join(args, " "), err, out.String(), errs.String())
	}
	return out.String(), errs.String(), err
}

// job runs a command to the end of its job and returns the final event.
func (h *host) job(args ...string) (messages.Event, error) {
	out, _, err := h.publisher(append(args, "--wait", "--json")...)
	ev, bad := messages.DecodeEvent([]byte(out))
	if bad != nil || !ev.Kind.Final() {
		return ev, errors.Join(fmt.Errorf("publisher %s printed no final event: %q", strings.Join(args, " "), out), err, bad)
	}
	return ev, nil
}

// mustJob is job for one that has to succeed.
func (h *host) mustJob(t *testing.T, args ...string) messages.Event {
	t.Helper()
	ev, err := h.job(args...)
	if err != nil {
		t.Fatal(err)
	}
	if ev.Kind != messages.KindSucceeded {
		t.Fatalf("publisher %s: %s: %v", strings.Join(args, " "), ev.Kind, ev.Error)
	}
	return ev
}
