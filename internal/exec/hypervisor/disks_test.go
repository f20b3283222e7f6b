package hypervisor

import (
	"reflect"
	"strings"
	"testing"

	"libvirt.org/go/libvirtxml"

	"github.com/nasfleet/nasfleet/messages"
)

func TestDisksOf(t *testing.T) {
	const end = "<target dev='vda' bus='virtio'/></disk>"
	for name, c := range map[string]struct {
		xml  string
		want Disk
		// open is the code of CheckOpen.
		open messages.Code
		// skip is a part of the reason a disk is left out for.
		skip string
	}{
		"file":      {xml: "<disk type='file' device='disk'><driver type='qcow2'/><source file='/a b'/>" + end, want: Disk{Kind: KindFile, Path: "/a b", Format: "qcow2"}},
		"no driver": {xml: "<disk type='block'><source dev='/dev/x'/>" + end, want: Disk{Kind: KindBlock, Path: "/dev/x", Format: "raw"}},
		"network": {xml: "<disk type='network' device='disk'><source protocol='rbd' name='p/i'/>" + end,
			want: Disk{Kind: KindNetwork, Path: "rbd:///p/i", Network: &Network{Protocol: ProtocolRBD, Name: "p/i"}, Format: "raw"}},
		"volume": {xml: "<disk type='volume' device='disk'><source pool='p' volume='v'/>" + end,
			want: Disk{Kind: KindVolume, Format: "raw", pool: "p", volume: "v"}, open: messages.CodeDiskUnsupported},
		"nvme": {xml: "<disk type='nvme' device='disk'><source type='pci' namespace='1'><address domain='0x0' bus='0x1' slot='0x0' function='0x0'/></source>" + end,
			want: Disk{Kind: "nvme", Format: "raw"}, open: messages.CodeDiskUnsupported},
		"slice": {xml: "<disk type='file' device='disk'><source file='/a'><slices><slice type='storage' offset='512' size='1024'/></slices></source>" + end,
			want: Disk{Kind: KindFile, Path: "/a", Format: "raw", slice: true}, open: messages.CodeDiskUnsupported},
		"encrypted": {xml: "<disk type='file' device='disk'><source file='/a'/><encryption format='luks'/>" + end,
			want: Disk{Kind: KindFile, Path: "/a", Format: "raw", Encrypted: true}, open: messages.CodeSourceEncrypted},
		"encrypted source": {xml: "<disk type='file' device='disk'><source file='/a'><encryption format='luks'/></source>" + end,
			want: Disk{Kind: KindFile, Path: "/a", Format: "raw", Encrypted: true}, open: messages.CodeSourceEncrypted},
		"encrypted base": {xml: `<disk type='file' device='disk'><driver type='qcow2'/><source file='/a'/>
			<backingStore type='file'><format type='qcow2'/><source file='/b'/>
			<backingStore type='file'><format type='raw'/><source file='/c'><encryption format='luks'/></source></backingStore></backingStore>` + end,
			want: Disk{Kind: KindFile, Path: "/a", Format: "qcow2", Encrypted: true, Backing: []Image{
				{KindFile, "/b", "qcow2"}, {KindFile, "/c", "raw"},
			}}, open: messages.CodeSourceEncrypted},
		"nothing below": {xml: "<disk type='file' device='disk'><driver type='qcow2'/><source file='/a'/><backingStore/>" + end,
			want: Disk{Kind: KindFile, Path: "/a", Format: "qcow2", BackingEnds: true}},
		"chain": {xml: `<disk type='file' device='disk'><driver type='qcow2'/><source file='/a'/>
			<backingStore type='file'><format type='qcow2'/><source file='/b'/>
			<backingStore type='block'><source dev='/dev/c'/><backingStore/></backingStore></backingStore>` + end,
			want: Disk{Kind: KindFile, Path: "/a", Format: "qcow2", BackingEnds: true, Backing: []Image{
				{KindFile, "/b", "qcow2"}, {KindBlock, "/dev/c", "raw"},
			}}},
		"network below": {xml: `<disk type='file' device='disk'><driver type='qcow2'/><source file='/a'/>
			<backingStore type='network'><format type='raw'/><source protocol='nbd' name='x'/></backingStore>` + end,
			want: Disk{Kind: KindFile, Path: "/a", Format: "qcow2", Backing: []Image{{KindNetwork, "", "raw"}}}, open: messages.CodeDiskUnsupported},
		"slice below": {xml: `<disk type='file' device='disk'><driver type='qcow2'/><source file='/a'/>
			<backingStore type='file'><format type='raw'/><source file='/b'><slices><slice type='storage' offset='512' size='1024'/></slices></source></backingStore>` + end,
			want: Disk{Kind: KindFile, Path: "/a", Format: "qcow2", Backing: []Image{{"slice", "", "raw"}}}, open: messages.CodeDiskUnsupported},

		"cdrom":       {xml: "<disk type='file' device='cdrom'><source file='/a'/>" + end, skip: "CD-ROM"},
		"floppy":      {xml: "<disk type='file' device='floppy'>" + end, skip: "floppy"},
		"lun":         {xml: "<disk type='block' device='lun'><source dev='/dev/x'/>" + end, skip: "passed through"},
		"empty":       {xml: "<disk type='file' device='disk'>" + end, skip: "empty"},
		"empty block": {xml: "<disk type='block' device='disk'><source dev=''/>" + end, skip: "empty"},
		"read-only":   {xml: "<disk type='file' device='disk'><source file='/a'/><readonly/>" + end, skip: "read-only"},
		"transient":   {xml: "<disk type='file' device='disk'><source file='/a'/><transient/>" + end, skip: "transient"},
		"shared":      {xml: "<disk type='file' device='disk'><source file='/a'/><shareable/>" + end, skip: "shared"},
		"vhost-user":  {xml: "<disk type='vhostuser' device='disk'><source type='unix' path='/s'/>" + end, skip: "another process"},
	} {
		t.Run(name, func(t *testing.T) {
			var def libvirtxml.Domain
			if err := def.Unmarshal("<domain><devices>" + c.xml + "</devices></domain>"); err != nil {
				t.Fatal(err)
			}
			disks, skipped := disksOf(def)
			if c.skip != "" {
				if len(disks) != 0 || len(skipped) != 1 || skipped[0].Target != "vda" || !strings.Contains(skipped[0].Reason, c.skip) {
					t.Errorf("disks %+v, skipped %+v", disks, skipped)
				}
				return
			}
			c.want.Target = "vda"
			if len(disks) != 1 || len(skipped) != 0 || !reflect.DeepEqual(disks[0], c.want) {
				t.Fatalf("disks %+v, skipped %+v", disks, skipped)
			}
			wantCode(t, disks[0].CheckOpen(), c.open)
		})
	}
	if disks, skipped := disksOf(libvirtxml.Domain{}); disks != nil || skipped != nil {
		t.Error("a VM without devices has disks")
	}
}

func TestPoolFolder(t *testing.T) {
	for definition, want := range map[string][]string{
		"<pool type='dir'><name>a</name><target><path>/srv/a b</path></target></pool>":    {"/srv/a b"},
		"<pool type='netfs'><name>a</name><target><path>/srv/nas</path></target></pool>":  {"/srv/nas"},
		"<pool type='logical'><name>a</name><target><path>/dev/vg</path></target></pool>": nil,
		"<pool type='disk'><name>a</name><target><path>/dev</path></target></pool>":       nil,
		"<pool type='rbd'><name>a</name><source><name>p</name></source></pool>":           nil,
		"<pool type='dir'><name>a</name><target/></pool>":                                 nil,
		"<pool": nil,
	} {
		if got := poolFolder(definition); !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %v", definition, got)
		}
	}
}

func TestParseOwner(t *testing.T) {
	for label, want := range map[string][2]int{
		"+64055:+107": {64055, 107},
		"0:0":         {0, 0},
		"root:root":   {0, 0},
		"root:+7":     {0, 7},
	} {
		if uid, gid, err := parseOwner(label); err != nil || uid != want[0] || gid != want[1] {
			t.Errorf("%s: %d %d %v", label, uid, gid, err)
		}
	}
	for _, label := range []string{"", "+1", "+:+", "+-1:+1", "no-such-user:root", "+1:no-such-group", "+99999999999:+1"} {
		if _, _, err := parseOwner(label); err == nil {
			t.Errorf("%q was accepted", label)
		}
	}
}
