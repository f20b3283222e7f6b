package integration

import (
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/nasfleet/nasfleet/messages"
	"github.com/nasfleet/nasfleet/tests/lab"
)

// kill ends the worker as a crash would, and waits until the kernel has taken what was its own.
func (w *world) kill(t *testing.T) {
	t.Helper()
	pid := w.worker.Process.Pid
	if err := w.worker.Process.Signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	if err := <-w.ended; err == nil {
		t.Error("the worker ended in order although it was killed")
	}
	w.worker = nil
	// Its storage daemons die with it.
	lab.Eventually(t, "the worker's children are gone", func() bool {
		return len(lab.ProcessesWithArg(t, filepath.Join(w.dir, "run")+"/")) == 0 && len(children(t, pid)) == 0
	})
}

// TestKilledInMidCopy kills the worker while it backs up a running VM to a mounted repository that
// holds another backup already. The next worker ends what was left, does the job once, and touches
// nothing else.
func TestKilledInMidCopy(t *testing.T) {
	l := lab.Libvirtd(t)
	w := newWorld(t, l.URI, "--ack-wait", "3s")
	disks := []lab.Disk{{Path: noise(t, filepath.Join(w.dir, "vm.raw"), 256, 80), Format: "raw"}}
	vm := l.DefineVM(t, lab.VMOptions{Name: "web", Disks: disks})
	fs := lab.LoopImage(t, 512)
	onNAS := func(args ...string) []string {
		return w.onRepo("ext4", fs, "loop", append([]string{"--vm", "web"}, args...)...)
	}
	other := w.mustJob(t, onNAS()...)

	job := newJobID()
	w.publisher(t, onNAS("--bandwidth", "8", "--job-id", job)...)
	w.awaitPhase(t, job, messages.PhaseCopying)
	w.kill(t)
	vm.Running(t)
	vm.Write(t, "vda", 0, lab.MiB, 0x42) // the guest goes on without its backup's client

	w.start(t)
	final := w.awaitFinal(t, job)
	if final.Kind != messages.KindSucceeded || final.Attempt != 2 {
		t.Fatalf("want success in the second attempt, got %s", asJSON(final))
	}
	w.nothingLeft(t)
	vm.Running(t)
	if vm.HasBackupJob(t) {
		t.Error("libvirt still runs a backup job")
	}
	if list := w.ls(t); len(list) != 2 {
		t.Errorf("%d backups in the catalog, want 2", len(list))
	}
	for _, id := range []string{other.BackupID, final.BackupID} {
		w.mustJob(t, "verify", "--backup", id)
	}
	to := filepath.Join(w.dir, "restored")
	w.mustJob(t, "restore", "--backup", final.BackupID, "--to", to)
	compare(t, "raw", disks[0].Path, "qcow2", filepath.Join(to, "vda.qcow2"))
	if err := os.RemoveAll(to); err != nil {
		t.Error(err)
	}
}
