package integration

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/nasfleet/nasfleet/messages"
	"github.com/nasfleet/nasfleet/tests/lab"
)

// moments keeps what a VM's disks held at the moment of each backup.
type moments struct {
	w     *world
	disks []lab.Disk
	// at are copies of the disks, by backup and disk.
	at map[string]map[string]original
}

func newMoments(w *world, disks []lab.Disk) *moments {
	return &moments{w: w, disks: disks, at: map[string]map[string]original{}}
}

// keep notes what a backup must restore to. The guest is still: nothing was written since.
func (m *moments) keep(t *testing.T, ev messages.Event) {
	t.Helper()
	m.at[ev.BackupID] = map[string]original{}
	for name, o := range originals(m.disks) {
		kept := filepath.Join(m.w.dir, fmt.Sprintf("kept-%s-%s.raw", ev.BackupID, name))
		lab.Run(t, "qemu-img", "convert", "-U", "-f", o.format, "-O", "raw", o.path, kept)
		m.at[ev.BackupID][name] = original{"raw", kept}
	}
}

// check restores a backup, whole and then one disk alone, and compares.
func (m *moments) check(t *testing.T, f features, ev messages.Event) {
	t.Helper()
	m.w.restoreAndCompare(t, f, ev, m.at[ev.BackupID])
}

// isIncremental fails the test unless a backup is an incremental of another, and no larger.
func isIncremental(t *testing.T, ev messages.Event, parent string) {
	t.Helper()
	if ev.Backup.Mode != messages.ModeIncremental || ev.Backup.Parent != parent || ev.Backup.FullReason != "" {
		t.Errorf("not an incremental of %s: %s", parent, asJSON(ev))
	}
}

// isFull fails the test unless mode auto took a full backup for the reason.
func isFull(t *testing.T, ev messages.Event, reason messages.FullReason) {
	t.Helper()
	if ev.Backup.Mode != messages.ModeFull || ev.Backup.Parent != "" || ev.Backup.FullReason != reason {
		t.Fatalf("want a full because of %s: %s", reason, asJSON(ev))
	}
	if !strings.Contains(strings.Join(ev.Notes, "\n"), string(reason)) {
		t.Errorf("no note says why: %q", ev.Notes)
	}
}

// checkpoints lists what libvirt has of a VM.
func checkpoints(t *testing.T, l *lab.Libvirt, vm string) []string {
	t.Helper()
	return strings.Fields(l.Virsh(t, "checkpoint-list", vm, "--name"))
}

// onlyCheckpoint fails the test unless the VM has the checkpoint of the backup and no other.
func onlyCheckpoint(t *testing.T, l *lab.Libvirt, vm, backup string) {
	t.Helper()
	if got := checkpoints(t, l, vm); len(got) != 1 || got[0] != "nasfleet-"+backup {
		t.Errorf("the checkpoints are %v, not that of %s alone", got, backup)
	}
}

// TestChains takes a full and incrementals of a running VM with a qcow2 and a raw disk, and
// restores each moment, in each of the ways that a chain can be stored in.
func TestChains(t *testing.T) {
	t.Parallel()
	l := lab.Libvirtd(t)
	w := newWorld(t, l.URI)
	disks := twoDisks(t, w)
	vm := l.DefineVM(t, lab.VMOptions{Name: "up", Disks: disks})
	for i, f := range []features{{}, {compress: true}, {encrypt: true, verify: true}, {compress: true, encrypt: true, bandwidth: true, verify: true}} {
		t.Run(f.String(), func(t *testing.T) {
			m, others := newMoments(w, disks), len(checkpoints(t, l, "up"))
			take := func(mode string) messages.Event {
				t.Helper()
				ev := w.take(t, append(f.flags(w, t), "--vm", "up", "--mode", mode, "--backup-path", fmt.Sprint("chain", i))...)
				m.keep(t, ev)
				// One for this chain, and those of the other chains as they were.
				if now := checkpoints(t, l, "up"); len(now) != others+1 || !slices.Contains(now, "nasfleet-"+ev.BackupID) {
					t.Errorf("after backup %s the checkpoints are %v", ev.BackupID, now)
				}
				return ev
			}
			chain := []messages.Event{take("full")}
			for step := range int64(4) {
				// New data, data over data across clusters, data that is cleared, and all over the disk.
				vm.Write(t, "vda", (20+step)*lab.MiB+4096, lab.MiB, byte(0x10+step))
				vm.Write(t, "vda", 512*step, 512, byte(0x20+step))
				vm.Discard(t, "vda", (2+8*step)*lab.MiB, 3*lab.MiB+64<<10)
				vm.Discard(t, "vda", (100+step)*lab.MiB+64<<10, 64<<10)
				vm.Write(t, "vda", 200*lab.MiB-512, 512, byte(0x30+step))
				vm.Write(t, "vdb", step*lab.MiB, lab.MiB, byte(0x40+step))
				ev := take([]string{"incremental", "auto"}[step%2])
				isIncremental(t, ev, chain[len(chain)-1].BackupID)
				if d := ev.Backup.Disks[0]; d.DataBytes > 8*lab.MiB {
					t.Errorf("%d bytes of vda were copied", d.DataBytes)
				}
				chain = append(chain, ev)
			}
			for _, ev := range chain {
				m.check(t, f, ev)
				args := []string{"verify", "--backup", ev.BackupID}
				if f.encrypt {
					args = append(args, "--passphrase-file", w.passphraseFile(t, passphrase))
				}
				w.mustJob(t, args...)
			}
			w.nothingLeft(t)
		})
	}
	vm.Running(t)
}

// TestAnIncrementalIsAsLargeAsTheChange changes 64 MiB of a disk of 16 GiB, and restores one of two
// disks alone.
func TestAnIncrementalIsAsLargeAsTheChange(t *testing.T) {
	t.Parallel()
	l := lab.Libvirtd(t)
	w := newWorld(t, l.URI)
	disks := []lab.Disk{
		{Path: lab.Image(t, filepath.Join(w.dir, "a.qcow2"), "qcow2", 16<<10), Format: "qcow2"},
		{Path: lab.Image(t, filepath.Join(w.dir, "b.qcow2"), "qcow2", 64), Format: "qcow2"},
	}
	vm := l.DefineVM(t, lab.VMOptions{Name: "big", Disks: disks})
	vm.Write(t, "vda", lab.MiB, 100*lab.MiB, 7)
	vm.Write(t, "vdb", lab.MiB, lab.MiB, 7)
	full := w.take(t, "--vm", "big", "--mode", "auto")
	vm.Write(t, "vda", 8<<30, 64*lab.MiB, 9)
	vm.Write(t, "vdb", 2*lab.MiB, lab.MiB, 9)
	for _, f := range []features{{}, {compress: true}} {
		vm.Write(t, "vda", 8<<30, 64*lab.MiB, 11)
		ev := w.take(t, append(f.flags(w, t), "--vm", "big", "--mode", "incremental")...)
		isIncremental(t, ev, full.BackupID)
		if d := ev.Backup.Disks[0]; d.DataBytes != 64*lab.MiB || d.StoredBytes > 66*lab.MiB {
			t.Errorf("%d bytes were copied, %d are stored", d.DataBytes, d.StoredBytes)
		}
		to := filepath.Join(w.dir, "one")
		restored := w.mustJob(t, "restore", "--backup", ev.BackupID, "--disk", "vdb", "--to", to)
		if len(restored.Restored) != 1 {
			t.Errorf("restored %v", restored.Restored)
		}
		compare(t, "qcow2", disks[1].Path, "qcow2", filepath.Join(to, "vdb.qcow2"))
		lab.Run(t, "rm", "-r", to)
		full = ev
	}
	w.nothingLeft(t)
}
