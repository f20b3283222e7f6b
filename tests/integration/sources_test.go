package integration

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/nasfleet/nasfleet/messages"
	"github.com/nasfleet/nasfleet/tests/lab"
)

// manifest reads a backup's manifest as any program would.
func (w *world) manifest(t *testing.T, ev messages.Event) map[string]any {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(w.nas, ev.VM, ev.BackupID, "manifest.json"))
	if err != nil {
		t.Fatal(err)
	}
	var m map[string]any
	if err := json.Unmarshal(data, &m); err != nil {
		t.Fatal(err)
	}
	return m
}

const removable = `
  <disk type='file' device='cdrom'><driver name='qemu' type='raw'/><source file='%ISO%'/><target dev='sda' bus='sata'/><readonly/></disk>
  <disk type='file' device='cdrom'><target dev='sdb' bus='sata'/><readonly/></disk>
  <disk type='file' device='disk'><driver name='qemu' type='raw'/><source file='%RO%'/><target dev='vdx' bus='virtio'/><readonly/></disk>`

// TestDisksOfEveryKind backs up, running and stopped, a VM with a backing chain, a raw file on a
// path with spaces and a comma, a block device, and devices that are to be left out.
func TestDisksOfEveryKind(t *testing.T) {
	t.Parallel()
	l := lab.Libvirtd(t)
	w := newWorld(t, l.URI)
	folder := w.mkdir(t, "my disks, really")
	base := filepath.Join(folder, "base.qcow2")
	lab.Run(t, "qemu-img", "convert", "-f", "raw", "-O", "qcow2", dataImage(t, w, "base.raw", 64), base)
	chain := lab.Overlay(t, filepath.Join(folder, "top.qcow2"), base, "qcow2")
	raw := dataImage(t, w, "my disks, really/raw disk.img", 48)
	loop := lab.LoopDevice(t, 32)
	iso := noise(t, filepath.Join(w.dir, "cd.iso"), 1, 1)
	ro := noise(t, filepath.Join(w.dir, "ro.raw"), 1, 1)
	disks := []lab.Disk{{Path: chain, Format: "qcow2"}, {Path: raw, Format: "raw"}, {Path: loop, Format: "raw", Block: true}}
	vm := l.DefineVM(t, lab.VMOptions{
		Name: "zoo", Disks: disks,
		DevicesXML: strings.NewReplacer("%ISO%", iso, "%RO%", ro).Replace(removable),
	})
	vm.Write(t, "vda", 10*lab.MiB, lab.MiB, 0x11)
	vm.Write(t, "vdc", 3*lab.MiB, lab.MiB, 0x22)

	for _, state := range []string{"running", "stopped"} {
		t.Run(state, func(t *testing.T) {
			if state == "stopped" {
				vm.Destroy(t)
			}
			ev := w.take(t, "--vm", "zoo", "--verify")
			m := w.manifest(t, ev)
			if m["source"] != state {
				t.Errorf("the manifest says the source was %v", m["source"])
			}
			skipped, _ := json.Marshal(m["skipped"])
			for _, target := range []string{"sda", "sdb", "vdx"} {
				if !bytes.Contains(skipped, []byte(`"`+target+`"`)) {
					t.Errorf("the manifest does not say that %s was left out: %s", target, skipped)
				}
			}
			if len(ev.Backup.Disks) != 3 {
				t.Errorf("%d disks, want 3", len(ev.Backup.Disks))
			}
			w.restoreAndCompare(t, features{}, ev, originals(disks))
			w.nothingLeft(t)
		})
	}
}

// TestFloppy needs the old machine type, which is the one that has floppies.
func TestFloppy(t *testing.T) {
	t.Parallel()
	l := lab.Libvirtd(t)
	w := newWorld(t, l.URI)
	disk := dataImage(t, w, "disk.raw", 32)
	floppy := noise(t, filepath.Join(w.dir, "floppy.img"), 1, 1)
	l.DefineVM(t, lab.VMOptions{
		Name: "old", Machine: "pc", Disks: []lab.Disk{{Path: disk, Format: "raw"}},
		DevicesXML: `<disk type='file' device='floppy'><driver name='qemu' type='raw'/><source file='` + floppy + `'/><target dev='fda' bus='fdc'/></disk>`,
	})
	ev := w.take(t, "--vm", "old")
	if notes := strings.Join(ev.Notes, "\n"); !strings.Contains(notes, "fda") {
		t.Errorf("the event does not say that the floppy was left out: %q", notes)
	}
	w.restoreAndCompare(t, features{}, ev, map[string]original{"vda": {"raw", disk}})
}

// TestRestoreToAStoppedVM overwrites its disks, all or one, holes included.
func TestRestoreToAStoppedVM(t *testing.T) {
	t.Parallel()
	l := lab.Libvirtd(t)
	w := newWorld(t, l.URI)
	disks := twoDisks(t, w)
	vm := l.DefineVM(t, lab.VMOptions{Name: "web", Disks: disks})
	ev := w.take(t, "--vm", "web")
	reference := w.mkdir(t, "reference")
	w.mustJob(t, "restore", "--backup", ev.BackupID, "--to", reference, "--format", "raw")

	// The guest goes on, also where the backup has holes.
	for _, disk := range []string{"vda", "vdb"} {
		vm.Write(t, disk, 0, 64*lab.MiB, 0x77)
	}
	vm.Destroy(t)
	w.mustJob(t, "restore", "--backup", ev.BackupID, "--to-vm", "web", "--disk", "vdb")
	compare(t, "raw", filepath.Join(reference, "vdb.raw"), disks[1].Format, disks[1].Path)
	if out, _ := lab.Try(t, "qemu-img", "compare", "-f", "raw", "-F", "qcow2", filepath.Join(reference, "vda.raw"), disks[0].Path); strings.Contains(out, "identical") {
		t.Error("vda was restored as well, or the guest's write did not reach it")
	}
	w.mustJob(t, "restore", "--backup", ev.BackupID, "--to-vm", "web")
	compare(t, "raw", filepath.Join(reference, "vda.raw"), disks[0].Format, disks[0].Path)
	vm.Start(t)
	vm.Running(t)
	w.nothingLeft(t)

	smaller := l.DefineVM(t, lab.VMOptions{Name: "smaller", Stopped: true, Disks: []lab.Disk{
		{Path: lab.Image(t, filepath.Join(w.dir, "small.raw"), "raw", 100), Format: "raw"},
	}})
	w.mustFail(t, messages.CodeTargetTooSmall, "restore", "--backup", ev.BackupID, "--to-vm", smaller.Name, "--disk", "vda")
}

// TestDefine brings a VM back that was deleted with its disks.
func TestDefine(t *testing.T) {
	t.Parallel()
	l := lab.Libvirtd(t)
	w := newWorld(t, l.URI)
	disks := twoDisks(t, w)
	vm := l.DefineVM(t, lab.VMOptions{Name: "web", Disks: disks})
	ev := w.take(t, "--vm", "web", "--compress", "--verify")
	vm.Destroy(t)
	vm.Undefine(t)
	to := filepath.Join(w.dir, "back")
	w.mustJob(t, "restore", "--backup", ev.BackupID, "--to", to, "--define")
	for i, name := range []string{"vda", "vdb"} {
		compare(t, disks[i].Format, disks[i].Path, "qcow2", filepath.Join(to, name+".qcow2"))
	}
	vm.Start(t)
	vm.Running(t)
	if xml := l.Virsh(t, "dumpxml", "web"); !strings.Contains(xml, filepath.Join(to, "vda.qcow2")) {
		t.Errorf("the VM does not use its restored disk:\n%s", xml)
	}
}

// TestEncryptedSource backs up a VM whose own disk is LUKS: only into an encrypted backup, and the
// VM that is restored from it starts.
func TestEncryptedSource(t *testing.T) {
	t.Parallel()
	l := lab.Libvirtd(t)
	w := newWorld(t, l.URI)
	key := w.keyFile(t)
	disk := filepath.Join(w.dir, "luks.raw")
	lab.Run(t, "qemu-img", "create", "-q", "-f", "luks", "--object", "secret,id=s,file="+key, "-o", "key-secret=s,iter-time=10", disk, "32M")
	const uuid = "5b8e1c0e-7a53-4b9f-9d2c-3d1f0a6f7e21"
	secretXML := filepath.Join(w.dir, "secret.xml")
	xml := `<secret ephemeral='no' private='yes'><uuid>` + uuid + `</uuid><usage type='volume'><volume>` + disk + `</volume></usage></secret>`
	if err := os.WriteFile(secretXML, []byte(xml), 0o600); err != nil {
		t.Fatal(err)
	}
	l.Virsh(t, "secret-define", secretXML)
	l.Virsh(t, "secret-set-value", uuid, "--file", key, "--plain")
	vm := l.DefineVM(t, lab.VMOptions{Name: "vault", Disks: []lab.Disk{{
		Path: disk, Format: "raw", ExtraXML: `<encryption format='luks'><secret type='passphrase' uuid='` + uuid + `'/></encryption>`,
	}}})
	vm.Write(t, "vda", lab.MiB, lab.MiB, 0x5a)

	w.mustFail(t, messages.CodeSourceEncrypted, w.takeArgs("--vm", "vault")...)
	ev := w.take(t, "--vm", "vault", "--encrypt", "--passphrase-file", w.passphraseFile(t, passphrase))
	encoded, _ := json.Marshal(w.manifest(t, ev)["disks"])
	if !bytes.Contains(encoded, []byte(`"encrypted":true`)) {
		t.Errorf("the manifest does not record that the source is encrypted: %s", encoded)
	}
	vm.Destroy(t)
	w.mustFail(t, messages.CodeSourceEncrypted, w.takeArgs("--vm", "vault", "--encrypt", "--passphrase-file", w.passphraseFile(t, passphrase))...)
	vm.Undefine(t)
	to := filepath.Join(w.dir, "back")
	w.mustJob(t, "restore", "--backup", ev.BackupID, "--to", to, "--define", "--passphrase-file", w.passphraseFile(t, passphrase))
	vm.Start(t)
	vm.Running(t)
	out := lab.Run(t, "qemu-io", "-U", "-r", "-f", "qcow2", "-c", "read -P 0x5a 1M 1M", filepath.Join(to, "vda.qcow2"))
	if strings.Contains(out, "verification failed") {
		t.Errorf("the restored disk has other bytes: %s", out)
	}
}

// TestOddSizes backs up disks whose size is not a multiple of a cluster, compressed and not: the
// restored disk has the same size to the sector.
func TestOddSizes(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "none")
	for _, size := range []int64{512, 65536 + 512, 3*lab.MiB - 4096, 5*lab.MiB + 1536} {
		image := noise(t, filepath.Join(w.dir, "odd.img"), 8, 8)
		if err := os.Truncate(image, size); err != nil {
			t.Fatal(err)
		}
		// A hole smaller than a compressed cluster.
		lab.Run(t, "fallocate", "--punch-hole", "--offset", "64K", "--length", "64K", image)
		for _, f := range []features{{}, {compress: true, verify: true}, {compress: true, encrypt: true, verify: true}} {
			t.Run(fmt.Sprintf("%d-%s", size, f), func(t *testing.T) {
				ev := w.take(t, append(f.flags(w, t), "--image", image)...)
				if ev.Backup.VirtualBytes != size {
					t.Errorf("the backup is of %d bytes, the image has %d", ev.Backup.VirtualBytes, size)
				}
				w.checkFeatures(t, f, ev)
				w.restoreAndCompare(t, f, ev, map[string]original{"disk0": {"raw", image}})
				to := filepath.Join(w.dir, "raw-"+ev.BackupID)
				args := []string{"restore", "--backup", ev.BackupID, "--to", to, "--format", "raw"}
				if f.encrypt {
					args = append(args, "--passphrase-file", w.passphraseFile(t, passphrase))
				}
				w.mustJob(t, args...)
				if info, err := os.Stat(filepath.Join(to, "disk0.raw")); err != nil || info.Size() != size {
					t.Errorf("the restored disk is %v, %v", info, err)
				}
			})
		}
	}
}

// TestDiskOnAnIOThread: a QEMU before 9.0 dies with its guest when an NBD client leaves such a disk.
// The VM comes first, so its running backup is refused there; stopped it is backed up.
func TestDiskOnAnIOThread(t *testing.T) {
	t.Parallel()
	l := lab.Libvirtd(t)
	w := newWorld(t, l.URI)
	disk := dataImage(t, w, "disk.raw", 32)
	l.DefineXML(t, `<domain type='qemu'><name>io</name><memory unit='MiB'>64</memory><vcpu>1</vcpu><iothreads>1</iothreads>
		<os><type arch='x86_64' machine='q35'>hvm</type></os><devices>
		<disk type='file' device='disk'><driver name='qemu' type='raw' iothread='1'/><source file='`+disk+`'/><target dev='vda' bus='virtio'/></disk>
		</devices></domain>`)
	l.Virsh(t, "start", "io")
	var major int
	if _, err := fmt.Sscanf(lab.Run(t, "qemu-img", "--version"), "qemu-img version %d", &major); err != nil {
		t.Fatal(err)
	}
	if major < 9 {
		ev := w.mustFail(t, messages.CodeDiskUnsupported, w.takeArgs("--vm", "io")...)
		if !strings.Contains(ev.Error.Hint, "iothread") {
			t.Errorf("the hint is %q", ev.Error.Hint)
		}
	} else {
		w.take(t, "--vm", "io")
	}
	if state := strings.TrimSpace(l.Virsh(t, "domstate", "io")); state != "running" {
		t.Errorf("the guest is %s", state)
	}
	w.nothingLeft(t)
	l.Virsh(t, "destroy", "io")
	ev := w.take(t, "--vm", "io")
	w.restoreAndCompare(t, features{}, ev, map[string]original{"vda": {"raw", disk}})
}
