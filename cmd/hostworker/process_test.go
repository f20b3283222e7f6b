package main

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	osexec "os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/nasfleet/nasfleet/tests/lab"
)

const (
	zone = "z1"
	host = "h1"
)

// node is a hostworker in a process of its own.
type node struct {
	dir   string
	cmd   *osexec.Cmd
	log   *lab.Output
	ended chan struct{}
	err   error // set before ended is closed
}

// startNode starts hostworker run with folders below dir. The test's end kills what still runs.
func startNode(t *testing.T, dir string, args ...string) *node {
	t.Helper()
	n := &node{dir: dir, log: &lab.Output{}, ended: make(chan struct{})}
	n.cmd = program(t, nil, append(nodeArgs(dir), args...)...)
	n.start(t)
	return n
}

func nodeArgs(dir string) []string {
	return []string{
		"--log-level", "debug", "run", "--zone", zone, "--host", host, "--libvirt", "none",
		"--run-dir", filepath.Join(dir, "run"), "--state-dir", filepath.Join(dir, "state"), "--scratch", filepath.Join(dir, "scratch"),
		"--scratch-reserve", "1", "--retry-delay", "100ms", "--ack-wait", "2s",
	}
}

func (n *node) start(t *testing.T) {
	t.Helper()
	n.cmd.Stderr = n.log
	if err := n.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() {
		defer close(n.ended)
		n.err = n.cmd.Wait()
	}()
	t.Cleanup(func() {
		_ = n.cmd.Process.Kill() // an error means that it has ended
		<-n.ended
		if t.Failed() {
			t.Logf("the worker's log:\n%s", n.log)
		}
	})
}

// waitLog waits until the worker has logged the text.
func (n *node) waitLog(t *testing.T, text string) {
	t.Helper()
	lab.Eventually(t, "the log says "+text, func() bool {
		select {
		case <-n.ended:
			t.Fatalf("the worker ended: %v\n%s", n.err, n.log)
		default:
		}
		return strings.Contains(n.log.String(), text)
	})
}

// find waits until the log has what the pattern's group matches.
func (n *node) find(t *testing.T, pattern string) string {
	t.Helper()
	re := regexp.MustCompile(pattern)
	var found []string
	lab.Eventually(t, "the log has "+pattern, func() bool {
		found = re.FindStringSubmatch(n.log.String())
		return found != nil
	})
	return found[1]
}

// natsURL returns the address of the worker's embedded server.
func (n *node) natsURL(t *testing.T) string {
	t.Helper()
	return n.find(t, `"url":"(nats://127\.0\.0\.1:\d+)"`)
}

// wait waits for the worker's end and returns its exit code; -1 means a signal.
func (n *node) wait(t *testing.T, atMost time.Duration) int {
	t.Helper()
	select {
	case <-n.ended:
	case <-time.After(atMost):
		t.Fatalf("the worker still runs after %v", atMost)
	}
	return n.cmd.ProcessState.ExitCode()
}

// stop ends the worker in order, which must leave nothing.
func (n *node) stop(t *testing.T, atMost time.Duration) {
	t.Helper()
	if err := n.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	if code := n.wait(t, atMost); code != 0 {
		t.Errorf("exit code %d\n%s", code, n.log)
	}
	if !strings.Contains(n.log.String(), `"message":"stopped"`) {
		t.Errorf("the worker does not say that it has stopped\n%s", n.log)
	}
	nothingLeft(t, n.dir)
}

// nothingLeft checks that no worker has left anything behind.
func nothingLeft(t *testing.T, dir string) {
	t.Helper()
	lab.NoLeftovers(t, dir)
	for _, name := range []string{"run", "scratch"} {
		entries, err := os.ReadDir(filepath.Join(dir, name))
		if err != nil && !os.IsNotExist(err) {
			t.Error(err)
		}
		for _, e := range entries {
			t.Errorf("left: %s/%s", name, e.Name())
		}
	}
}

// get returns the status and the body of a page.
func get(t *testing.T, url string) (int, string) {
	t.Helper()
	resp, err := http.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(body)
}

// freeAddress returns an address that nothing listens on.
func freeAddress(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	return l.Addr().String()
}

// mountNamespace names the mount namespace of a process.
func mountNamespace(t *testing.T, pid int) string {
	t.Helper()
	ns, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/mnt", pid))
	if err != nil {
		t.Fatal(err)
	}
	return ns
}

// mountsBelow says whether a process sees a mount below the folder.
func mountsBelow(t *testing.T, pid int, dir string) bool {
	t.Helper()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/mountinfo", pid))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		t.Fatal(err)
	}
	return strings.Contains(string(data), " "+dir+"/")
}
