package lab_test

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/nasfleet/nasfleet/tests/lab"
)

func TestGuestWritesAndLeavesNothing(t *testing.T) {
	var dir, disk string
	t.Run("guest", func(t *testing.T) {
		l := lab.Libvirtd(t)
		dir = l.Dir
		disk = lab.Image(t, filepath.Join(l.Dir, "disk one.raw"), "raw", 8)
		vm := l.DefineVM(t, lab.VMOptions{Name: "guest", Disks: []lab.Disk{{Path: disk, Format: "raw"}}})
		vm.Running(t)
		if len(lab.ProcessesWithArg(t, disk)) != 1 {
			t.Error("no QEMU process has the disk in its arguments")
		}
		vm.Write(t, "vda", lab.MiB, 3*lab.MiB, 0x5a)
		vm.Discard(t, "vda", 2*lab.MiB, 2*lab.MiB)
		if err := vm.TryWrite(t, "vda", 9*lab.MiB, lab.MiB, 1); err == nil {
			t.Error("a write beyond the disk's end succeeded")
		}
		data, err := os.ReadFile(disk)
		if err != nil {
			t.Fatal(err)
		}
		want := append(make([]byte, lab.MiB), bytes.Repeat([]byte{0x5a}, lab.MiB)...)
		if !bytes.Equal(data[:2*lab.MiB], want) || !bytes.Equal(data[2*lab.MiB:], make([]byte, 6*lab.MiB)) {
			t.Error("the disk does not hold what the guest wrote")
		}
		l.Restart(t)
		vm.Running(t)
		vm.Destroy(t)
		lab.NoProcessWithArg(t, disk)
		vm.Start(t) // left running for the cleanup
	})
	lab.NoLeftovers(t, dir)
	if _, err := os.Stat(dir); !os.IsNotExist(err) {
		t.Errorf("%s is still there", dir)
	}
}

func TestLoopFS(t *testing.T) {
	var point string
	t.Run("mounted", func(t *testing.T) {
		point = lab.LoopFS(t, 16)
		if err := os.WriteFile(filepath.Join(point, "file"), make([]byte, 32*lab.MiB), 0o600); err == nil {
			t.Error("32 MiB fitted into 16 MiB")
		}
	})
	lab.NoLeftovers(t, filepath.Dir(point))
}

func TestLoopDevice(t *testing.T) {
	device := lab.LoopDevice(t, 4)
	info, err := os.Stat(device)
	if err != nil || info.Mode()&os.ModeDevice == 0 {
		t.Fatalf("%s is no device: %v", device, err)
	}
}

func TestFSImageHoldsTheFolder(t *testing.T) {
	folder := t.TempDir()
	if err := os.WriteFile(filepath.Join(folder, "hello"), []byte("content"), 0o600); err != nil {
		t.Fatal(err)
	}
	image := lab.FSImage(t, filepath.Join(lab.Dir(t), "fs.raw"), 16, folder)
	if got := lab.Run(t, "debugfs", "-R", "cat /hello", image); got != "content" {
		t.Errorf("the file in the image holds %q", got)
	}
}

func TestSshdServesSshfs(t *testing.T) {
	var export string
	t.Run("mounted", func(t *testing.T) {
		s := lab.Sshd(t)
		export = s.Export
		point := lab.Dir(t)
		lab.Run(t, "mount", "-t", "fuse.sshfs", "-o", s.Options(), s.Address(), point)
		if err := os.WriteFile(filepath.Join(point, "file"), []byte("over ssh"), 0o600); err != nil {
			t.Fatal(err)
		}
		if data, err := os.ReadFile(filepath.Join(export, "file")); err != nil || string(data) != "over ssh" {
			t.Errorf("the server's folder holds %q, %v", data, err)
		}
		s.Kill()
		if _, err := os.ReadFile(filepath.Join(point, "file")); err == nil {
			t.Error("the mount still answers after its server was killed")
		}
		lab.NoMountsBelow(t, point) // sshfs ends with its connection, and the mount with sshfs
	})
	lab.NoLeftovers(t, filepath.Dir(export))
}

// recorder is a testing.TB that notes failures instead of failing.
type recorder struct {
	testing.TB
	failures []string
}

func (r *recorder) Helper()                   {}
func (r *recorder) Errorf(f string, a ...any) { r.failures = append(r.failures, fmt.Sprintf(f, a...)) }

func TestAbsenceIsNotAssumed(t *testing.T) {
	point := lab.LoopFS(t, 16)
	r := &recorder{TB: t}
	lab.NoMountsBelow(r, filepath.Dir(point))
	lab.NoLoopDevicesBelow(r, filepath.Dir(point))
	lab.NoFilesMatching(r, filepath.Dir(point), "*.img")
	if len(r.failures) != 3 {
		t.Errorf("3 things are there, and these were seen: %q", r.failures)
	}
}

// TestGuestIsReal boots the guest that other tests rely on, and shows that its freeze, its agent's
// hanging and its records are what they say.
func TestGuestIsReal(t *testing.T) {
	l := lab.Libvirtd(t)
	disks := []lab.Disk{
		{Path: lab.GuestDisk(t, filepath.Join(l.Dir, "fs.qcow2"), 32)},
		{Path: lab.Image(t, filepath.Join(l.Dir, "a.raw"), "raw", 4), Format: "raw"},
		{Path: lab.Image(t, filepath.Join(l.Dir, "b.raw"), "raw", 4), Format: "raw"},
	}
	g := l.BootGuest(t, lab.GuestOptions{Name: "real", Disks: disks, Mounted: []string{"vda"}})

	g.WriteCounter(t, "vdb", "vdc")
	g.AwaitWrites(t, 20)
	felt := g.StopWriter(t)
	if a, b := lab.Counter(t, disks[1].Path), lab.Counter(t, disks[2].Path); a != felt.Written || b != felt.Written {
		t.Errorf("the disks hold %d and %d, and the guest wrote %d", a, b, felt.Written)
	}

	g.WriteRecords(t, "vda")
	g.AwaitWrites(t, 20)
	g.HoldFreeze(t)
	frozen := make(chan struct{})
	go func() { defer close(frozen); _, _ = l.TryVirsh(t, "domfsfreeze", "real") }()
	g.AwaitHeld(t)
	g.AwaitWrites(t, 20) // nothing is frozen yet
	g.ReleaseFreeze(t)
	<-frozen
	if !g.Frozen(t) {
		t.Error("the guest is not frozen")
	}
	before := g.Synced()
	g.HangAgent(t)
	l.Virsh(t, "guest-agent-timeout", "real", "--timeout", "5") // libvirt's default is to wait without end
	if _, err := l.TryVirsh(t, "domfsthaw", "real"); err == nil {
		t.Error("an agent that hangs has thawed")
	}
	if now := g.Synced(); now > before+1 {
		t.Errorf("the frozen guest has synced %d records more", now-before)
	}
	g.ResumeAgent(t)
	g.Thaw(t)
	g.AwaitWrites(t, 20)
	if felt := g.StopWriter(t); felt.Failed != 0 || felt.Longest == 0 {
		t.Errorf("the guest felt %+v", felt)
	}
	g.Unharmed(t)
	synced := g.Synced()
	g.Destroy(t)
	if n := lab.RecoverRecords(t, disks[0].Path, "qcow2", synced); n != synced {
		t.Errorf("%d records, and %d were synced", n, synced)
	}
	r := &recorder{TB: t}
	lab.CheckRecords(r, disks[0].Path, "qcow2", synced)
	if len(r.failures) == 0 {
		t.Error("a file system that was in use is clean without its journal")
	}
}
