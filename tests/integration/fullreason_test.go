package integration

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/nasfleet/nasfleet/messages"
	"github.com/nasfleet/nasfleet/tests/lab"
)

// chained is a VM with one qcow2 disk that is backed up in a chain.
type chained struct {
	w    *world
	l    *lab.Libvirt
	vm   *lab.VM
	disk lab.Disk
	step byte
}

func newChained(t *testing.T, w *world, l *lab.Libvirt, name string) *chained {
	t.Helper()
	disk := lab.Disk{Path: filepath.Join(w.dir, name+".qcow2"), Format: "qcow2"}
	lab.Run(t, "qemu-img", "convert", "-f", "raw", "-O", "qcow2", dataImage(t, w, name+".raw", 64), disk.Path)
	return &chained{w: w, l: l, vm: l.DefineVM(t, lab.VMOptions{Name: name, Disks: []lab.Disk{disk}}), disk: disk}
}

// change lets the guest write and discard somewhere else each time.
func (c *chained) change(t *testing.T) {
	t.Helper()
	c.step++
	c.vm.Write(t, "vda", int64(c.step%50)*lab.MiB+int64(c.step)*512, 128<<10, c.step)
	c.vm.Discard(t, "vda", int64((7*c.step)%60)*lab.MiB, 256<<10)
}

func (c *chained) take(t *testing.T, args ...string) messages.Event {
	t.Helper()
	return c.w.take(t, append([]string{"--vm", c.vm.Name}, args...)...)
}

// auto takes a backup in mode auto after a change, and restores it.
func (c *chained) auto(t *testing.T, args ...string) messages.Event {
	t.Helper()
	c.change(t)
	ev := c.take(t, append([]string{"--mode", "auto"}, args...)...)
	c.restores(t, ev)
	onlyCheckpoint(t, c.l, c.vm.Name, ev.BackupID)
	return ev
}

// restores compares a backup with the disk as it is.
func (c *chained) restores(t *testing.T, ev messages.Event) {
	t.Helper()
	f := features{encrypt: ev.Backup.Encrypted}
	c.w.restoreAndCompare(t, f, ev, map[string]original{"vda": {c.disk.Format, c.disk.Path}})
}

func (c *chained) restart(t *testing.T) {
	t.Helper()
	c.vm.Destroy(t)
	c.vm.Start(t)
}

// bitmaps lists those in the qcow2 of a stopped VM.
func (c *chained) bitmaps(t *testing.T) string {
	t.Helper()
	return lab.Run(t, "qemu-img", "info", "-U", "--output", "json", c.disk.Path)
}

// TestAutoSaysWhyItIsFull brings about each reason for which mode auto takes a full backup; the next
// one is an incremental again.
func TestAutoSaysWhyItIsFull(t *testing.T) {
	t.Parallel()
	l := lab.Libvirtd(t)
	w := newWorld(t, l.URI)
	c := newChained(t, w, l, "vm")
	first := c.auto(t)
	isFull(t, first, messages.FullNoChain)
	last := c.auto(t)
	isIncremental(t, last, first.BackupID)

	dir := func(id string) string { return filepath.Join(w.nas, "vm", id) }
	name := func() string { return "nasfleet-" + last.BackupID }
	for _, s := range []struct {
		reason messages.FullReason
		cause  func()
		args   []string
	}{
		{reason: messages.FullEvery, args: []string{"--full-every", "2"}},
		{reason: messages.FullBitmapBroken, cause: func() { // the host has crashed
			for _, pid := range lab.ProcessesWithArg(t, c.disk.Path) {
				_ = syscall.Kill(pid, syscall.SIGKILL)
			}
			lab.Eventually(t, "the VM is off", func() bool { return c.vm.State(t) == "shut off" })
			c.vm.Start(t)
		}},
		{reason: messages.FullBitmapBroken, cause: func() {
			c.vm.Destroy(t)
			lab.Run(t, "qemu-img", "bitmap", "--remove", c.disk.Path, name())
			c.vm.Start(t)
		}},
		{reason: messages.FullCheckpointLost, cause: func() {
			c.vm.Destroy(t)
			lab.Run(t, "qemu-img", "bitmap", "--remove", c.disk.Path, name())
			l.Virsh(t, "checkpoint-delete", "vm", name(), "--metadata")
			c.vm.Start(t)
		}},
		{reason: messages.FullDiskResized, cause: func() { l.Virsh(t, "blockresize", "vm", "vda", "80M") }},
		{reason: messages.FullDiskAdded, cause: func() {
			l.Virsh(t, "attach-disk", "vm", lab.Image(t, filepath.Join(w.dir, "added.qcow2"), "qcow2", 8), "vdb", "--subdriver", "qcow2")
		}},
		{reason: messages.FullDiskReplaced, cause: func() {
			c.vm.Destroy(t)
			moved := filepath.Join(w.dir, "moved.qcow2")
			if err := os.Rename(c.disk.Path, moved); err != nil {
				t.Fatal(err)
			}
			xml := strings.ReplaceAll(l.Virsh(t, "dumpxml", "vm"), c.disk.Path, moved)
			c.disk.Path = moved
			l.DefineXML(t, xml)
			c.vm.Start(t)
		}},
		{reason: messages.FullParentBroken, cause: func() { // the parent is gone
			if err := os.RemoveAll(dir(last.BackupID)); err != nil {
				t.Fatal(err)
			}
		}},
		{reason: messages.FullParentBroken, cause: func() { // a file of the parent is cut
			if err := os.Truncate(filepath.Join(dir(last.BackupID), "vda.qcow2"), 1000); err != nil {
				t.Fatal(err)
			}
		}},
		{reason: messages.FullParentBroken, cause: func() { // the digests of the parent are damaged
			flip(t, filepath.Join(dir(last.BackupID), "vda.digests"), 50)
		}},
		{reason: messages.FullParentBroken, cause: func() { // the parent's parent is gone
			if err := os.RemoveAll(dir(last.Backup.Parent)); err != nil {
				t.Fatal(err)
			}
		}},
		{reason: messages.FullParentBroken, cause: func() { // the parent failed a verification
			file := filepath.Join(dir(last.BackupID), "vda.qcow2")
			flip(t, file, dataOffset(t, file, false, "").file)
			w.mustFail(t, messages.CodeVerifyFailed, "verify", "--backup", last.BackupID)
		}},
		{reason: messages.FullEncryptionChanged, args: []string{"--encrypt", "--passphrase-file", w.passphraseFile(t, passphrase)}},
	} {
		t.Run(string(s.reason), func(t *testing.T) {
			if s.cause != nil {
				s.cause()
			}
			full := c.auto(t, s.args...)
			isFull(t, full, s.reason)
			next := append([]string{}, s.args...)
			if s.reason == messages.FullEvery {
				next = nil
			}
			last = c.auto(t, next...)
			isIncremental(t, last, full.BackupID)
		})
	}
	w.nothingLeft(t)
}

// TestAutoOfWhatHasNoBitmaps is mode auto, and mode incremental, where there never can be a chain.
func TestAutoOfWhatHasNoBitmaps(t *testing.T) {
	t.Parallel()
	l := lab.Libvirtd(t)
	w := newWorld(t, l.URI)
	image := dataImage(t, w, "x.raw", 32)
	l.DefineVM(t, lab.VMOptions{Name: "raw", Disks: []lab.Disk{{Path: dataImage(t, w, "y.raw", 32), Format: "raw"}}})
	for reason, target := range map[messages.FullReason][]string{
		messages.FullImages:    {"--image", image},
		messages.FullNoBitmaps: {"--vm", "raw"},
	} {
		t.Run(string(reason), func(t *testing.T) {
			isFull(t, w.take(t, append(target, "--mode", "auto")...), reason)
			ev := w.mustFail(t, messages.CodeModeUnavailable, w.takeArgs(append(target, "--mode", "incremental")...)...)
			if !strings.Contains(ev.Error.Message, string(reason)) {
				t.Errorf("the message does not say why: %s", ev.Error.Message)
			}
			if ev := w.take(t, append(target, "--mode", "full")...); ev.Backup.FullReason != "" {
				t.Errorf("mode full gives a reason: %s", asJSON(ev))
			}
		})
	}
	w.nothingLeft(t)
}

// TestIncrementalOrNothing is mode incremental where there is no chain to continue: nothing is
// written, and no checkpoint is left.
func TestIncrementalOrNothing(t *testing.T) {
	t.Parallel()
	l := lab.Libvirtd(t)
	w := newWorld(t, l.URI)
	c := newChained(t, w, l, "vm")
	fail := func(reason messages.FullReason) {
		t.Helper()
		ev := w.mustFail(t, messages.CodeChainBroken, w.takeArgs("--vm", "vm", "--mode", "incremental")...)
		if !strings.Contains(ev.Error.Message, string(reason)) {
			t.Errorf("the message does not say why: %s", ev.Error.Message)
		}
	}
	fail(messages.FullNoChain)
	c.take(t) // without a mode: no chain begins
	if got := checkpoints(t, l, "vm"); len(got) != 0 {
		t.Errorf("a backup without a mode has left checkpoints: %v", got)
	}
	fail(messages.FullNoChain)
	full := c.take(t, "--mode", "full")
	c.change(t)
	isIncremental(t, c.take(t, "--mode", "incremental"), full.BackupID)
	// Another folder of the repository has no part in it.
	ev := w.mustFail(t, messages.CodeChainBroken, w.takeArgs("--vm", "vm", "--mode", "incremental", "--backup-path", "b")...)
	if !strings.Contains(ev.Error.Message, string(messages.FullNoChain)) {
		t.Errorf("the message does not say why: %s", ev.Error.Message)
	}
	if err := os.RemoveAll(filepath.Join(w.nas, "vm", full.BackupID)); err != nil {
		t.Fatal(err)
	}
	fail(messages.FullParentBroken)
	if entries, _ := os.ReadDir(filepath.Join(w.nas, "vm")); len(entries) != 2 {
		t.Errorf("the repository has %v", entries)
	}
	w.nothingLeft(t)
}

// TestALostCheckpointIsAdopted takes libvirt's knowledge of the checkpoint away, whose bitmaps stay in
// the disk: the chain goes on, and each link restores.
func TestALostCheckpointIsAdopted(t *testing.T) {
	t.Parallel()
	l := lab.Libvirtd(t)
	w := newWorld(t, l.URI)
	c := newChained(t, w, l, "vm")
	last := c.auto(t)
	for name, forget := range map[string]func(){
		"metadata": func() { l.Virsh(t, "checkpoint-delete", "vm", "nasfleet-"+last.BackupID, "--metadata") },
		"defined again": func() {
			c.vm.Destroy(t)
			xml := l.Virsh(t, "dumpxml", "vm")
			l.Virsh(t, "undefine", "vm", "--checkpoints-metadata")
			l.DefineXML(t, xml)
			c.vm.Start(t)
		},
		"restarted": func() { c.restart(t) },
	} {
		t.Run(name, func(t *testing.T) {
			c.change(t)
			forget()
			ev := c.auto(t)
			isIncremental(t, ev, last.BackupID)
			last = ev
		})
	}
	c.vm.Destroy(t)
	if info := c.bitmaps(t); strings.Count(info, `"nasfleet-`) != 1 {
		t.Errorf("the disk has other bitmaps than one: %s", info)
	}
}
