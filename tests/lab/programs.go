package lab

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// Program is one of the programs under test.
type Program struct {
	// Name is that of its folder below cmd/.
	Name string
	// Race makes it share the race detector, where the tests run under it. What is started many
	// times does better without: each start would pay for it.
	Race bool
}

// Main is the TestMain of tests of whole programs: it builds them into a folder, names that in bin,
// runs the tests and returns their exit code. The package must be two folders below the module's.
func Main(m *testing.M, bin *string, programs ...Program) int {
	dir, err := os.MkdirTemp("", "nfbin")
	if err != nil {
		fmt.Fprintln(os.Stderr, "a folder for the programs:", err)
		return 1
	}
	defer func() { _ = os.RemoveAll(dir) }()
	*bin = dir
	for _, p := range programs {
		args := []string{"build", "-tags", "libvirt_dlopen", "-o", dir}
		if p.Race && raceEnabled {
			args = append(args, "-race")
		}
		build := exec.Command("go", append(args, filepath.Join("..", "..", "cmd", p.Name))...) //nolint:noctx // no test runs yet
		build.Stdout, build.Stderr = os.Stderr, os.Stderr
		if err := build.Run(); err != nil {
			fmt.Fprintf(os.Stderr, "build %s: %v\n", p.Name, err)
			return 1
		}
	}
	return m.Run()
}

// Output keeps what a process prints while it runs. It may be read and written from any goroutine.
type Output struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

// Write implements io.Writer.
func (o *Output) Write(b []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.Write(b)
}

// String returns all that was printed.
func (o *Output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.buf.String()
}

// Tail returns the last lines.
func (o *Output) Tail(lines int) string {
	all := strings.Split(strings.TrimSpace(o.String()), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}

// About returns the lines that hold the text.
func (o *Output) About(text string) string {
	var found []string
	for line := range strings.Lines(o.String()) {
		if strings.Contains(line, text) {
			found = append(found, line)
		}
	}
	return strings.Join(found, "")
}
