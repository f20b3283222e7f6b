package secret

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

const dumpMark = "NASFLEET_TEST_CRASH"

// TestNoCoreDumps crashes a copy of this program, and one that it has started, where a core file
// could be written.
func TestNoCoreDumps(t *testing.T) {
	switch os.Getenv(dumpMark) {
	case "self":
		if err := NoCoreDumps(); err != nil {
			t.Fatal(err)
		}
		_ = syscall.Kill(os.Getpid(), syscall.SIGQUIT)
		select {}
	case "child":
		if err := NoCoreDumps(); err != nil {
			t.Fatal(err)
		}
		if err := NoCoreDumps(); err != nil { // again is harmless
			t.Fatal(err)
		}
		out, err := exec.Command("sh", "-c", "ulimit -c; cat /proc/self/limits").CombinedOutput()
		t.Logf("%s, %v", out, err)
		return
	}
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	run := func(mode string) (string, error) {
		cmd := exec.Command(self, "-test.run=TestNoCoreDumps$", "-test.v")
		cmd.Dir, cmd.Env = dir, append(os.Environ(), dumpMark+"="+mode, "GOTRACEBACK=crash")
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	if out, err := run("self"); err == nil {
		t.Errorf("it did not crash: %s", out)
	}
	if files, err := filepath.Glob(filepath.Join(dir, "*core*")); err != nil || len(files) > 0 {
		t.Errorf("dumped: %v, %v", files, err)
	}
	out, err := run("child")
	if err != nil || !strings.Contains(strings.Join(strings.Fields(out), " "), "Max core file size 1 1 bytes") {
		t.Errorf("what a child may dump: %v\n%s", err, out)
	}
}
