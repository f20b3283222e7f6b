package lab

import (
	"bytes"
	"context"
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"
)

// patience bounds every wait in the laboratory for what takes seconds at most: other tests run beside it.
const patience = 2 * time.Minute

// toolTimeout bounds a program that Run runs.
const toolTimeout = 5 * time.Minute

// Tool returns the path of a program. A program that is missing fails the test.
func Tool(t testing.TB, name string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		t.Fatalf("%s is not installed: run `make deps` (%v)", name, err)
	}
	return path
}

// Try runs a program to its end and returns what it wrote to its standard output and, when it
// failed, its standard error.
func Try(t testing.TB, name string, args ...string) (string, error) {
	t.Helper()
	// Not the test's context: it has ended when the cleanups run.
	ctx, cancel := context.WithTimeout(context.Background(), toolTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, Tool(t, name), args...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	if err != nil {
		stdout.Write(stderr.Bytes())
	}
	return stdout.String(), err
}

// Run runs a program and returns its standard output. A failure fails the test, except that
// qemu-img is run again where it could not time its key derivation.
func Run(t testing.TB, name string, args ...string) string {
	t.Helper()
	out, err := Try(t, name, args...)
	for range luksTries {
		if err == nil || !strings.Contains(out, luksFlake) {
			break
		}
		out, err = Try(t, name, args...)
	}
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return out
}

// QEMU times its key derivation when it makes a LUKS container, and gives up on a machine whose
// clock of CPU time is coarse. That is no failure of what is tested.
const (
	luksFlake = "Unable to get accurate CPU usage"
	luksTries = 20
)

// Dir returns a new folder with a short path, as unix sockets need (their paths have at most 107
// bytes), that every user may enter, as QEMU needs. It is removed with the test.
func Dir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "nf")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Errorf("remove the test's folder: %v", err)
		}
	})
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return dir
}

// Eventually waits until the condition holds, and fails the test when it does not in time.
func Eventually(t testing.TB, what string, condition func() bool) {
	t.Helper()
	EventuallyIn(t, patience, what, condition)
}

// EventuallyIn is Eventually for what may take longer.
func EventuallyIn(t testing.TB, d time.Duration, what string, condition func() bool) {
	t.Helper()
	if !within(d, condition) {
		t.Fatalf("not in %v: %s", d, what)
	}
}

// accepts says whether something accepts connections at the address.
func accepts(network, address string) bool {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	c, err := new(net.Dialer).DialContext(ctx, network, address)
	return err == nil && c.Close() == nil
}

func within(d time.Duration, condition func() bool) bool {
	deadline := time.Now().Add(d)
	for !condition() {
		if time.Now().After(deadline) {
			return false
		}
		time.Sleep(10 * time.Millisecond)
	}
	return true
}

func writeTemp(t testing.TB, content string) string {
	t.Helper()
	f, err := os.CreateTemp(t.TempDir(), "")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteString(content); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	return f.Name()
}
