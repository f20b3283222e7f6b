package exec

import (
	"errors"
	"os"
	osexec "os/exec"
	"path/filepath"
	"syscall"
	"testing"

	"go.uber.org/goleak"

	"github.com/nasfleet/nasfleet/messages"
)

const testJob = "01J8ZQ5V9K3N7R2T4W6Y8A0B1C"

// TestMain runs the tests in a mount namespace of their own, as the worker does: whatever a test
// that dies leaves mounted ends with it.
func TestMain(m *testing.M) {
	const inside = "NASFLEET_TEST_NAMESPACE"
	if os.Getenv(inside) != "" {
		goleak.VerifyTestMain(m)
		return
	}
	exe, err := os.Executable()
	if err != nil {
		panic(err)
	}
	cmd := osexec.Command(exe, os.Args[1:]...)
	cmd.Env = append(os.Environ(), inside+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	err = cmd.Run()
	var exit *osexec.ExitError
	switch {
	case errors.As(err, &exit):
		os.Exit(max(exit.ExitCode(), 1))
	case err != nil:
		panic(err)
	}
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func wantCode(t *testing.T, err error, want messages.Code) {
	t.Helper()
	if got := messages.CodeOf(err); got != want {
		t.Errorf("code %q, want %q: %v", got, want, err)
	}
}

// shortDir returns a new folder whose path leaves room for a socket's.
func shortDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "nf")
	check(t, err)
	t.Cleanup(func() { check(t, os.RemoveAll(dir)) })
	return dir
}

func newExecutor(t *testing.T) *Executor {
	t.Helper()
	dir := shortDir(t)
	e, err := New(Config{Zone: "z1", Host: "h1", RunDir: filepath.Join(dir, "run"), ScratchDir: filepath.Join(dir, "scratch"), MountCredentials: os.TempDir()})
	check(t, err)
	return e
}

func write(t *testing.T, path string, content []byte) string {
	t.Helper()
	check(t, os.MkdirAll(filepath.Dir(path), 0o755))
	check(t, os.WriteFile(path, content, 0o600))
	return path
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

func names(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	check(t, err)
	var list []string
	for _, e := range entries {
		list = append(list, e.Name())
	}
	return list
}

// quiet is a Reporter that nobody listens to.
type quiet struct{}

func (quiet) Phase(messages.Phase)                   {}
func (quiet) Disk(string, int64, int64)              {}
func (quiet) Verified(string, messages.Verification) {}
func (quiet) Done(Outcome)                           {}
