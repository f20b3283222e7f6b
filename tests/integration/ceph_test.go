//go:build ceph

package integration

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"

	"github.com/nasfleet/nasfleet/messages"
	"github.com/nasfleet/nasfleet/tests/lab"
)

// TestCeph backs up a VM with one disk in a file and two in RBD images of a real cluster that wants a key, running
// and stopped, and restores over them: the bytes, the rate, and the key nowhere.
func TestCeph(t *testing.T) {
	ceph := lab.CephCluster(t)
	l := lab.Libvirtd(t)
	ceph.Trust(t, l)
	w := newWorld(t, l.URI, "--allow-rbd", ceph.Pool, "--ceph-conf", ceph.OwnConf(t), "--ceph-user", ceph.User)
	local := lab.Disk{Path: dataImage(t, w, "local.raw", 32), Format: "raw"}
	const limit, dataMiB = 8, 168 // MiB/s, MiB
	const odd = "a,b \"c\" ..;d"
	ceph.Import(t, noise(t, filepath.Join(w.dir, "rbd.raw"), 1024, dataMiB), "disk")
	ceph.Import(t, dataImage(t, w, "odd.raw", 24), odd)
	vm := l.DefineVM(t, lab.VMOptions{Name: "rbd", Disks: []lab.Disk{local}, DevicesXML: ceph.DiskXML("disk", "vdb") + ceph.DiskXMLByHost(odd, "vdc")})
	vm.Write(t, "vdb", 5*lab.MiB, lab.MiB, 0x33)
	vm.Discard(t, "vdb", 9*lab.MiB, 4*lab.MiB)
	now := filepath.Join(w.dir, "now.raw")
	ceph.Export(t, "disk", now)
	disks := map[string]original{"vda": {"raw", local.Path}, "vdb": {"raw", now}, "vdc": {"raw", filepath.Join(w.dir, "odd.raw")}}
	for _, f := range []features{{}, {compress: true, encrypt: true, verify: true}} {
		t.Run(f.String(), func(t *testing.T) {
			ev := w.take(t, append(f.flags(w, t), "--vm", "rbd")...)
			w.restoreAndCompare(t, f, ev, disks)
			w.nothingLeft(t)
			vm.Running(t)
			if vm.HasBackupJob(t) {
				t.Error("libvirt still runs a backup job")
			}
		})
	}
	checkRate := func(t *testing.T) {
		rate := w.measureRate(t, "--vm", "rbd", "--bandwidth", fmt.Sprint(limit))
		t.Logf("copied at %.2f MiB/s, the limit is %d", rate, limit)
		if rate < limit/2 || rate > 1.05*limit { // a busy machine may be slower
			t.Errorf("copied at %.2f MiB/s, the limit is %d", rate, limit)
		}
	}
	t.Run("rate", checkRate)
	vm.Destroy(t)
	for _, f := range []features{{}, {compress: true, encrypt: true, verify: true}} {
		t.Run("stopped "+f.String(), func(t *testing.T) {
			stop := watchProcesses(t, ceph.Key)
			defer stop()
			ev := w.take(t, append(f.flags(w, t), "--vm", "rbd")...)
			w.checkFeatures(t, f, ev)
			w.restoreAndCompare(t, f, ev, disks)
			// The guest goes on, also where the backup has holes.
			vm.Start(t)
			for _, disk := range []string{"vdb", "vdc"} {
				vm.Write(t, disk, 0, 20*lab.MiB, 0x77)
			}
			vm.Destroy(t)
			args := []string{"restore", "--backup", ev.BackupID, "--to-vm", "rbd"}
			if f.encrypt {
				args = append(args, "--passphrase-file", w.passphraseFile(t, passphrase))
			}
			w.mustJob(t, args...)
			for disk, image := range map[string]string{"vdb": "disk", "vdc": odd} {
				back := filepath.Join(w.dir, "back.raw")
				ceph.Export(t, image, back)
				compare(t, "raw", disks[disk].path, "raw", back)
				lab.Run(t, "rm", back)
			}
			w.nothingLeft(t)
		})
	}
	t.Run("stopped rate", checkRate)
	t.Run("refused", func(t *testing.T) {
		ev := w.take(t, "--vm", "rbd", "--attempts", "1")
		ceph.Create(t, "small", 16)
		small := l.DefineVM(t, lab.VMOptions{Name: "small", Stopped: true, DevicesXML: ceph.DiskXML("small", "vdc")})
		w.mustFail(t, messages.CodeTargetTooSmall, "restore", "--backup", ev.BackupID, "--to-vm", small.Name, "--disk", "vdc")
		gone := l.DefineVM(t, lab.VMOptions{Name: "gone", Stopped: true, DevicesXML: ceph.DiskXML("gone", "vdc")})
		w.mustFail(t, messages.CodeDiskNotFound, "restore", "--backup", ev.BackupID, "--to-vm", gone.Name, "--disk", "vdc")
		w.mustFail(t, messages.CodeDiskNotFound, w.takeArgs("--vm", gone.Name)...)
		w.nothingLeft(t)
	})
	t.Run("named images", func(t *testing.T) {
		const image = "new, \"1\""
		ev := w.take(t, "--vm", "rbd", "--compress")
		args := []string{"restore", "--backup", ev.BackupID, "--to-rbd"}
		w.mustFail(t, messages.CodeDiskNotFound, append(args, "vdc="+ceph.Pool+"/"+image)...)
		ceph.Create(t, image, 32)
		back := w.mustJob(t, append(args, "vdc="+ceph.Pool+"/"+image)...)
		if len(back.Restored) != 1 || !strings.HasPrefix(back.Restored["vdc"], "rbd://vms@/vms/new") {
			t.Errorf("restored: %v", back.Restored)
		}
		got := filepath.Join(w.dir, "named.raw")
		ceph.Export(t, image, got)
		lab.Run(t, "truncate", "-s", "24M", got) // the image is larger
		compare(t, "raw", disks["vdc"].path, "raw", got)
		w.mustFail(t, messages.CodePathNotAllowed, append(args, "vdc=other/"+image)...)
		w.mustFail(t, messages.CodeTargetTooSmall, append(args, "vdc="+ceph.Pool+"/small")...)
		vm.Start(t)
		w.mustFail(t, messages.CodeVMRunning, append(args, "vdb="+ceph.Pool+"/disk")...)
		vm.Destroy(t)
		w.nothingLeft(t)
	})
	grepTree(t, w.dir, ceph.Key)
	if strings.Contains(w.log.String(), ceph.Key) {
		t.Error("the worker's log holds Ceph's key")
	}
}
