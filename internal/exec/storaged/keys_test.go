package storaged

import (
	"path/filepath"
	"slices"
	"testing"

	"github.com/nasfleet/nasfleet/messages"
)

// opens asks cryptsetup, so that it is not QEMU alone that says so.
func opens(t *testing.T, path, passphrase string) bool {
	t.Helper()
	_, err := try(t, passphrase, "cryptsetup", "open", "--test-passphrase", "--key-file", "-", path)
	return err == nil
}

// TestKeys takes a backup with a recovery passphrase through a change of its passphrases: at each
// step exactly those open it that should, and its content stays.
func TestKeys(t *testing.T) {
	d, _ := startDaemon(t, quick)
	path := filepath.Join(t.TempDir(), "vda.luks")
	want := content(1 << 20)
	source := writeFile(t, filepath.Join(t.TempDir(), "source"), want)
	mustDo(t, d.CreateBackup(t.Context(), "vda", NewBackup{Path: path, Size: 1 << 20, Passphrase: []byte("old"), Recovery: []byte("recovery")}))
	copyIn(t, d, source, "vda")
	mustDo(t, d.CloseExport(t.Context(), "vda"))

	who := []string{"old", "recovery", "new", "new recovery"}
	check := func(step string, expected ...string) {
		t.Helper()
		requireEmpty(t, d)
		for _, p := range who {
			ours, err := d.Opens(t.Context(), Backup{path, []byte(p)})
			if err != nil {
				t.Fatal(err)
			}
			if should := slices.Contains(expected, p); ours != should || opens(t, path, p) != should {
				t.Errorf("%s: %q opens it for us: %t, should be %t", step, p, ours, should)
			}
		}
		if n, err := d.Slots(t.Context(), Backup{path, []byte("x")}); err != nil || n != len(expected) {
			t.Errorf("%s: %d slots, %v", step, n, err)
		}
		mustDo(t, d.OpenBackup(t.Context(), "vda", Backup{path, []byte(expected[len(expected)-1])}))
		requireSame(t, copyOut(t, d, "vda"), want)
		mustDo(t, d.CloseExport(t.Context(), "vda"))
	}
	check("as taken", "old", "recovery")
	slots, err := d.AddKeys(t.Context(), Backup{path, []byte("recovery")}, []byte("new"), []byte("new recovery"))
	if err != nil || !slices.Equal(slots, []int{2, 3}) {
		t.Fatalf("slots %v, %v", slots, err)
	}
	check("added", "old", "recovery", "new", "new recovery")
	mustDo(t, d.KeepKeys(t.Context(), Backup{path, []byte("new")}, slots))
	check("kept", "new", "new recovery")
	mustDo(t, d.KeepKeys(t.Context(), Backup{path, []byte("new")}, slots)) // again is no harm
	mustDo(t, d.KeepKeys(t.Context(), Backup{path, []byte("new")}, slots[:1]))
	check("kept one", "new")
}

// The last way into a container is never taken, and what cannot be done says so.
func TestKeysRefused(t *testing.T) {
	d, _ := startDaemon(t, quick)
	path := filepath.Join(t.TempDir(), "vda.luks")
	mustDo(t, d.CreateBackup(t.Context(), "vda", NewBackup{Path: path, Size: 1 << 20, Passphrase: []byte("p0")}))
	mustDo(t, d.CloseExport(t.Context(), "vda"))
	plain := writeFile(t, filepath.Join(t.TempDir(), "plain"), content(1<<20))
	b := Backup{path, []byte("p0")}
	for name, tt := range map[string]struct {
		do   func() error
		code messages.Code
	}{
		"wrong passphrase":  {func() error { _, err := d.AddKeys(t.Context(), Backup{path, []byte("x")}, []byte("p1")); return err }, messages.CodeWrongPassphrase},
		"empty passphrase":  {func() error { _, err := d.AddKeys(t.Context(), b, []byte{}); return err }, messages.CodePassphraseMissing},
		"no container":      {func() error { _, err := d.AddKeys(t.Context(), Backup{plain, []byte("x")}, []byte("p1")); return err }, messages.CodeBackupCorrupt},
		"no file":           {func() error { return d.KeepKeys(t.Context(), Backup{path + "x", []byte("x")}, nil) }, messages.CodeBackupNotFound},
		"no slots to count": {func() error { _, err := d.Slots(t.Context(), Backup{path + "x", []byte("x")}); return err }, messages.CodeBackupNotFound},
		"keep nothing":      {func() error { return d.KeepKeys(t.Context(), b, nil) }, messages.CodeBackupCorrupt},
		"keep an empty":     {func() error { return d.KeepKeys(t.Context(), b, []int{0, 5}) }, messages.CodeBackupCorrupt},
	} {
		if err := tt.do(); messages.CodeOf(err) != tt.code {
			t.Errorf("%s: %v", name, err)
		}
		requireEmpty(t, d)
	}
	if !opens(t, path, "p0") {
		t.Fatal("the container is lost")
	}
}

// Attempts that were cut short leave their slots behind. When there are too many the next one takes out
// what it is about to add, and nothing else.
func TestKeysOfManyAttempts(t *testing.T) {
	d, _ := startDaemon(t, quick)
	path := filepath.Join(t.TempDir(), "vda.luks")
	mustDo(t, d.CreateBackup(t.Context(), "vda", NewBackup{Path: path, Size: 1 << 20, Passphrase: []byte("old"), Recovery: []byte("other")}))
	mustDo(t, d.CloseExport(t.Context(), "vda"))
	var slots []int
	for try := range 5 {
		var err error
		slots, err = d.AddKeys(t.Context(), Backup{path, []byte("old")}, []byte("new"), []byte("new recovery"))
		if err != nil || len(slots) != 2 {
			t.Fatalf("attempt %d: %v, %v", try+1, slots, err)
		}
		for _, p := range []string{"old", "other", "new", "new recovery"} {
			if !opens(t, path, p) {
				t.Errorf("attempt %d: %q does not open it", try+1, p)
			}
		}
	}
	mustDo(t, d.KeepKeys(t.Context(), Backup{path, []byte("new")}, slots))
	if n, err := d.Slots(t.Context(), Backup{path, []byte("x")}); err != nil || n != 2 || opens(t, path, "old") || !opens(t, path, "new recovery") {
		t.Errorf("%d slots in the end, %v", n, err)
	}
	others := [][]byte{[]byte("p2"), []byte("p3"), []byte("p4"), []byte("p5"), []byte("p6"), []byte("p7")}
	_, err := d.AddKeys(t.Context(), Backup{path, []byte("new")}, others...)
	mustDo(t, err)
	_, err = d.AddKeys(t.Context(), Backup{path, []byte("new")}, []byte("new"), []byte("p8"))
	if messages.CodeOf(err) != messages.CodeTargetFull {
		t.Error(err)
	}
	if n, err := d.Slots(t.Context(), Backup{path, []byte("x")}); err != nil || n != luksSlotCount || !opens(t, path, "p2") {
		t.Errorf("%d slots where none was to be taken, %v", n, err)
	}
	requireEmpty(t, d)
}

func TestFreeSlot(t *testing.T) {
	for want, active := range map[int][]int{0: nil, 1: {0, 2}, 2: {1, 0}, 7: {0, 1, 2, 3, 4, 5, 6}, -1: {7, 6, 5, 4, 3, 2, 1, 0}} {
		if got := freeSlot(active); got != want {
			t.Errorf("%v: %d, want %d", active, got, want)
		}
	}
}
