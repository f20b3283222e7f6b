package integration

import (
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/nasfleet/nasfleet/messages"
	"github.com/nasfleet/nasfleet/tests/lab"
)

// TestIncrementalsOfAStoppedVM goes on with a chain while the VM is off, as the bitmaps in its disks allow, and
// when it runs again.
func TestIncrementalsOfAStoppedVM(t *testing.T) {
	t.Parallel()
	l := lab.Libvirtd(t)
	w := newWorld(t, l.URI)
	disks := twoDisks(t, w)
	vm := l.DefineVM(t, lab.VMOptions{Name: "vm", Disks: disks})
	m := newMoments(w, disks)
	change := func(step byte) {
		t.Helper()
		vm.Write(t, "vda", int64(20+step)*lab.MiB+4096, lab.MiB, step)
		vm.Discard(t, "vda", int64(2+8*step)*lab.MiB, 3*lab.MiB+64<<10)
		vm.Write(t, "vdb", int64(step)*lab.MiB, lab.MiB, step)
	}
	var taken []messages.Event
	take := func(f features, mode string) messages.Event {
		t.Helper()
		ev := w.take(t, append(f.flags(w, t), "--vm", "vm", "--mode", mode)...)
		m.keep(t, ev)
		taken = append(taken, ev)
		return ev
	}
	// An incremental of the stopped VM continues what the last backup of the running one has begun, each anew.
	goOn := func(mode, parent string) messages.Event {
		t.Helper()
		ev := take(features{}, mode)
		isIncremental(t, ev, parent)
		if d := ev.Backup.Disks[0]; d.DataBytes > 10*lab.MiB {
			t.Errorf("%d bytes of vda were copied", d.DataBytes)
		}
		return ev
	}

	full := take(features{}, "full").BackupID
	change(1)
	vm.Destroy(t)
	goOn("incremental", full)
	goOn("auto", full)
	onlyCheckpoint(t, l, "vm", full)
	vm.Start(t)
	change(2)
	last := goOn("auto", full).BackupID
	onlyCheckpoint(t, l, "vm", last)
	change(3)
	vm.Destroy(t)
	goOn("incremental", last)
	// What QEMU's tools write meanwhile is recorded too.
	lab.Run(t, "qemu-io", "-f", "qcow2", "-c", "write -P 77 50M 1M", disks[0].Path)
	goOn("incremental", last)
	for _, ev := range taken {
		m.check(t, features{}, ev)
		w.mustJob(t, "verify", "--backup", ev.BackupID)
	}

	t.Run("another passphrase", func(t *testing.T) {
		isFull(t, take(features{encrypt: true}, "auto"), messages.FullEncryptionChanged)
	})
	t.Run("a bitmap that is gone", func(t *testing.T) {
		bitmaps := lab.Run(t, "qemu-img", "info", "--output", "json", disks[0].Path)
		name := "nasfleet-" + last
		if !strings.Contains(bitmaps, name) {
			t.Fatalf("no %s in %s", name, bitmaps)
		}
		kept := filepath.Join(w.dir, "kept.qcow2")
		lab.Run(t, "cp", disks[0].Path, kept)
		lab.Run(t, "qemu-img", "bitmap", "--remove", disks[0].Path, name)
		w.mustFail(t, messages.CodeChainBroken, w.takeArgs("--vm", "vm", "--mode", "incremental")...)
		isFull(t, take(features{}, "auto"), messages.FullBitmapBroken)
		lab.Run(t, "cp", kept, disks[0].Path)
		goOn("incremental", last)
	})
	t.Run("a crash", func(t *testing.T) {
		vm.Start(t)
		for _, pid := range lab.ProcessesWithArg(t, disks[0].Path) {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
		lab.Eventually(t, "the VM is off", func() bool { return vm.State(t) == "shut off" })
		w.mustFail(t, messages.CodeChainBroken, w.takeArgs("--vm", "vm", "--mode", "incremental")...)
		isFull(t, take(features{}, "auto"), messages.FullBitmapBroken)
		// The full of a stopped VM begins no chain: nothing records what comes after it.
		isFull(t, take(features{}, "auto"), messages.FullBitmapBroken)
		vm.Start(t)
		isFull(t, take(features{}, "auto"), messages.FullBitmapBroken)
		if got := checkpoints(t, l, "vm"); len(got) != 1 || slices.Contains(got, "nasfleet-"+last) {
			t.Errorf("the checkpoints are %v", got)
		}
	})
	w.nothingLeft(t)
}
