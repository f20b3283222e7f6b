//go:build ceph

package integration

import (
	"fmt"
	"path/filepath"
	"testing"

	"github.com/nasfleet/nasfleet/messages"
	"github.com/nasfleet/nasfleet/tests/lab"
)

// TestCeph backs up a running VM with one disk in a file and one in an RBD image of a real
// cluster: the bytes, and the rate.
func TestCeph(t *testing.T) {
	ceph := lab.CephCluster(t)
	l := lab.Libvirtd(t)
	w := newWorld(t, l.URI)
	local := lab.Disk{Path: dataImage(t, w, "local.raw", 32), Format: "raw"}
	const limit, dataMiB = 8, 168 // MiB/s, MiB
	ceph.Import(t, noise(t, filepath.Join(w.dir, "rbd.raw"), 1024, dataMiB), "disk")
	vm := l.DefineVM(t, lab.VMOptions{Name: "rbd", Disks: []lab.Disk{local}, DevicesXML: ceph.DiskXML("disk", "vdb")})
	vm.Write(t, "vdb", 5*lab.MiB, lab.MiB, 0x33)
	vm.Discard(t, "vdb", 9*lab.MiB, 4*lab.MiB)
	now := filepath.Join(w.dir, "now.raw")
	ceph.Export(t, "disk", now)
	for _, f := range []features{{}, {compress: true, encrypt: true, verify: true}} {
		t.Run(f.String(), func(t *testing.T) {
			ev := w.take(t, append(f.flags(w, t), "--vm", "rbd")...)
			w.restoreAndCompare(t, f, ev, map[string]original{"vda": {"raw", local.Path}, "vdb": {"raw", now}})
			w.nothingLeft(t)
			vm.Running(t)
			if vm.HasBackupJob(t) {
				t.Error("libvirt still runs a backup job")
			}
		})
	}
	t.Run("rate", func(t *testing.T) {
		rate := w.measureRate(t, "--vm", "rbd", "--bandwidth", fmt.Sprint(limit))
		t.Logf("copied at %.2f MiB/s, the limit is %d", rate, limit)
		if rate < 0.95*limit || rate > 1.05*limit {
			t.Errorf("copied at %.2f MiB/s, the limit is %d", rate, limit)
		}
	})
	t.Run("stopped", func(t *testing.T) {
		vm.Destroy(t)
		w.mustFail(t, messages.CodeDiskUnsupported, w.takeArgs("--vm", "rbd")...)
		w.nothingLeft(t)
	})
}
