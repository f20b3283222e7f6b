package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// TestUnit has systemd look at the unit in operations.md: it knows each of its lines, and finds it as safe as the
// page says, with the sandbox and without.
func TestUnit(t *testing.T) {
	page, err := os.ReadFile("../../docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	unit := regexp.MustCompile("(?s)```ini\n(\\[Unit\\]\n.*?)```").FindSubmatch(page)
	said := regexp.MustCompile(`systemd-analyze security. from (\d+\.\d) to (\d+\.\d)`).FindSubmatch(page)
	if unit == nil || said == nil {
		t.Fatal("operations.md has no unit, or does not say how safe it is")
	}
	// Which programs there are is not what is looked at.
	with := strings.ReplaceAll(string(unit[1]), "/usr/local/bin/hostworker run", "/bin/true")
	before, sandbox, found := strings.Cut(with, "NoNewPrivileges=")
	_, after, installed := strings.Cut(sandbox, "\n\n")
	if !found || !installed {
		t.Fatal("the unit has no sandbox")
	}
	for want, text := range map[string]string{string(said[1]): before + after, string(said[2]): with} {
		path := filepath.Join(t.TempDir(), "hostworker.service")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		out, err := exec.Command("systemd-analyze", "security", "--offline=true", "--no-pager", path).CombinedOutput()
		if err != nil {
			t.Fatalf("systemd-analyze (Debian: systemd): %v\n%s", err, out)
		}
		if !strings.Contains(string(out), "Overall exposure level for hostworker.service: "+want+" ") {
			t.Errorf("the page says %s:\n%s", want, out)
		}
		for line := range strings.Lines(string(out)) {
			if strings.Contains(line, path+":") {
				t.Errorf("systemd does not understand: %s", line)
			}
		}
	}
}
