package integration

import (
	"crypto/rand"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/nasfleet/nasfleet/messages"
	"github.com/nasfleet/nasfleet/tests/lab"
)

// rotate keeps a passphrase for the zone and returns its revision.
func (w *world) rotate(t *testing.T, p string) string { return w.keep(t, p, "rotate") }

// keep keeps a passphrase: "rotate" or "recovery" says as what.
func (w *world) keep(t *testing.T, p, as string) string {
	t.Helper()
	out, errs, code := w.pipe([]byte(p+"\n"), "zone", "passphrase", as, "--zone", zone)
	if code != 0 {
		t.Fatalf("zone passphrase %s: exit code %d\n%s%s", as, code, out, errs)
	}
	return strings.TrimSpace(out)
}

// openers says which passphrases open a disk of a backup, asked of cryptsetup.
func openers(t *testing.T, path string, passphrases ...string) []string {
	t.Helper()
	var list []string
	for _, p := range passphrases {
		key := filepath.Join(t.TempDir(), "key")
		if err := os.WriteFile(key, []byte(p), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := lab.Try(t, "cryptsetup", "open", "--test-passphrase", "--key-file", key, path); err == nil {
			list = append(list, p)
		}
	}
	return list
}

// restores restores a backup of the image without being told its passphrase, and compares.
func (w *world) restores(t *testing.T, backup, image string) {
	t.Helper()
	to := filepath.Join(w.dir, "restored-"+newJobID())
	w.mustJob(t, "restore", "--backup", backup, "--to", to)
	compare(t, "raw", image, "qcow2", filepath.Join(to, "disk0.qcow2"))
	if err := os.RemoveAll(to); err != nil {
		t.Error(err)
	}
}

// TestBackupsFromBeforeThreeRotations takes a backup under each of four passphrases of the zone. All of them
// restore and verify by themselves, the manifest names the revision, and a job from before the rotations is run
// again. Then the oldest is rekeyed.
func TestBackupsFromBeforeThreeRotations(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "none")
	image := dataImage(t, w, "disk.img", 16)
	var secrets, revisions, backups []string
	later := filepath.Join(w.dir, "later")
	failed := newJobID()
	for i := range 4 {
		secrets = append(secrets, fmt.Sprint(i, " ", rand.Text()))
		revisions = append(revisions, w.rotate(t, secrets[i]))
		if i == 0 {
			w.publisher(t, "zone", "set", "--zone", zone, "nas.backup.encryption.enabled=true", "nas.backup.compression.enabled=true")
			w.mustFail(t, messages.CodeMountFailed, "take", "--zone", zone, "--host", host, "--repo", later, "--image", image, "--attempts", "1", "--job-id", failed)
		}
		ev := w.take(t, "--image", image)
		backups = append(backups, ev.BackupID)
		if got := w.manifest(t, ev)["encryption"].(map[string]any)["revision"]; got != revisions[i] || ev.Backup.Revision != revisions[i] || !ev.Backup.Compressed {
			t.Errorf("the manifest names %v and the catalog %s, want %s", got, ev.Backup.Revision, revisions[i])
		}
	}
	path := func(backup string) string { return filepath.Join(w.nas, "disk", backup, "disk0.luks") }
	for i, backup := range backups {
		w.restores(t, backup, image)
		w.mustJob(t, "verify", "--backup", backup)
		if got := openers(t, path(backup), secrets...); !slices.Equal(got, secrets[i:i+1]) {
			t.Errorf("backup %d opens with %d passphrases", i, len(got))
		}
	}
	// The file that is named still wins over what is kept.
	w.mustFail(t, messages.CodeWrongPassphrase, "verify", "--backup", backups[0], "--passphrase-file", w.passphraseFile(t, secrets[3]))

	if err := os.Mkdir(later, 0o755); err != nil {
		t.Fatal(err)
	}
	replayed := w.mustJob(t, "replay", "--job", failed)
	if replayed.Backup.Revision != revisions[0] {
		t.Errorf("the replay is encrypted with %s, want %s", replayed.Backup.Revision, revisions[0])
	}
	w.restores(t, replayed.BackupID, image)

	before := payload(t, path(backups[0]))
	ev := w.mustJob(t, "rekey", "--backup", backups[0])
	if len(ev.Notes) != 1 || !strings.Contains(ev.Notes[0], "no longer opens") || ev.Backup.Revision != revisions[3] {
		t.Errorf("rekeyed: %s", asJSON(ev))
	}
	if got := openers(t, path(backups[0]), secrets...); !slices.Equal(got, secrets[3:]) {
		t.Errorf("rekeyed, it opens with %q", got)
	}
	if !slices.Equal(before, payload(t, path(backups[0]))) {
		t.Error("rekey has changed data")
	}
	w.restores(t, backups[0], image)
	// The catalog made anew from the manifests finds it too.
	w.publisher(t, "ls", "--refresh", "--zone", zone, "--host", host, "--repo", w.nas)
	w.restores(t, backups[0], image)
	w.nothingLeft(t)
}

// payload is what a LUKS1 container holds behind its header, which says at byte 104 where it begins (sectors).
func payload(t *testing.T, path string) []byte {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return data[512*binary.BigEndian.Uint32(data[104:]):]
}

// slots counts the key slots in use of a LUKS1 container.
func slots(path string) int {
	data, err := os.ReadFile(path)
	if err != nil || len(data) < 592 {
		return -1
	}
	n := 0
	for i := range 8 {
		if binary.BigEndian.Uint32(data[208+48*i:]) == 0x00AC71F3 {
			n++
		}
	}
	return n
}

// wrappedKeys counts the wrapped keys in a manifest.
func wrappedKeys(folder string) int {
	data, err := os.ReadFile(filepath.Join(folder, "manifest.json"))
	var m struct {
		Digest struct {
			WrappedKeys []json.RawMessage `json:"wrapped_keys"`
		} `json:"digest"`
	}
	if err != nil || json.Unmarshal(data, &m) != nil {
		return -1
	}
	return len(m.Digest.WrappedKeys)
}

// TestRecoveryPassphrase: it opens what the zone takes from then on, by hand and by restore, without the
// publisher's keys.
func TestRecoveryPassphrase(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "none")
	image := dataImage(t, w, "disk.img", 16)
	first, recovery := "first "+rand.Text(), "recovery "+rand.Text()
	w.rotate(t, first)
	w.publisher(t, "zone", "set", "--zone", zone, "nas.backup.encryption.enabled=true")
	w.keep(t, recovery, "recovery")
	ev := w.take(t, "--image", image, "--verify")
	disk := filepath.Join(w.nas, "disk", ev.BackupID, "disk0.luks")
	if got := openers(t, disk, first, recovery); len(got) != 2 || slots(disk) != 2 {
		t.Errorf("it opens with %q, %d slots", got, slots(disk))
	}
	to, elsewhere := filepath.Join(w.dir, "restored"), filepath.Join(w.dir, "no-keys")
	if _, errs, code := w.try("restore", "--backup", ev.BackupID, "--to", to, "--keys", elsewhere); code != 2 || !strings.Contains(errs, "seal.key") {
		t.Errorf("without the publisher's key: %d, %s", code, errs)
	}
	w.mustJob(t, "restore", "--backup", ev.BackupID, "--to", to, "--keys", elsewhere, "--passphrase-file", w.passphraseFile(t, recovery))
	compare(t, "raw", image, "qcow2", filepath.Join(to, "disk0.qcow2"))

	// The key is lost: what is kept is kept anew, and the recovery passphrase puts the new one on the backup.
	again := "again " + rand.Text()
	for p, as := range map[string]string{again: "rotate", recovery: "recovery"} {
		if _, errs, code := w.pipe([]byte(p), "zone", "passphrase", as, "--zone", zone, "--keys", elsewhere, "--new-key"); code != 0 {
			t.Fatalf("%s: %d, %s", as, code, errs)
		}
	}
	w.mustJob(t, "rekey", "--backup", ev.BackupID, "--keys", elsewhere, "--passphrase-file", w.passphraseFile(t, recovery))
	if got := openers(t, disk, first, recovery, again); !slices.Equal(got, []string{recovery, again}) {
		t.Errorf("rekeyed, it opens with %q", got)
	}
	w.mustJob(t, "verify", "--backup", ev.BackupID, "--keys", elsewhere)
}

// TestRekeyKilled kills the worker at moments of a rekey that change who opens the backup. The old passphrase
// or the new one opens it then, and the next worker brings the job to its end.
func TestRekeyKilled(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "none", "--ack-wait", "3s")
	images := []string{dataImage(t, w, "disk.img", 16), dataImage(t, w, "other.img", 16)}
	for name, reached := range map[string]func(folder string) bool{
		"a key is added":         func(f string) bool { return slots(filepath.Join(f, "disk0.luks")) > 1 },
		"all keys are added":     func(f string) bool { return wrappedKeys(f) > 1 },
		"the first key is gone":  func(f string) bool { return wrappedKeys(f) > 1 && slots(filepath.Join(f, "disk0.luks")) == 1 },
		"the manifest has it so": func(f string) bool { return wrappedKeys(f) == 1 && slots(filepath.Join(f, "disk1.luks")) == 1 },
	} {
		t.Run(name, func(t *testing.T) {
			old, fresh := "old "+rand.Text(), "new "+rand.Text()
			w.rotate(t, old)
			ev := w.take(t, "--image", images[0], "--image", images[1], "--encrypt")
			w.rotate(t, fresh)
			folder := filepath.Join(w.nas, "disk", ev.BackupID)
			job := newJobID()
			began := false // the last moment looks like the state before
			w.publisher(t, "rekey", "--backup", ev.BackupID, "--job-id", job)
			lab.Eventually(t, name, func() bool {
				began = began || slots(filepath.Join(folder, "disk1.luks")) > 1
				return (began || name == "a key is added") && reached(folder)
			})
			w.kill(t)
			both := map[string]int{}
			for _, disk := range []string{"disk0.luks", "disk1.luks"} {
				for _, p := range openers(t, filepath.Join(folder, disk), old, fresh) {
					both[p]++
				}
			}
			if both[old] < 2 && both[fresh] < 2 {
				t.Errorf("neither passphrase opens both disks: %v", both)
			}
			w.start(t)
			if final := w.awaitFinal(t, job); final.Kind != messages.KindSucceeded {
				t.Fatal(asJSON(final))
			}
			for _, disk := range []string{"disk0.luks", "disk1.luks"} {
				if got := openers(t, filepath.Join(folder, disk), old, fresh); !slices.Equal(got, []string{fresh}) || slots(filepath.Join(folder, disk)) != 1 {
					t.Errorf("%s opens with %q, %d slots", disk, got, slots(filepath.Join(folder, disk)))
				}
			}
			w.mustJob(t, "verify", "--backup", ev.BackupID)
			w.restores(t, ev.BackupID, images[0])
			w.nothingLeft(t)
		})
	}
}
