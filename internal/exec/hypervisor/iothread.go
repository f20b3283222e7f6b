package hypervisor

import (
	"fmt"

	"libvirt.org/go/libvirt"
	"libvirt.org/go/libvirtxml"

	"github.com/nasfleet/nasfleet/messages"
)

// firstSafeIOThread is the first QEMU whose NBD server survives a client that leaves a disk on an
// iothread. Before it, QEMU (7.2 was tried) fails the assertion in nbd_blockdev_client_closed that it
// is in its main thread, and takes the guest with it: at the end of every backup, or when the worker dies.
const firstSafeIOThread = 9_000_000

// checkIOThreads refuses a backup that would kill its guest.
func checkIOThreads(conn *libvirt.Connect, def libvirtxml.Domain, spec BackupSpec) error {
	target := threadedDisk(def, spec)
	if target == "" {
		return nil
	}
	version, err := conn.GetVersion()
	if err != nil {
		return fmt.Errorf("ask for QEMU's version: %w", plain(err))
	}
	if version >= firstSafeIOThread {
		return nil
	}
	return messages.Errorf(messages.CodeDiskUnsupported, "disk %s of %s is on an iothread, and QEMU %s would die with its guest when the backup ends",
		target, spec.Domain, dotted(version)).
		WithHint("Upgrade the host to QEMU 9.0 or newer, take the disk off its iothread, or back the VM up while it is stopped.")
}

// threadedDisk returns the first of the disks to be served that has an iothread, of its own or by
// way of its SCSI controller; "" if there is none.
func threadedDisk(def libvirtxml.Domain, spec BackupSpec) string {
	if def.Devices == nil {
		return ""
	}
	wanted := map[string]bool{}
	for _, d := range spec.Disks {
		wanted[d.Target] = true
	}
	controllers := map[uint]bool{}
	for _, c := range def.Devices.Controllers {
		if c.Type == "scsi" && c.Index != nil && c.Driver != nil && c.Driver.IOThread != 0 {
			controllers[*c.Index] = true
		}
	}
	for _, x := range def.Devices.Disks {
		if !wanted[targetOf(x)] {
			continue
		}
		if x.Driver != nil && (x.Driver.IOThread != nil || x.Driver.IOThreads != nil) {
			return targetOf(x)
		}
		if x.Address != nil && x.Address.Drive != nil && x.Address.Drive.Controller != nil &&
			x.Target != nil && x.Target.Bus == "scsi" && controllers[*x.Address.Drive.Controller] {
			return targetOf(x)
		}
	}
	return ""
}
