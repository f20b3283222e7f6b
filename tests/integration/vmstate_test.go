package integration

import (
	"path/filepath"
	"testing"

	"github.com/nasfleet/nasfleet/messages"
	"github.com/nasfleet/nasfleet/tests/lab"
)

// TestTheVMChangesInMidBackup ends, pauses and saves a VM while it is backed up.
func TestTheVMChangesInMidBackup(t *testing.T) {
	t.Parallel()
	l := lab.Libvirtd(t)
	w := newWorld(t, l.URI)
	disk := noise(t, filepath.Join(w.dir, "vm.raw"), 128, 64)
	vm := l.DefineVM(t, lab.VMOptions{Name: "web", Disks: []lab.Disk{{Path: disk, Format: "raw"}}})
	begin := func(t *testing.T, limit string) string {
		t.Helper()
		if vm.State(t) == "shut off" {
			vm.Start(t)
		}
		vm.Running(t)
		job := newJobID()
		w.publisher(t, w.takeArgs("--vm", "web", "--bandwidth", limit, "--job-id", job)...)
		w.awaitCopied(t, job, messages.PhaseCopying)
		return job
	}
	succeeds := func(t *testing.T, job string, attempt int, source string) {
		t.Helper()
		ev := w.awaitFinal(t, job)
		if ev.Kind != messages.KindSucceeded || ev.Attempt != attempt {
			t.Fatalf("want success in attempt %d: %s", attempt, asJSON(ev))
		}
		if m := w.manifest(t, ev); m["source"] != source {
			t.Errorf("the source was %v, not %s", m["source"], source)
		}
		if vm.HasBackupJob(t) {
			t.Error("libvirt still runs a backup job")
		}
		w.nothingLeft(t)
		w.mustJob(t, "verify", "--backup", ev.BackupID)
	}
	t.Run("destroyed", func(t *testing.T) {
		job := begin(t, "4")
		vm.Destroy(t)
		w.awaitRetrying(t, job, messages.CodeVMStateChanged)
		succeeds(t, job, 2, "stopped")
	})
	t.Run("its QEMU dies", func(t *testing.T) {
		job := begin(t, "4")
		kill(t, lab.ProcessesWithArg(t, disk)...)
		w.awaitRetrying(t, job, messages.CodeVMStateChanged)
		succeeds(t, job, 2, "stopped")
	})
	t.Run("paused and resumed", func(t *testing.T) {
		job := begin(t, "4")
		vm.Pause(t)
		l.Virsh(t, "resume", "web")
		vm.Running(t)
		succeeds(t, job, 1, "running")
		vm.Running(t)
	})
	t.Run("paused", func(t *testing.T) {
		job := begin(t, "4")
		vm.Pause(t)
		succeeds(t, job, 1, "running")
		// It was somebody else's wish.
		if s := vm.State(t); s != "paused" {
			t.Errorf("the VM is %s", s)
		}
		l.Virsh(t, "resume", "web")
	})
	t.Run("saved", func(t *testing.T) {
		// libvirt runs one job at a time on a VM: a save, or a migration, waits for half a minute for the
		// backup to end, and is then refused.
		job := begin(t, "1")
		if out, err := l.TryVirsh(t, "managedsave", "web"); err == nil {
			t.Errorf("the VM was saved: %s", out)
		}
		succeeds(t, job, 1, "running")
		vm.Running(t)
	})
}
