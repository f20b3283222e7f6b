package integration

import (
	"fmt"
	"path/filepath"
	"testing"

	"github.com/nasfleet/nasfleet/messages"
	"github.com/nasfleet/nasfleet/tests/lab"
)

// regrownSize is what the disks have in each backup, in bytes.
const regrownSize = 24 * lab.MiB

// regrownDisks makes a full disk of each kind that QEMU resizes in another way: of the usual clusters, of larger and of smaller
// ones than a bitmap's grains, and on a longer backing file that would shine through.
func regrownDisks(t *testing.T, w *world) []lab.Disk {
	t.Helper()
	var disks []lab.Disk
	for name, options := range map[string]string{"a": "", "b": "cluster_size=2M", "c": "cluster_size=4k"} {
		path := filepath.Join(w.dir, name+".qcow2")
		args := []string{"create", "-q", "-f", "qcow2"}
		if options != "" {
			args = append(args, "-o", options)
		}
		lab.Run(t, "qemu-img", append(args, path, fmt.Sprint(regrownSize))...)
		lab.Run(t, "qemu-io", "-f", "qcow2", "-c", fmt.Sprint("write -P 0x11 0 ", regrownSize), path)
		disks = append(disks, lab.Disk{Path: path, Target: "vd" + name})
	}
	backing := lab.Image(t, filepath.Join(w.dir, "backing.raw"), "raw", regrownSize/lab.MiB+8)
	lab.Run(t, "qemu-io", "-f", "raw", "-c", fmt.Sprint("write -P 0x22 0 ", regrownSize+8*lab.MiB), backing)
	overlay := filepath.Join(w.dir, "d.qcow2")
	lab.Run(t, "qemu-img", "create", "-q", "-f", "qcow2", "-b", backing, "-F", "raw", overlay, fmt.Sprint(regrownSize))
	return append(disks, lab.Disk{Path: overlay, Target: "vdd"})
}

// TestADiskThatWasSmallerInBetween makes disks smaller and then as large as they were between two backups, of which the
// size tells nothing and QEMU's dirty bitmap no more: each incremental restores to what the guest sees.
func TestADiskThatWasSmallerInBetween(t *testing.T) {
	t.Parallel()
	l := lab.Libvirtd(t)
	w := newWorld(t, l.URI)
	disks := regrownDisks(t, w)
	vm := l.DefineVM(t, lab.VMOptions{Name: "regrown", Disks: disks})
	all := func(f func(disk lab.Disk)) {
		for _, d := range disks {
			f(d)
		}
	}
	cut := func(to int64) {
		all(func(d lab.Disk) {
			for _, size := range []int64{to, regrownSize} {
				l.Virsh(t, "blockresize", "regrown", d.Target, fmt.Sprint(size, "B"))
			}
		})
	}
	write := func(off, n int64, pattern byte) { all(func(d lab.Disk) { vm.Write(t, d.Target, off, n, pattern) }) }
	parent := ""
	take := func(t *testing.T, f features, mode string) messages.Event {
		t.Helper()
		ev := w.take(t, append(f.flags(w, t), "--vm", "regrown", "--mode", mode)...)
		if parent != "" {
			isIncremental(t, ev, parent)
		}
		parent = ev.BackupID
		want := map[string]original{}
		all(func(d lab.Disk) { want[d.Target] = original{"qcow2", d.Path} })
		w.restoreAndCompare(t, f, ev, want)
		return ev
	}
	take(t, features{}, "full")
	for _, s := range []struct {
		name   string
		change func(t *testing.T)
	}{
		{"cut at a MiB", func(*testing.T) { cut(8 * lab.MiB) }},
		{"grown data is cut again", func(*testing.T) {
			write(16*lab.MiB, 4*lab.MiB, 0x33)
			cut(18 * lab.MiB)
		}},
		{"written again in part", func(*testing.T) {
			cut(6*lab.MiB + 128<<10)
			write(7*lab.MiB+512, 512, 0x44)
			write(20*lab.MiB-32<<10, 64<<10, 0x45)
		}},
		{"within a cluster", func(*testing.T) {
			write(4*lab.MiB, lab.MiB, 0x55) // its bits are partly lost where a cluster has 2 MiB
			cut(4*lab.MiB + 34<<10 + 512)
		}},
		{"within the last cluster", func(t *testing.T) {
			write(22*lab.MiB, 2*lab.MiB, 0x66)
			take(t, features{}, "incremental")
			cut(regrownSize - 512)
		}},
		{"cut twice", func(*testing.T) {
			cut(12 * lab.MiB)
			write(14*lab.MiB, 2*lab.MiB, 0x77)
			cut(14*lab.MiB + 512<<10)
		}},
		{"while the VM is off", func(*testing.T) {
			write(10*lab.MiB, lab.MiB, 0x88)
			vm.Destroy(t)
			all(func(d lab.Disk) {
				lab.Run(t, "qemu-img", "resize", "-q", "-f", "qcow2", "--shrink", d.Path, fmt.Sprint(2*lab.MiB+512))
				lab.Run(t, "qemu-img", "resize", "-q", "-f", "qcow2", d.Path, fmt.Sprint(regrownSize))
			})
			vm.Start(t)
		}},
	} {
		t.Run(s.name, func(t *testing.T) {
			f := features{compress: len(s.name)%2 == 0, verify: true}
			s.change(t)
			take(t, f, "incremental")
			// What was copied to be sure of it is not copied again.
			for _, d := range take(t, features{}, "incremental").Backup.Disks {
				if d.DataBytes > 0 {
					t.Errorf("%d bytes of the idle disk %s were copied", d.DataBytes, d.Name)
				}
			}
		})
	}
	w.nothingLeft(t)
}
