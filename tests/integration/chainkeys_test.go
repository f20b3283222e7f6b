package integration

import (
	"crypto/rand"
	"path/filepath"
	"slices"
	"testing"

	"github.com/nasfleet/nasfleet/messages"
	"github.com/nasfleet/nasfleet/tests/lab"
)

// TestChainsAcrossRotations: one passphrase opens a chain, whatever is rotated. A new passphrase begins a new
// chain, a rekey of one backup changes all of its chain, and prune takes old chains from their ends.
func TestChainsAcrossRotations(t *testing.T) {
	t.Parallel()
	l := lab.Libvirtd(t)
	w := newWorld(t, l.URI)
	disks := []lab.Disk{{Path: noise(t, filepath.Join(w.dir, "vm.raw"), 16, 4), Format: "raw"}}
	qcow2 := filepath.Join(w.dir, "vm.qcow2")
	lab.Run(t, "qemu-img", "convert", "-f", "raw", "-O", "qcow2", disks[0].Path, qcow2)
	disks[0] = lab.Disk{Path: qcow2, Format: "qcow2"}
	vm := l.DefineVM(t, lab.VMOptions{Name: "up", Disks: disks})
	m := newMoments(w, disks)
	old, fresh := "old "+rand.Text(), "new "+rand.Text()
	w.rotate(t, old)
	w.publisher(t, "zone", "set", "--zone", zone, "nas.backup.encryption.enabled=true")
	var chain []messages.Event
	take := func(mode string) messages.Event {
		t.Helper()
		vm.Write(t, "vda", int64(len(m.at))*lab.MiB, 64<<10, byte(0x10+len(m.at)))
		ev := w.take(t, "--vm", "up", "--mode", mode)
		m.keep(t, ev)
		return ev
	}
	for _, mode := range []string{"full", "incremental", "incremental"} {
		chain = append(chain, take(mode))
	}
	isIncremental(t, chain[2], chain[1].BackupID)

	revision := w.rotate(t, fresh)
	w.mustFail(t, messages.CodeChainBroken, w.takeArgs("--vm", "up", "--mode", "incremental", "--attempts", "1")...)
	last := take("auto")
	isFull(t, last, messages.FullEncryptionChanged)
	for _, ev := range append(slices.Clone(chain), last) {
		m.check(t, features{}, ev) // without being told a passphrase
	}

	ev := w.mustJob(t, "rekey", "--backup", chain[1].BackupID)
	if len(ev.Notes) != 2 || ev.Backup.ID != chain[1].BackupID {
		t.Errorf("rekeyed: %s", asJSON(ev))
	}
	for _, b := range w.ls(t) {
		if b["passphrase_revision"] != revision {
			t.Errorf("backup %v has the passphrase %v", b["id"], b["passphrase_revision"])
		}
	}
	for _, ev := range chain {
		if got := openers(t, filepath.Join(w.nas, "up", ev.BackupID, "vda.luks"), old, fresh); !slices.Equal(got, []string{fresh}) {
			t.Errorf("backup %s opens with %q", ev.BackupID, got)
		}
		m.check(t, features{}, ev)
		w.mustJob(t, "verify", "--backup", ev.BackupID)
	}

	// What is needed is kept; the old chain goes from its end.
	w.publisher(t, "prune", "--keep-last", "2")
	if n := len(w.ls(t)); n != 4 {
		t.Errorf("%d backups after a prune that needs them all", n)
	}
	w.publisher(t, "prune", "--keep-last", "1")
	if left := w.ls(t); len(left) != 1 || left[0]["id"] != last.BackupID {
		t.Errorf("after the prune: %s", asJSON(left))
	}
	m.check(t, features{}, last)
	w.nothingLeft(t)
	vm.Running(t)
}
