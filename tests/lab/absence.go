package lab

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/moby/sys/mountinfo"
)

// settle is how long a thing that is just going may still be seen.
const settle = 30 * time.Second

// process is one that runs: its id, and its arguments separated by spaces.
type process struct {
	pid  int
	args string
}

func processes(t testing.TB) []process {
	t.Helper()
	entries, err := os.ReadDir("/proc")
	if err != nil {
		t.Fatal(err)
	}
	var found []process
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		args, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		if err != nil {
			continue // it has just ended
		}
		found = append(found, process{pid, string(bytes.ReplaceAll(args, []byte{0}, []byte{' '}))})
	}
	return found
}

// pidsOf lists the processes in the PID namespace of one of them.
func pidsOf(t testing.TB, member int) []int {
	t.Helper()
	ns, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/pid", member))
	if err != nil {
		t.Fatalf("process %d has ended: %v", member, err)
	}
	var found []int
	for _, p := range processes(t) {
		if theirs, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/pid", p.pid)); err == nil && theirs == ns {
			found = append(found, p.pid)
		}
	}
	return found
}

// ProcessesWithArg lists the processes whose arguments hold the text, without the test itself.
func ProcessesWithArg(t testing.TB, text string) []int {
	t.Helper()
	var pids []int
	for _, p := range processes(t) {
		if strings.Contains(p.args, text) {
			pids = append(pids, p.pid)
		}
	}
	return pids
}

// NoProcessWithArg fails the test when a process's arguments hold the text.
func NoProcessWithArg(t testing.TB, text string) {
	t.Helper()
	var left []int
	if !within(settle, func() bool { left = ProcessesWithArg(t, text); return len(left) == 0 }) {
		t.Errorf("processes with %q in their arguments: %v", text, left)
	}
}

// NoMountsBelow fails the test when something is mounted on the folder or below it.
func NoMountsBelow(t testing.TB, dir string) {
	t.Helper()
	var left []string
	if !within(settle, func() bool { left = mountsBelow(t, dir); return len(left) == 0 }) {
		t.Errorf("mounts below %s: %v", dir, left)
	}
}

func mountsBelow(t testing.TB, dir string) []string {
	t.Helper()
	mounts, err := mountinfo.GetMounts(mountinfo.PrefixFilter(dir))
	if err != nil {
		t.Fatal(err)
	}
	var points []string
	for _, m := range mounts {
		points = append(points, m.Mountpoint)
	}
	return points
}

// NoLoopDevicesBelow fails the test when a loop device holds a file below the folder.
func NoLoopDevicesBelow(t testing.TB, dir string) {
	t.Helper()
	var left []string
	if !within(settle, func() bool { left = loopDevicesBelow(t, dir); return len(left) == 0 }) {
		t.Errorf("loop devices with files below %s: %v", dir, left)
	}
}

func loopDevicesBelow(t testing.TB, dir string) []string {
	t.Helper()
	files, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	if err != nil {
		t.Fatal(err)
	}
	var left []string
	for _, f := range files {
		if backing, err := os.ReadFile(f); err == nil && strings.HasPrefix(string(backing), dir+"/") {
			left = append(left, strings.TrimSpace(string(backing)))
		}
	}
	return left
}

// NoSocketsBelow fails the test when a unix socket below the folder is still bound.
func NoSocketsBelow(t testing.TB, dir string) {
	t.Helper()
	var left []string
	if !within(settle, func() bool { left = socketsBelow(t, dir); return len(left) == 0 }) {
		t.Errorf("unix sockets below %s: %v", dir, left)
	}
}

func socketsBelow(t testing.TB, dir string) []string {
	t.Helper()
	table, err := os.ReadFile("/proc/net/unix")
	if err != nil {
		t.Fatal(err)
	}
	var left []string
	for line := range strings.Lines(string(table)) {
		if i := strings.Index(line, dir+"/"); i >= 0 {
			left = append(left, strings.TrimSpace(line[i:]))
		}
	}
	return left
}

// NoFilesMatching fails the test when a file or folder below dir has a name that matches the
// pattern (as in path/filepath).
func NoFilesMatching(t testing.TB, dir, pattern string) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, e os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		matched, err := filepath.Match(pattern, e.Name())
		if matched {
			t.Errorf("left behind: %s", path)
		}
		return err
	})
	if err != nil && !os.IsNotExist(err) {
		t.Error(err)
	}
}

// NoLeftovers fails the test when the folder is still in use: a mount, a process that names it, a
// loop device, a unix socket.
func NoLeftovers(t testing.TB, dir string) {
	t.Helper()
	NoMountsBelow(t, dir)
	NoProcessWithArg(t, dir)
	NoLoopDevicesBelow(t, dir)
	NoSocketsBelow(t, dir)
}
