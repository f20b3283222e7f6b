package integration

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/nasfleet/nasfleet/messages"
	"github.com/nasfleet/nasfleet/tests/lab"
)

// fillUp takes all the room of a file system with a file in it.
func fillUp(t *testing.T, path string) {
	t.Helper()
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	for size := lab.MiB; size >= 512; {
		switch _, err := f.Write(make([]byte, size)); {
		case errors.Is(err, syscall.ENOSPC):
			size /= 2
		case err != nil:
			t.Fatal(err)
		}
	}
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
}

// TestStateFolderFull fills the file system of the journal. A job that waits is not begun, and not lost; one
// that is at work comes to its end and tells it.
func TestStateFolderFull(t *testing.T) {
	t.Parallel()
	n := startNATS(t)
	w := &world{dir: lab.Dir(t), libvirt: "none", url: n.server.ClientURL(), nats: "nats://" + n.proxy.Addr(), state: lab.LoopFS(t, 16)}
	w.args = []string{"--ack-wait", "2s"}
	w.begin(t)
	image := noise(t, filepath.Join(w.dir, "disk.raw"), 64, 20)
	filler := filepath.Join(w.state, "filler")

	running, waiting := newJobID(), newJobID()
	copying := w.watchPhase(t, running, messages.PhaseCopying)
	w.publisher(t, w.takeArgs("--image", image, "--verify", "--bandwidth", "10", "--job-id", running)...)
	await(t, "copying", copying)
	fillUp(t, filler)
	if ev := w.awaitFinal(t, running); ev.Kind != messages.KindSucceeded {
		t.Fatalf("the job that was at work ended with %s", asJSON(ev))
	}
	w.checkWholeStory(t, running)

	fillUp(t, filler) // the record that has gone left room
	w.publisher(t, w.takeArgs("--image", image, "--verify", "--job-id", waiting)...)
	lab.Eventually(t, "the worker says that it cannot write its journal", func() bool {
		return strings.Contains(w.log.String(), "no space left on device")
	})
	if story := w.story(t, waiting); story != "" {
		t.Errorf("the job was begun although that could not be noted: %s", story)
	}
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	if ev := w.awaitFinal(t, waiting); ev.Kind != messages.KindSucceeded {
		t.Fatalf("the job that waited ended with %s", asJSON(ev))
	}
	w.checkWholeStory(t, waiting)
	w.acknowledged(t)
	w.nothingLeft(t)
	if list := w.ls(t); len(list) != 2 {
		t.Errorf("%d backups, want 2", len(list))
	}
}
