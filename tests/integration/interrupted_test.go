package integration

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/nasfleet/nasfleet/messages"
	"github.com/nasfleet/nasfleet/tests/lab"
)

// newNoisy is newChained with a disk that takes a while to copy at 8 MiB/s.
func newNoisy(t *testing.T, w *world, l *lab.Libvirt, name string) *chained {
	t.Helper()
	disk := lab.Disk{Path: filepath.Join(w.dir, name+".qcow2"), Format: "qcow2"}
	lab.Run(t, "qemu-img", "convert", "-f", "raw", "-O", "qcow2", noise(t, filepath.Join(w.dir, name+".raw"), 128, 60), disk.Path)
	return &chained{w: w, l: l, vm: l.DefineVM(t, lab.VMOptions{Name: name, Disks: []lab.Disk{disk}}), disk: disk}
}

// changeMuch makes the next incremental take a while as well.
func (c *chained) changeMuch(t *testing.T) {
	t.Helper()
	c.step++
	c.vm.Write(t, "vda", 20*lab.MiB, 40*lab.MiB, c.step)
	c.vm.Discard(t, "vda", 70*lab.MiB, lab.MiB)
}

// slowly publishes an incremental and waits until it is being copied.
func (c *chained) slowly(t *testing.T, args ...string) (job string) {
	t.Helper()
	job = newJobID()
	copying := c.w.watchPhase(t, job, messages.PhaseCopying)
	c.w.publisher(t, c.w.takeArgs(append([]string{"--vm", c.vm.Name, "--mode", "incremental", "--bandwidth", "4", "--job-id", job}, args...)...)...)
	await(t, "the copy of job "+job, copying)
	return job
}

// TestInterruptedIncrementals has attempts that fail, are cancelled, and are cut off with their
// worker or their VM, while the guest writes. What is taken next is an
// incremental of the last that was committed, restores to what the disk is, and leaves one checkpoint.
func TestInterruptedIncrementals(t *testing.T) {
	t.Parallel()
	l := lab.Libvirtd(t)
	w := newWorld(t, l.URI, "--ack-wait", "3s")
	c := newNoisy(t, w, l, "vm")
	last := c.take(t, "--mode", "full")
	next := func(t *testing.T) {
		t.Helper()
		c.vm.Write(t, "vda", 100*lab.MiB, lab.MiB, c.step)
		ev := c.take(t, "--mode", "incremental")
		isIncremental(t, ev, last.BackupID)
		c.restores(t, ev)
		onlyCheckpoint(t, l, "vm", ev.BackupID)
		last = ev
		w.nothingLeft(t)
	}
	t.Run("cancelled", func(t *testing.T) {
		c.changeMuch(t)
		job := c.slowly(t)
		c.change(t)
		w.publisher(t, "cancel", job)
		if ev := w.awaitFinal(t, job); ev.Kind != messages.KindCancelled {
			t.Errorf("not cancelled: %s", asJSON(ev))
		}
		onlyCheckpoint(t, l, "vm", last.BackupID)
		next(t)
	})
	t.Run("failed", func(t *testing.T) {
		c.changeMuch(t)
		job := c.slowly(t, "--attempts", "1")
		c.change(t)
		// Something takes the backup's name on the repository.
		taken := filepath.Join(w.nas, "vm", job)
		if err := os.WriteFile(taken, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if ev := w.awaitFinal(t, job); ev.Kind != messages.KindFailed {
			t.Errorf("not failed: %s", asJSON(ev))
		}
		if err := os.Remove(taken); err != nil {
			t.Fatal(err)
		}
		onlyCheckpoint(t, l, "vm", last.BackupID)
		next(t)
	})
	t.Run("the worker is killed", func(t *testing.T) {
		c.changeMuch(t)
		job := c.slowly(t)
		w.kill(t)
		if got := checkpoints(t, l, "vm"); len(got) != 2 {
			t.Errorf("the checkpoints are %v: was it killed before it began?", got)
		}
		c.change(t)
		w.start(t)
		ev := w.awaitFinal(t, job)
		isIncremental(t, ev, last.BackupID)
		if ev.Attempt != 2 {
			t.Errorf("attempt %d", ev.Attempt)
		}
		c.restores(t, ev)
		onlyCheckpoint(t, l, "vm", job)
		last = ev
		next(t)
	})
	t.Run("the worker is killed for good", func(t *testing.T) {
		c.changeMuch(t)
		job := c.slowly(t, "--attempts", "1")
		w.kill(t)
		w.start(t)
		if ev := w.awaitFinal(t, job); ev.Kind != messages.KindFailed {
			t.Errorf("not failed: %s", asJSON(ev))
		}
		onlyCheckpoint(t, l, "vm", last.BackupID)
		next(t)
	})
	t.Run("the VM is killed", func(t *testing.T) {
		c.changeMuch(t)
		job := c.slowly(t, "--attempts", "1")
		c.vm.Destroy(t)
		if ev := w.awaitFinal(t, job); ev.Kind != messages.KindFailed {
			t.Errorf("not failed: %s", asJSON(ev))
		}
		c.vm.Start(t)
		next(t)
	})
}
