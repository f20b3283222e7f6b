package integration

import (
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/nasfleet/nasfleet/messages"
	"github.com/nasfleet/nasfleet/tests/lab"
)

// TestThePassphraseIsNowhere takes, verifies and restores an encrypted backup with every process
// watched all the while, and then greps everything that was written on either side.
func TestThePassphraseIsNowhere(t *testing.T) {
	l := lab.Libvirtd(t)
	w := newWorld(t, l.URI) // its log is at debug level
	disks := twoDisks(t, w)
	l.DefineVM(t, lab.VMOptions{Name: "web", Disks: disks})
	f := features{compress: true, encrypt: true, verify: true}

	stop := watchProcesses(t, passphrase)
	ev := w.take(t, append(f.flags(w, t), "--bandwidth", "40", "--log-level", "debug", "--vm", "web")...)
	w.mustJob(t, "verify", "--backup", ev.BackupID, "--passphrase-file", w.passphraseFile(t, passphrase), "--log-level", "debug")
	w.restoreAndCompare(t, f, ev, originals(disks))
	w.mustFail(t, messages.CodeWrongPassphrase, "verify", "--backup", ev.BackupID, "--passphrase-file", w.passphraseFile(t, "xx"+passphrase))
	// The command line in which QEMU fails to open something must not hold it either.
	w.mustFail(t, messages.CodeMountFailed, append(w.onRepo("ext4", filepath.Join(w.dir, "none"), "loop", "--vm", "web", "--attempts", "1"), f.flags(w, t)...)...)
	if looks := stop(); looks < 100 {
		t.Errorf("the processes were looked at %d times only", looks)
	}

	if strings.Contains(w.log.String(), passphrase) {
		t.Error("the worker's log holds the passphrase")
	}
	sealed := false
	for _, stream := range []string{messages.JobStream(zone), messages.EventStream, "KV_" + messages.HostBucket, "KV_" + messages.CatalogBucket} {
		for _, data := range w.streamContents(t, stream) {
			if bytes.Contains(data, []byte(passphrase)) {
				t.Errorf("stream %s holds the passphrase", stream)
			}
			sealed = sealed || bytes.Contains(data, []byte(messages.SealedPrefix))
		}
	}
	if !sealed {
		t.Error("no stream holds a sealed passphrase: this test looked in the wrong place")
	}
	// Everything of the world and of libvirt: state, journal, streams on disk, repository, logs.
	for _, dir := range []string{w.dir, l.Dir} {
		grepTree(t, dir, passphrase)
	}
}

// streamContents returns every message of a stream, headers and data.
func (w *world) streamContents(t *testing.T, stream string) [][]byte {
	t.Helper()
	all, err := rawStream(t, w.url, stream)
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// watchProcesses looks at argv and environ of every process, again and again, until the returned
// function is called; it returns how often it looked. The test's own processes (publisher reads the
// passphrase from a file) are looked at as well.
func watchProcesses(t *testing.T, secret string) (stop func() int) {
	t.Helper()
	quit, done := make(chan struct{}), make(chan int)
	go func() {
		looks, found := 0, map[string]bool{}
		for {
			select {
			case <-quit:
				done <- looks
				return
			default:
			}
			looks++
			pids, _ := filepath.Glob("/proc/[0-9]*")
			for _, dir := range pids {
				for _, file := range []string{"cmdline", "environ"} {
					data, _ := os.ReadFile(filepath.Join(dir, file)) // the process may be gone
					if bytes.Contains(data, []byte(secret)) && !found[dir] {
						found[dir] = true
						name, _ := os.ReadFile(filepath.Join(dir, "comm"))
						t.Errorf("%s of process %s (%s) holds the passphrase", file, filepath.Base(dir), bytes.TrimSpace(name))
					}
				}
			}
		}
	}()
	return func() int { close(quit); return <-done }
}

// grepTree fails the test for each file below dir that holds the text.
func grepTree(t *testing.T, dir, text string) {
	t.Helper()
	files := 0
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		files++
		out, gerr := lab.Try(t, "grep", "-c", "-a", "-F", "-e", text, "--", path)
		if n, _ := strconv.Atoi(strings.TrimSpace(out)); n > 0 {
			t.Errorf("%s holds the passphrase", path)
		} else if gerr != nil && n != 0 {
			return fmt.Errorf("grep %s: %w", path, gerr)
		}
		return nil
	})
	if err != nil {
		t.Error(err)
	}
	if files < 3 {
		t.Errorf("%s has %d files only: this test looked in the wrong place", dir, files)
	}
}

// TestSeal seals by hand and uses the result in a command written by hand.
func TestSeal(t *testing.T) {
	w := newWorld(t, "none")
	image := dataImage(t, w, "disk.img", 16)
	out, errs, code := w.pipe([]byte(passphrase+"\n"), "seal", "--zone", zone, "--host", host)
	sealed := strings.TrimSpace(out)
	if code != 0 || !strings.HasPrefix(sealed, messages.SealedPrefix) {
		t.Fatalf("seal: exit code %d\n%s%s", code, out, errs)
	}
	job := newJobID()
	ev := w.publishRaw(t, job, fmt.Appendf(nil, `{"version":1,"type":"TakeBackup","job_id":%q,"issued_at":"2026-01-02T03:04:05Z",
		"images":[%q],"repository":{"type":"dir","address":%q},
		"details":{"encryption":"true","encryption_passphrase":%q}}`, job, image, w.nas, sealed))
	if ev.Kind != messages.KindSucceeded {
		t.Fatalf("the command by hand: %s", asJSON(ev))
	}
	lab.Run(t, "cryptsetup", "open", "--test-passphrase", "--key-file", w.keyFile(t), filepath.Join(w.nas, "disk", job, "disk0.luks"))
	host, err := w.connect(t).Host(t.Context(), zone, host)
	if err != nil || host.SealKey == "" {
		t.Errorf("the host announces %+v, %v", host, err)
	}
}
