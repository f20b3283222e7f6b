package hypervisor

import (
	"context"
	"fmt"
	"maps"
	"slices"

	"libvirt.org/go/libvirt"
	"libvirt.org/go/libvirtxml"

	"github.com/nasfleet/nasfleet/messages"
)

// Source is a file that becomes a disk of a VM.
type Source struct {
	// Path is absolute.
	Path string
	// Format is qcow2 or raw.
	Format string
}

// RewriteDisks returns the definition of a VM with the disks that were restored (by target, such as
// vda) on their new files, and notes on what had to change besides: a disk that was not restored is
// removed, a CD-ROM or floppy drive is emptied, a security label is left to this host. The error has the
// code CodeBackupCorrupt, or CodeDefinitionRefused where the definition asks for more than its disks.
func RewriteDisks(definition string, restored map[string]Source) (string, []string, error) {
	var def libvirtxml.Domain
	if err := def.Unmarshal(definition); err != nil {
		return "", nil, messages.Errorf(messages.CodeBackupCorrupt, "the VM's definition cannot be read: %w", err)
	}
	def.ID = nil
	labels := len(def.SecLabel)
	def.SecLabel = nil // one of type none would take the guest's confinement away
	left := maps.Clone(restored)
	var notes []string
	if def.Devices != nil {
		var kept []libvirtxml.DomainDisk
		for _, disk := range def.Devices.Disks {
			source, found := left[targetOf(disk)]
			switch {
			case found:
				delete(left, targetOf(disk))
				kept = append(kept, onFile(disk, source))
			case disk.Device == "cdrom" || disk.Device == "floppy":
				if hasSource(disk.Source) {
					notes = append(notes, fmt.Sprintf("drive %s is empty now", targetOf(disk)))
				}
				disk.Source, disk.BackingStore = nil, nil
				kept = append(kept, disk)
			default:
				notes = append(notes, fmt.Sprintf("disk %s was not restored and is not part of the VM now", targetOf(disk)))
			}
		}
		def.Devices.Disks = kept
	}
	for _, target := range slices.Sorted(maps.Keys(left)) {
		notes = append(notes, fmt.Sprintf("disk %s is not in the VM's definition: attach %s by hand", target, left[target].Path))
	}
	if labels > 0 {
		notes = append(notes, "the VM's security label is this host's own now")
	}
	ownSockets(&def)
	rewritten, err := def.Marshal()
	if err != nil {
		return "", nil, messages.Errorf(messages.CodeBackupCorrupt, "the VM's definition cannot be written: %w", err)
	}
	if err := checkForeign(&def, rewritten, restored); err != nil {
		return "", nil, err
	}
	return rewritten, notes, nil
}

// onFile puts a disk on a file. The device stays as the guest knows it; everything that described
// the old storage goes.
func onFile(disk libvirtxml.DomainDisk, source Source) libvirtxml.DomainDisk {
	disk.Source = &libvirtxml.DomainDiskSource{File: &libvirtxml.DomainDiskSourceFile{File: source.Path}}
	disk.BackingStore, disk.Mirror, disk.Encryption, disk.Auth = nil, nil, nil, nil
	if disk.Device == "lun" {
		disk.Device, disk.RawIO, disk.SGIO = "disk", "", ""
	}
	driver := libvirtxml.DomainDiskDriver{Name: "qemu"}
	if disk.Driver != nil {
		driver = *disk.Driver
	}
	driver.Type = source.Format
	if source.Format != "qcow2" {
		driver.MetadataCache = nil
	}
	disk.Driver = &driver
	return disk
}

// Define defines a VM. The error has the code CodeVMExists when there is one of its name or UUID,
// which a definition would replace, CodeBackupCorrupt when libvirt refuses the definition, or
// CodeHypervisorDown.
func (h *Hypervisor) Define(ctx context.Context, definition string) error {
	_, err := call(ctx, h, func(conn *libvirt.Connect) (struct{}, error) {
		return struct{}{}, define(conn, definition)
	}, nil)
	return err
}

func define(conn *libvirt.Connect, definition string) error {
	var def libvirtxml.Domain
	if err := def.Unmarshal(definition); err != nil {
		return messages.Errorf(messages.CodeBackupCorrupt, "the VM's definition cannot be read: %w", err)
	}
	existing, err := conn.LookupDomainByName(def.Name)
	if is(err, libvirt.ERR_NO_DOMAIN) && def.UUID != "" {
		existing, err = conn.LookupDomainByUUIDString(def.UUID)
	}
	if err == nil {
		free(existing)
		return messages.Errorf(messages.CodeVMExists, "a VM named %s or with the UUID %s exists", def.Name, def.UUID)
	}
	if !is(err, libvirt.ERR_NO_DOMAIN) {
		return err
	}
	dom, err := conn.DomainDefineXML(definition)
	if err != nil {
		return messages.Errorf(messages.CodeBackupCorrupt, "libvirt refuses the definition of %s: %w", def.Name, plain(err)).
			WithHint("Correct the backup's domain.xml for this host and define the VM by hand (virsh define); its disks are restored.")
	}
	free(dom)
	return nil
}
