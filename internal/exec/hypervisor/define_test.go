package hypervisor

import (
	"encoding/xml"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"libvirt.org/go/libvirtxml"

	"github.com/nasfleet/nasfleet/messages"
	"github.com/nasfleet/nasfleet/tests/lab"
)

func testDefine(t *testing.T, l *lab.Libvirt, h *Hypervisor) {
	vm, d := guest(t, l, h, "define")
	wantCode(t, h.Define(t.Context(), d.XML), messages.CodeVMExists)
	renamed := strings.Replace(d.XML, "<name>define</name>", "<name>define-2</name>", 1)
	wantCode(t, h.Define(t.Context(), renamed), messages.CodeVMExists)
	vm.Running(t)
	vm.Destroy(t)
	vm.Undefine(t)

	copied := lab.Image(t, filepath.Join(lab.Dir(t), "new & disk.raw"), "raw", 8)
	rewritten, notes, err := RewriteDisks(d.XML, map[string]Source{"vda": {copied, "raw"}})
	if err != nil || len(notes) != 0 {
		t.Fatal(notes, err)
	}
	if err := h.Define(t.Context(), rewritten); err != nil {
		t.Fatal(err)
	}
	vm.Start(t)
	again := inspect(t, h, "define")
	want := Disk{Target: "vda", Kind: KindFile, Path: copied, Format: "raw", SizeBytes: 8 * lab.MiB, BackingEnds: true}
	if again.UUID != d.UUID || !reflect.DeepEqual(again.Disks, []Disk{want}) {
		t.Errorf("got %s %+v", again.UUID, again.Disks)
	}
	bad := "<domain type='qemu'><name>bad</name><memory>65536</memory><os><type machine='none-such'>hvm</type></os></domain>"
	wantCode(t, h.Define(t.Context(), bad), messages.CodeBackupCorrupt)
	wantCode(t, h.Define(t.Context(), "<domain"), messages.CodeBackupCorrupt)
}

const storedXML = `<domain type='kvm' id='7'>
  <name>db &amp; co</name><uuid>2bd932f1-a1e5-4df7-bb96-a153e6b23480</uuid>
  <metadata><x:note xmlns:x='urn:example'>kept</x:note></metadata>
  <devices>
    <disk type='network' device='disk'>
      <driver name='qemu' type='raw' cache='none' discard='unmap'/>
      <auth username='admin'><secret type='ceph' uuid='7f5b6a0e-3c9d-4b52-8e0a-9c1d2e3f4a5b'/></auth>
      <source protocol='rbd' name='pool/image'><host name='mon' port='6789'/></source>
      <target dev='vda' bus='virtio'/><serial>S1</serial><boot order='1'/>
    </disk>
    <disk type='file' device='disk'>
      <driver name='qemu' type='qcow2'><metadata_cache><max_size unit='bytes'>1048576</max_size></metadata_cache></driver>
      <source file='/old/top.qcow2'><encryption format='luks'><secret type='passphrase' uuid='7f5b6a0e-3c9d-4b52-8e0a-9c1d2e3f4a5b'/></encryption></source>
      <backingStore type='file'><format type='qcow2'/><source file='/old/base.qcow2'/><backingStore/></backingStore>
      <mirror type='file' job='copy'><source file='/old/mirror'/></mirror>
      <target dev='vdb' bus='virtio'/>
    </disk>
    <disk type='block' device='lun' rawio='yes'><driver name='qemu' type='raw'/><source dev='/dev/old'/><target dev='sda' bus='scsi'/></disk>
    <disk type='file' device='disk'><source file='/old/left-out'/><target dev='vdc' bus='virtio'/><readonly/></disk>
    <disk type='file' device='cdrom'><source file='/old/cd.iso'/><target dev='sdb' bus='sata'/><readonly/></disk>
    <disk type='file' device='cdrom'><target dev='sdc' bus='sata'/><readonly/></disk>
    <interface type='bridge'><mac address='52:54:00:11:22:33'/><source bridge='br0'/></interface>
  </devices>
</domain>`

func TestRewriteDisks(t *testing.T) {
	out, notes, err := RewriteDisks(storedXML, map[string]Source{
		"vda": {"/new/a <&'\">.qcow2", "qcow2"},
		"vdb": {"/new/b.raw", "raw"},
		"sda": {"/new/c.raw", "raw"},
		"vdz": {"/new/z.raw", "raw"},
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, gone := range []string{"/old/", "rbd", "secret", "encryption", "backingStore", "mirror", "metadata_cache", "rawio", "left-out", "'7'"} {
		if strings.Contains(out, gone) {
			t.Errorf("%s is still there:\n%s", gone, out)
		}
	}
	for _, kept := range []string{"db &amp; co", "2bd932f1-a1e5-4df7-bb96-a153e6b23480", "kept", "52:54:00:11:22:33", "S1", `discard="unmap"`, `cache="none"`} {
		if !strings.Contains(out, kept) {
			t.Errorf("%s is lost:\n%s", kept, out)
		}
	}
	var def libvirtxml.Domain
	if err := def.Unmarshal(out); err != nil {
		t.Fatal(err)
	}
	disks, skipped := disksOf(def)
	want := []Disk{
		{Target: "vda", Kind: KindFile, Path: "/new/a <&'\">.qcow2", Format: "qcow2"},
		{Target: "vdb", Kind: KindFile, Path: "/new/b.raw", Format: "raw"},
		{Target: "sda", Kind: KindFile, Path: "/new/c.raw", Format: "raw"},
	}
	if !reflect.DeepEqual(disks, want) || len(skipped) != 2 {
		t.Errorf("got %+v, %+v", disks, skipped)
	}
	wantNotes := []string{"disk vdc was not restored", "drive sdb is empty", "disk vdz is not in"}
	if len(notes) != len(wantNotes) {
		t.Fatalf("the notes are %q", notes)
	}
	for i, prefix := range wantNotes {
		if !strings.HasPrefix(notes[i], prefix) {
			t.Errorf("note %d is %q", i, notes[i])
		}
	}
	_, _, err = RewriteDisks("no XML", nil)
	wantCode(t, err, messages.CodeBackupCorrupt)
}

// FuzzRewriteDisks: whatever the definition, the result is XML, and no disk but the restored one is
// left in it.
func FuzzRewriteDisks(f *testing.F) {
	f.Add(storedXML, "vda", "/new/a", "qcow2")
	f.Add("<domain/>", "vda", "/a", "raw")
	f.Add("<domain><devices><disk device='lun'><target dev='x'/></disk></devices></domain>", "x", "", "")
	f.Fuzz(func(t *testing.T, definition, target, path, format string) {
		restored := map[string]Source{target: {path, format}}
		out, _, err := RewriteDisks(definition, restored)
		if err != nil {
			if code := messages.CodeOf(err); code != messages.CodeBackupCorrupt && code != messages.CodeDefinitionRefused {
				t.Fatalf("the error has no code of its own: %v", err)
			}
			return
		}
		var def libvirtxml.Domain
		if err := xml.Unmarshal([]byte(out), &def); err != nil {
			t.Fatalf("the result cannot be read: %v\n%s", err, out)
		}
		disks, _ := disksOf(def)
		for _, d := range disks {
			if d.Target != target || d.Kind != KindFile || d.Encrypted {
				t.Fatalf("not restored and still there: %+v", d)
			}
		}
	})
}
