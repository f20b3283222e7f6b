package hypervisor

import (
	"libvirt.org/go/libvirtxml"

	"github.com/nasfleet/nasfleet/messages"
)

// Kind is where a disk's data lies; other kinds than these have libvirt's name (nvme, dir, …).
type Kind string

// The kinds of disks.
const (
	KindFile    Kind = "file"
	KindBlock   Kind = "block"
	KindNetwork Kind = "network"
	// KindVolume is a volume of a storage pool that is neither a file nor a block device, or whose
	// pool is not active.
	KindVolume Kind = "volume"
)

// Disk is a disk of a VM that can be backed up while the VM runs.
type Disk struct {
	// Target is the disk's name in the definition, such as vda.
	Target string
	Kind   Kind
	// Path of the file or block device; a URL for people of a network disk; "" for other kinds.
	Path string
	// Network says where a network disk lies; nil for other kinds.
	Network *Network
	// Format of the topmost image: qcow2, raw, …
	Format string
	// Encrypted says that the image, or one below it, is encrypted. A running VM serves it decrypted.
	Encrypted bool
	// SizeBytes is what the guest sees; 0 when libvirt cannot tell.
	SizeBytes int64
	// Backing is what the definition says lies below, the nearest first; mostly it says nothing, and libvirt
	// believes the headers of the images. BackingEnds says that nothing lies below the last of them.
	Backing     []Image
	BackingEnds bool

	pool, volume string
	slice        bool
}

// Image is an image below a disk.
type Image struct {
	Kind Kind
	// Path of the file or block device; "" for other kinds.
	Path   string
	Format string
}

// Skipped is a device that is left out of a backup, and why.
type Skipped struct {
	Target string
	Reason string
}

// CheckOpen refuses a disk that cannot be read without its VM's QEMU, with the code
// CodeDiskUnsupported or CodeSourceEncrypted.
func (d Disk) CheckOpen() error {
	switch {
	case d.Kind != KindFile && d.Kind != KindBlock && d.Kind != KindNetwork:
		return messages.Errorf(messages.CodeDiskUnsupported, "disk %s is of type %s", d.Target, d.Kind).
			WithHint("Back the VM up while it runs, or move the disk to a file or block device.")
	case d.slice:
		return messages.Errorf(messages.CodeDiskUnsupported, "disk %s is a slice of %s", d.Target, d.Path).
			WithHint("Back the VM up while it runs, or move the disk to a file or block device of its own.")
	case d.Encrypted:
		return messages.Errorf(messages.CodeSourceEncrypted, "disk %s is encrypted", d.Target)
	case d.Network != nil:
		return d.Network.check(d.Target)
	}
	for _, b := range d.Backing {
		if b.Path == "" {
			return messages.Errorf(messages.CodeDiskUnsupported, "disk %s lies on an image of type %s", d.Target, b.Kind).
				WithHint("Back the VM up while it runs, or move the image to a file or block device of its own.")
		}
	}
	return nil
}

// CheckWrite is CheckOpen for a disk that is to be written over.
func (d Disk) CheckWrite() error {
	if err := d.CheckOpen(); err != nil {
		return err
	}
	if d.Network != nil && d.Network.Snapshot != "" {
		return messages.Errorf(messages.CodeDiskUnsupported, "disk %s (%s) is a snapshot, which cannot be written", d.Target, d.Path).
			WithHint("Restore to a folder, or to a VM whose disk is the image itself.")
	}
	return nil
}

// disksOf sorts the disks of a definition.
func disksOf(def libvirtxml.Domain) (disks []Disk, skipped []Skipped) {
	if def.Devices == nil {
		return nil, nil
	}
	for _, x := range def.Devices.Disks {
		if reason := reasonToSkip(x); reason != "" {
			skipped = append(skipped, Skipped{targetOf(x), reason})
			continue
		}
		disks = append(disks, diskOf(x))
	}
	return disks, skipped
}

// reasonToSkip returns why a device is not backed up, "" for one that is.
func reasonToSkip(x libvirtxml.DomainDisk) string {
	switch {
	case x.Device == "cdrom":
		return "a CD-ROM drive"
	case x.Device == "floppy":
		return "a floppy drive"
	case x.Device == "lun":
		return "a SCSI device passed through to the guest"
	case !hasSource(x.Source):
		return "an empty drive"
	case x.ReadOnly != nil:
		return "read-only"
	case x.Transient != nil:
		return "transient: what the guest writes to it is thrown away"
	case x.Shareable != nil:
		return "shared: other VMs may write to it during the backup"
	case x.Source.VHostUser != nil || x.Source.VHostVDPA != nil:
		return "served by another process: QEMU does not see what is written to it"
	}
	return ""
}

func hasSource(s *libvirtxml.DomainDiskSource) bool {
	switch {
	case s == nil:
		return false
	case s.File != nil:
		return s.File.File != "" || s.File.FDGroup != ""
	case s.Block != nil:
		return s.Block.Dev != ""
	case s.Volume != nil:
		return s.Volume.Volume != ""
	}
	return true
}

func diskOf(x libvirtxml.DomainDisk) Disk {
	d := Disk{
		Target:    targetOf(x),
		Format:    "raw", // libvirt's own default
		Encrypted: encrypted(x),
		slice:     x.Source.Slices != nil,
	}
	if x.Driver != nil && x.Driver.Type != "" {
		d.Format = x.Driver.Type
	}
	d.Kind, d.Path = whereOf(x.Source)
	if v := x.Source.Volume; v != nil {
		d.pool, d.volume = v.Pool, v.Volume
	}
	d.Backing, d.BackingEnds = backingOf(x.BackingStore)
	if x.Source.Network != nil {
		d.Network = networkOf(x)
		d.Path = d.Network.String()
	}
	return d
}

// whereOf returns where a source lies.
func whereOf(s *libvirtxml.DomainDiskSource) (Kind, string) {
	switch {
	case s.File != nil:
		return KindFile, s.File.File
	case s.Block != nil:
		return KindBlock, s.Block.Dev
	case s.Network != nil:
		return KindNetwork, ""
	case s.Volume != nil:
		return KindVolume, ""
	case s.NVME != nil:
		return "nvme", ""
	case s.Dir != nil:
		return "dir", ""
	}
	return "unknown", ""
}

// backingOf reads what a definition says lies below a disk. An empty element says that nothing does.
func backingOf(b *libvirtxml.DomainDiskBackingStore) (stated []Image, ends bool) {
	for ; b != nil; b = b.BackingStore {
		image := Image{Kind: "unknown", Format: "raw"} // libvirt's own default
		if hasSource(b.Source) {
			image.Kind, image.Path = whereOf(b.Source)
		}
		if b.Format != nil && b.Format.Type != "" {
			image.Format = b.Format.Type
		} else if image.Kind == "unknown" {
			return stated, true
		}
		if b.Source != nil && b.Source.Slices != nil {
			image.Kind, image.Path = "slice", ""
		}
		stated = append(stated, image)
	}
	return stated, false
}

// encrypted looks for encryption anywhere in a disk's chain.
func encrypted(x libvirtxml.DomainDisk) bool {
	if x.Encryption != nil || x.Source.Encryption != nil {
		return true
	}
	for b := x.BackingStore; b != nil; b = b.BackingStore {
		if b.Source != nil && b.Source.Encryption != nil {
			return true
		}
	}
	return false
}

func targetOf(x libvirtxml.DomainDisk) string {
	if x.Target == nil {
		return ""
	}
	return x.Target.Dev
}
