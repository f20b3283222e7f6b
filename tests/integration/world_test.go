package integration

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/nasfleet/nasfleet/messages"
	"github.com/nasfleet/nasfleet/tests/lab"
)

const (
	zone = "z1"
	host = "h1"
)

// patience bounds every wait for what takes half a minute at most: other tests run beside it.
const patience = 4 * time.Minute

// binDir holds the programs under test, built once.
var binDir string

func TestMain(m *testing.M) {
	os.Exit(lab.Main(m, &binDir, lab.Program{Name: "publisher"}, lab.Program{Name: "hostworker", Race: true}))
}

// world is one hostworker with an embedded NATS server, and all its folders.
type world struct {
	// dir holds everything of this world.
	dir string
	// nas is a folder that serves as a repository of type dir.
	nas     string
	url     string
	libvirt string
	// nats is where the worker finds its server; "" means one that it runs itself.
	nats string
	// mnt is a file system of the world's own, where there is one.
	mnt string
	// home stands in for root's home folder before the worker; "" for the real one.
	home string
	// state is the worker's state folder.
	state  string
	worker *exec.Cmd
	args   []string
	// under is a program, with its arguments, that the worker is started by; nil for none.
	under []string
	log   *lab.Output
	ended chan error
}

// newWorld starts a hostworker with a NATS server of its own; uri is libvirt's, or "none". The test's end
// stops it and checks that nothing of it is left.
func newWorld(t *testing.T, uri string, args ...string) *world {
	t.Helper()
	w := &world{dir: lab.Dir(t), libvirt: uri, args: args}
	w.begin(t)
	return w
}

// begin starts the worker for the first time, and sees to its end.
func (w *world) begin(t *testing.T) {
	t.Helper()
	if w.nas == "" {
		w.nas = w.mkdir(t, "nas")
	}
	if w.state == "" {
		w.state = filepath.Join(w.dir, "state")
	}
	w.start(t)
	t.Cleanup(func() {
		w.stop(t)
		// Not all of dir: guests of the lab have their disks in it, and outlive this.
		lab.NoLeftovers(t, filepath.Join(w.dir, "run"))
		lab.NoLeftovers(t, w.nas)
		if t.Failed() {
			t.Logf("the worker's log:\n%s", w.log.Tail(60))
		}
	})
}

func (w *world) mkdir(t *testing.T, name string) string {
	t.Helper()
	dir := filepath.Join(w.dir, name)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

var urlPattern = regexp.MustCompile(`nats://127\.0\.0\.1:\d+`)

// start starts the worker and waits until it takes commands and the publisher knows it.
func (w *world) start(t *testing.T) {
	t.Helper()
	w.launch(t)
	lab.Eventually(t, "the worker announces itself", func() bool {
		out, _, code := w.try("hosts", "--json")
		return code == 0 && strings.Contains(out, `"`+host+`"`)
	})
}

// launch starts the worker and waits until it takes commands.
func (w *world) launch(t *testing.T) {
	t.Helper()
	args := append([]string{
		"--log-level", "debug", "run", "--zone", zone, "--host", host, "--libvirt", w.libvirt,
		"--run-dir", filepath.Join(w.dir, "run"), "--state-dir", w.state,
		"--scratch", filepath.Join(w.dir, "scratch"), "--scratch-reserve", "16", "--retry-delay", "200ms",
		// The passphrases of tests need no protection, and there are many of them.
		"--luks-iter-time", "10ms",
		// The laboratory's servers keep their keys in folders of their own.
		"--mount-credentials", os.TempDir(),
	}, w.args...)
	if w.nats == "" {
		args = append(args, "--embedded-nats", filepath.Join(w.dir, "nats"), "--listen", "127.0.0.1:0")
	} else {
		args = append(args, "--nats", w.nats)
	}
	line := append(append(slices.Clone(w.under), filepath.Join(binDir, "hostworker")), args...)
	w.worker = exec.Command(line[0], line[1:]...)
	w.worker.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if w.home != "" {
		script := `mount --bind "$0" /root && exec "$@"`
		w.worker = exec.Command(lab.Tool(t, "sh"), append([]string{"-c", script, w.home, w.worker.Path}, args...)...)
		w.worker.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Unshareflags: syscall.CLONE_NEWNS}
	}
	w.log = &lab.Output{}
	w.worker.Stderr = w.log
	if err := w.worker.Start(); err != nil {
		t.Fatal(err)
	}
	worker, ended := w.worker, make(chan error, 1)
	w.ended = ended
	go func() { ended <- worker.Wait() }()
	lab.Eventually(t, "the worker is ready", func() bool {
		select {
		case err := <-w.ended:
			t.Fatalf("the worker ended: %v\n%s", err, w.log.Tail(20))
		default:
		}
		if w.nats == "" {
			if w.url = urlPattern.FindString(w.log.String()); w.url == "" {
				return false
			}
		}
		return strings.Contains(w.log.String(), `"message":"ready"`)
	})
}

// stop ends the worker in order.
func (w *world) stop(t *testing.T) {
	t.Helper()
	if w.worker == nil {
		return
	}
	_ = w.worker.Process.Signal(syscall.SIGTERM)
	if err := <-w.ended; err != nil {
		t.Errorf("the worker ended with %v", err)
	}
	w.worker = nil
}

// try runs publisher and returns what it printed and its exit code.
func (w *world) try(args ...string) (stdout, stderr string, code int) {
	return w.pipe(nil, args...)
}

func (w *world) pipe(stdin []byte, args ...string) (stdout, stderr string, code int) {
	cmd := exec.Command(filepath.Join(binDir, "publisher"), args...)
	cmd.Env = append(os.Environ(), "NASFLEET_NATS="+w.url, "NASFLEET_KEYS="+filepath.Join(w.dir, "keys"))
	cmd.Stdin = bytes.NewReader(stdin)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		return "", err.Error(), -1
	}
	return out.String(), errs.String(), cmd.ProcessState.ExitCode()
}

// publisher runs publisher, which must succeed.
func (w *world) publisher(t *testing.T, args ...string) string {
	t.Helper()
	out, errs, code := w.try(args...)
	if code != 0 {
		t.Fatalf("publisher %s: exit code %d\n%s%s", strings.Join(args, " "), code, out, errs)
	}
	return out
}

// job runs a command of publisher with --wait and returns its final event and exit code.
func (w *world) job(t *testing.T, args ...string) (messages.Event, int) {
	t.Helper()
	args = append(args, "--wait", "--json")
	out, errs, code := w.try(args...)
	ev, err := messages.DecodeEvent([]byte(out))
	if err != nil || !ev.Kind.Final() {
		t.Fatalf("publisher %s: exit code %d, no final event\n%s%s", strings.Join(args, " "), code, out, errs)
	}
	return ev, code
}

// take takes a backup into the world's folder, which must succeed.
func (w *world) take(t *testing.T, args ...string) messages.Event {
	t.Helper()
	return w.mustJob(t, w.takeArgs(args...)...)
}

func (w *world) takeArgs(args ...string) []string {
	return append([]string{"take", "--zone", zone, "--host", host, "--repo", w.nas}, args...)
}

func (w *world) mustJob(t *testing.T, args ...string) messages.Event {
	t.Helper()
	ev, code := w.job(t, args...)
	if code != 0 || ev.Kind != messages.KindSucceeded {
		t.Fatalf("publisher %s: exit code %d, event %s", strings.Join(args, " "), code, asJSON(ev))
	}
	return ev
}

// mustFail runs a job that must fail with the code, and returns its event.
func (w *world) mustFail(t *testing.T, want messages.Code, args ...string) messages.Event {
	t.Helper()
	ev, code := w.job(t, args...)
	if code != 1 || ev.Kind != messages.KindFailed || ev.Error == nil || ev.Error.Code != want {
		t.Fatalf("publisher %s: exit code %d, want code %s, event %s", strings.Join(args, " "), code, want, asJSON(ev))
	}
	if ev.Error.Message == "" || !strings.HasSuffix(ev.Error.Hint, ".") {
		t.Errorf("the event does not say what to do: %s", asJSON(ev.Error))
	}
	return ev
}

// nothingLeft checks that no job of the worker has left anything; the worker goes on.
func (w *world) nothingLeft(t *testing.T) {
	t.Helper()
	for _, dir := range []string{"run", "scratch"} {
		entries, err := os.ReadDir(filepath.Join(w.dir, dir))
		if err != nil {
			t.Error(err)
		}
		for _, e := range entries {
			t.Errorf("left: %s", filepath.Join(w.dir, dir, e.Name()))
		}
	}
	if pids := children(t, w.worker.Process.Pid); len(pids) > 0 {
		t.Errorf("the worker has children: %v", pids)
	}
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/mountinfo", w.worker.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(data), filepath.Join(w.dir, "run")) {
		t.Errorf("a mount is left in the worker's namespace:\n%s", data)
	}
	lab.NoFilesMatching(t, w.nas, "*.partial")
}

// children lists the child processes of a process.
func children(t testing.TB, pid int) []string {
	t.Helper()
	files, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, f := range files {
		data, _ := os.ReadFile(f) // a thread may have just ended
		all = append(all, strings.Fields(string(data))...)
	}
	return all
}

func asJSON(v any) string {
	data, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return err.Error()
	}
	return string(data)
}
