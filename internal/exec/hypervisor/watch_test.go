package hypervisor

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"

	"github.com/nasfleet/nasfleet/messages"
	"github.com/nasfleet/nasfleet/tests/lab"
)

const someUUID = "6a1ff1ea-5b2c-4c7b-8d8f-0c5a4f1f7d11"

func TestWatchListens(t *testing.T) {
	for name, c := range map[string]struct {
		words  string
		reason string
		frozen bool
	}{
		"done":                {words: "frozen\ndone\n", frozen: true},
		"never frozen":        {words: "done\n"},
		"killed before":       {words: "", reason: "gone"},
		"killed while frozen": {words: "frozen\n", reason: "gone", frozen: true},
		"cut off":             {words: "frozen\ndo", reason: "gone", frozen: true},
		"told to":             {words: "thaw\n", reason: "could not"},
		"told to, frozen":     {words: "frozen\nthaw\n", reason: "could not", frozen: true},
	} {
		t.Run(name, func(t *testing.T) {
			w := &watch{log: zerolog.Nop()}
			reason, frozen := w.listen(t.Context(), strings.NewReader(c.words))
			if !strings.Contains(reason, c.reason) || c.reason == "" && reason != "" || frozen != c.frozen {
				t.Errorf("reason %q, frozen %v", reason, frozen)
			}
		})
	}
	t.Run("told to end", func(t *testing.T) {
		in, words := io.Pipe()
		defer func() { _ = words.Close() }()
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if reason, _ := (&watch{log: zerolog.Nop()}).listen(ctx, in); !strings.Contains(reason, "told to end") {
			t.Errorf("reason %q", reason)
		}
	})
}

func TestNote(t *testing.T) {
	dir := t.TempDir()
	n, err := takeNote(t.Context(), dir, someUUID)
	if err != nil || n.left {
		t.Fatalf("%+v, %v", n, err)
	}
	if _, err := tryNote(notePath(dir, someUUID)); !errors.Is(err, unix.EWOULDBLOCK) {
		t.Errorf("a note was taken twice: %v", err)
	}
	if other, err := takeNote(t.Context(), dir, "another"); err != nil {
		t.Errorf("another guest's note: %v", err)
	} else {
		other.close()
	}
	n.close() // as when its watchdog is killed
	n, err = takeNote(t.Context(), dir, someUUID)
	if err != nil || !n.left {
		t.Fatalf("a note that was left: %+v, %v", n, err)
	}
	// One that ends in order lets the next one in.
	taken := make(chan *note)
	go func() {
		next, err := takeNote(t.Context(), dir, someUUID)
		if err != nil {
			t.Error(err)
		}
		taken <- next
	}()
	if err := n.remove(); err != nil {
		t.Error(err)
	}
	n.close()
	next := <-taken
	defer next.close()
	if _, err := os.Stat(next.file.Name()); err != nil {
		t.Errorf("the next watchdog's note is not there: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	if _, err := takeNote(ctx, dir, someUUID); err == nil || !strings.Contains(err.Error(), "another watchdog") {
		t.Errorf("the error is %v", err)
	}
}

// TestWatchdogNotReady: without a watchdog nothing is frozen.
func TestWatchdogNotReady(t *testing.T) {
	h := &Hypervisor{uri: "qemu:///system", log: zerolog.Nop()}
	dir := t.TempDir()
	for program, want := range map[string]string{
		"/bin/false": "it has ended", "/bin/echo": "qemu:///system " + someUUID + " " + dir, "/no/such/program": "no such file",
	} {
		g, err := h.startWatchdog(t.Context(), Watchdog{Program: program, RunDir: dir}, someUUID, zerolog.Nop())
		if g != nil || err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, not %s", program, err, want)
		}
	}
	// One that says nothing is not waited for when the job ends.
	ctx, cancel := context.WithTimeoutCause(t.Context(), 50*time.Millisecond, errGiveUp)
	defer cancel()
	started := time.Now()
	if _, err := h.startWatchdog(ctx, Watchdog{Program: "/bin/sh", Args: []string{"-c", "read word"}, RunDir: dir}, someUUID, zerolog.Nop()); err == nil {
		t.Error("a watchdog that says nothing is ready")
	}
	if took := time.Since(started); took > readyTimeout/2 {
		t.Errorf("that took %v", took)
	}
	h.watchdogs.Wait()
}

// TestThawLeft: notes of VMs that are off, gone or not frozen go; that of a guest whose agent does
// not answer stays, and is told.
func TestThawLeft(t *testing.T) {
	l := lab.Libvirtd(t)
	h := connect(t, l.URI)
	_, off := guest(t, l, h, "off")
	vm, mute := guest(t, l, h, "mute", `<channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>`)
	l.Virsh(t, "destroy", "off")
	dir := t.TempDir()
	for _, uuid := range []string{off.UUID, mute.UUID, someUUID} {
		if err := os.WriteFile(notePath(dir, uuid), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	busy, err := tryNote(notePath(dir, "busy"))
	if err != nil {
		t.Fatal(err)
	}
	defer busy.close()
	// Before a job only its own VM is looked at.
	if err := h.ThawVM(t.Context(), dir, "off"); err != nil {
		t.Error(err)
	}
	if left, _ := filepath.Glob(notePath(dir, "*")); len(left) != 3 {
		t.Errorf("left are %v", left)
	}
	err = h.ThawLeft(t.Context(), dir)
	wantCode(t, err, messages.CodeFreezeFailed)
	left, err := filepath.Glob(filepath.Join(dir, "*"))
	if err != nil || len(left) != 2 || left[0] != notePath(dir, mute.UUID) && left[1] != notePath(dir, mute.UUID) {
		t.Errorf("left are %v, %v", left, err)
	}
	vm.Running(t)
}
