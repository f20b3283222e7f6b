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
	// Path of the file or block device; "" for other kinds.
	Path string
	// Format of the topmost image: qcow2, raw, …
	Format string
	// Encrypted says that the image, or one below it, is encrypted. A running VM serves it decrypted.
	Encrypted bool
	// SizeBytes is what the guest sees; 0 when libvirt cannot tell.
	SizeBytes int64

	pool, volume string
	slice        bool
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
	case d.Kind != KindFile && d.Kind != KindBlock:
		return messages.Errorf(messages.CodeDiskUnsupported, "disk %s is of type %s", d.Target, d.Kind).
			WithHint("Back the VM up while it runs, or move the disk to a file or block device.")
	case d.slice:
		return messages.Errorf(messages.CodeDiskUnsupported, "disk %s is a slice of %s", d.Target, d.Path).
			WithHint("Back the VM up while it runs, or move the disk to a file or block device of its own.")
	case d.Encrypted:
		return messages.Errorf(messages.CodeSourceEncrypted, "disk %s is encrypted", d.Target)
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
	switch s := x.Source; {
	case s.File != nil:
		d.Kind, d.Path = KindFile, s.File.File
	case s.Block != nil:
		d.Kind, d.Path = KindBlock, s.Block.Dev
	case s.Network != nil:
		d.Kind = KindNetwork
	case s.Volume != nil:
		d.Kind, d.pool, d.volume = KindVolume, s.Volume.Pool, s.Volume.Volume
	case s.NVME != nil:
		d.Kind = "nvme"
	case s.Dir != nil:
		d.Kind = "dir"
	default:
		d.Kind = "unknown"
	}
	return d
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
