package integration

import (
	"bytes"
	"crypto/rand"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/nasfleet/nasfleet/messages"
	"github.com/nasfleet/nasfleet/tests/lab"
)

// TestThePassphraseIsNowhere takes, verifies, restores and consolidates encrypted backups with every process
// watched all the while, and then greps everything that was written on either side.
func TestThePassphraseIsNowhere(t *testing.T) {
	t.Parallel()
	l := lab.Libvirtd(t)
	w := newWorld(t, l.URI) // its log is at debug level
	disks := twoDisks(t, w)
	l.DefineVM(t, lab.VMOptions{Name: "web", Disks: disks})
	f := features{compress: true, encrypt: true, verify: true}

	stop := watchProcesses(t, passphrase)
	ev := w.take(t, append(f.flags(w, t), "--bandwidth", "40", "--log-level", "debug", "--vm", "web")...)
	w.mustJob(t, "verify", "--backup", ev.BackupID, "--passphrase-file", w.passphraseFile(t, passphrase), "--log-level", "debug")
	w.restoreAndCompare(t, f, ev, originals(disks))
	for _, mode := range []string{"full", "incremental"} {
		ev = w.take(t, append(f.flags(w, t), "--vm", "web", "--mode", mode)...)
	}
	w.mustJob(t, append([]string{"consolidate", "--backup", ev.BackupID, "--log-level", "debug"}, f.opening(w, t)...)...)
	w.mustFail(t, messages.CodeWrongPassphrase, "verify", "--backup", ev.BackupID, "--passphrase-file", w.passphraseFile(t, "xx"+passphrase))
	// The command line in which QEMU fails to open something must not hold it either.
	w.mustFail(t, messages.CodeMountFailed, append(w.onRepo("ext4", filepath.Join(w.dir, "none"), "loop", "--vm", "web", "--attempts", "1"), f.flags(w, t)...)...)
	if looks := stop(); looks < 100 {
		t.Errorf("the processes were looked at %d times only", looks)
	}

	w.nowhere(t, []string{passphrase}, w.dir, l.Dir)
}

// TestKeptPassphrasesAreNowhere does the same with passphrases that are kept for the zone: set, rotated,
// used by take, restore, verify and rekey, put back; and with a recovery passphrase.
func TestKeptPassphrasesAreNowhere(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "none")
	image := dataImage(t, w, "disk.img", 16)
	// None of the tests beside this one: they grep for theirs.
	secrets := []string{"first " + rand.Text(), "second " + rand.Text(), "recovery " + rand.Text(), "fourth " + rand.Text()}
	stop := watchProcesses(t, secrets...)
	w.rotate(t, secrets[0])
	w.publisher(t, "zone", "set", "--zone", zone, "nas.backup.encryption.enabled=true", "--log-level", "debug")
	w.keep(t, secrets[2], "recovery")
	ev := w.take(t, "--image", image, "--log-level", "debug")
	revision := w.rotate(t, secrets[1])
	w.publisher(t, w.takeArgs("--image", image, "--dry-run")...)
	to := filepath.Join(w.dir, "restored")
	w.mustJob(t, "restore", "--backup", ev.BackupID, "--to", to, "--log-level", "debug")
	w.mustJob(t, "rekey", "--backup", ev.BackupID, "--log-level", "debug")
	w.mustJob(t, "verify", "--backup", ev.BackupID)
	w.mustFail(t, messages.CodeWrongPassphrase, "verify", "--backup", ev.BackupID, "--passphrase-file", w.passphraseFile(t, secrets[0]))
	// Also what is printed, and what is kept and put back with another key.
	other := filepath.Join(w.dir, "other-keys")
	out, errs, code := w.pipe([]byte(secrets[3]), "zone", "passphrase", "rotate", "--zone", zone, "--keys", other, "--new-key")
	if code != 0 {
		t.Errorf("rotate with another key: %d\n%s%s", code, out, errs)
	}
	out += errs
	put, errs, code := w.pipe([]byte(secrets[1]), "zone", "passphrase", "restore", "--zone", zone, "--revision", revision, "--keys", other)
	if code != 0 {
		t.Errorf("restore of a passphrase: %d\n%s%s", code, put, errs)
	}
	out += put + errs + w.publisher(t, "zone", "passphrase", "ls", "--zone", zone) + w.publisher(t, "zone", "get", "--zone", zone, "--json") +
		w.publisher(t, "job", ev.JobID) + w.publisher(t, "show", ev.BackupID)
	if looks := stop(); looks < 20 {
		t.Errorf("the processes were looked at %d times only", looks)
	}
	for _, secret := range secrets {
		if strings.Contains(out, secret) {
			t.Errorf("a passphrase was printed:\n%s", out)
		}
	}
	kept := 0
	for _, data := range w.streamContents(t, "KV_"+messages.ZoneBucket) {
		if bytes.Contains(data, []byte(`"kept":"kept1.`)) {
			kept++
		}
	}
	if kept != len(secrets) {
		t.Errorf("the bucket keeps %d passphrases, want %d", kept, len(secrets))
	}
	w.nowhere(t, secrets, w.dir)
}

// nowhere looks for secrets in the worker's log, in every stream and bucket, and in every file below the
// folders: state, journal, streams on disk, repository, keys, logs.
func (w *world) nowhere(t *testing.T, secrets []string, dirs ...string) {
	t.Helper()
	sealed := false
	streams := []string{messages.JobStream(zone), messages.EventStream, "KV_" + messages.HostBucket, "KV_" + messages.CatalogBucket}
	if _, err := rawStream(t, w.url, "KV_"+messages.ZoneBucket); err == nil { // made with the first setting
		streams = append(streams, "KV_"+messages.ZoneBucket)
	}
	for _, secret := range secrets {
		if strings.Contains(w.log.String(), secret) {
			t.Error("the worker's log holds a passphrase")
		}
		for _, stream := range streams {
			for _, data := range w.streamContents(t, stream) {
				if bytes.Contains(data, []byte(secret)) {
					t.Errorf("stream %s holds a passphrase", stream)
				}
				sealed = sealed || bytes.Contains(data, []byte(messages.SealedPrefix))
			}
		}
		for _, dir := range dirs {
			grepTree(t, dir, secret)
		}
	}
	if !sealed {
		t.Error("no stream holds a sealed passphrase: this test looked in the wrong place")
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
func watchProcesses(t *testing.T, secrets ...string) (stop func() int) {
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
					holds := slices.ContainsFunc(secrets, func(s string) bool { return bytes.Contains(data, []byte(s)) })
					if holds && !found[dir] {
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
	t.Parallel()
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
