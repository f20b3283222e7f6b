package chain

import (
	"fmt"

	"github.com/nasfleet/nasfleet/tests/lab"
)

func (r *run) disk() string { return []string{"vda", "vdb"}[r.rnd.IntN(2)] }

// place chooses a disk and a range of it, in sectors of 512 bytes.
func (r *run) place(most int64) (disk string, offset, length int64) {
	disk = r.disk()
	sectors := r.disks[disk].size / 512
	length = 1 + r.rnd.Int64N(min(most/512, sectors))
	return disk, 512 * r.rnd.Int64N(sectors-length+1), 512 * length
}

// write writes here and there, little more often than much.
func (r *run) write() {
	r.t.Helper()
	for range 1 + r.rnd.IntN(4) {
		r.writeUpTo([]int64{4 << 10, 200 << 10, 2 * lab.MiB}[r.rnd.IntN(3)])
	}
}

func (r *run) writeUpTo(most int64) {
	r.t.Helper()
	disk, offset, length := r.place(most)
	pattern := byte(r.rnd.IntN(256)) // zeroes as well
	r.vm.Write(r.t, disk, offset, length, pattern)
	r.disks[disk].fill(offset, length, pattern)
}

func (r *run) discard() {
	r.t.Helper()
	disk, offset, length := r.place(3 * lab.MiB)
	r.vm.Discard(r.t, disk, offset, length)
	r.disks[disk].fill(offset, length, 0)
}

// resize gives a disk another size, and one time in two the one back that it had in the backup that the next
// would continue.
func (r *run) resize() {
	r.t.Helper()
	disk := r.disk()
	r.resizeTo(disk, r.anySize(disk))
	if tip := r.find(r.tip); tip != nil && r.rnd.IntN(2) == 0 {
		if size := tip.disks[disk].size; size%clusterSize == 0 {
			r.resizeTo(disk, size)
		}
	}
}

// anySize is larger than a disk by any number of sectors, or smaller and whole clusters.
func (r *run) anySize(disk string) int64 {
	was := r.disks[disk].size
	if was > 20*lab.MiB || was > 12*lab.MiB && r.rnd.IntN(2) == 0 {
		return (was - 1 - r.rnd.Int64N(4*lab.MiB)) / clusterSize * clusterSize
	}
	return was + 512*(1+r.rnd.Int64N(4*lab.MiB/512))
}

func (r *run) resizeTo(disk string, size int64) {
	r.t.Helper()
	r.libvirt.Virsh(r.t, "blockresize", vmName, disk, fmt.Sprint(size, "B"))
	r.disks[disk] = r.disks[disk].resize(size)
}

// restart pulls the plug.
func (r *run) restart() {
	r.t.Helper()
	r.stop()
	r.vm.Start(r.t)
}

// stop leaves QEMU the time that it needs to end: it stores its bitmaps then.
func (r *run) stop() {
	r.t.Helper()
	lab.EventuallyIn(r.t, patience, "the VM is off", func() bool {
		_, _ = r.libvirt.TryVirsh(r.t, "destroy", "--graceful", vmName) // it fails where QEMU takes its time
		return r.vm.State(r.t) == "shut off"
	})
}
