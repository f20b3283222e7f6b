package hypervisor

import (
	"context"
	"fmt"
	"os"
	"os/user"
	"strconv"
	"strings"

	"libvirt.org/go/libvirt"
	"libvirt.org/go/libvirtxml"

	"github.com/nasfleet/nasfleet/messages"
)

// State says whether a VM has a QEMU process.
type State int

// The states of a VM.
const (
	Stopped State = iota
	Running
	// Paused has a QEMU process and a guest that does nothing: it can be backed up and not frozen.
	Paused
)

// Active says whether the VM has a QEMU process, which holds its disks.
func (s State) Active() bool { return s != Stopped }

func (s State) String() string {
	switch s {
	case Running:
		return "running"
	case Paused:
		return "paused"
	}
	return "stopped"
}

// Domain is a VM as libvirt knows it at a moment.
type Domain struct {
	Name  string
	UUID  string
	State State
	// XML defines the VM again. It is the persistent definition where there is one, and holds no
	// secrets.
	XML string
	// Disks are those of the running VM, hot-plugged ones included, or those a stopped VM will
	// start with, in the order of the definition.
	Disks []Disk
	// Skipped are the devices that cannot be backed up or need not be.
	Skipped []Skipped
	// UID and GID are what an active VM's QEMU runs as: it must be able to write in the folders of
	// its backup's socket and scratch files.
	UID, GID int
}

// PrepareDir makes a folder that only root and the VM's QEMU can enter, for the socket and the
// scratch files of its backup. Every folder above it must let QEMU pass (mode o+x).
func (d Domain) PrepareDir(path string) error {
	if err := os.Mkdir(path, 0o700); err != nil {
		return fmt.Errorf("make the backup's folder: %w", err)
	}
	if err := os.Chown(path, d.UID, d.GID); err != nil {
		return fmt.Errorf("give the backup's folder to QEMU: %w", err)
	}
	return nil
}

// Domain describes a VM. The error has the code CodeVMNotFound or CodeHypervisorDown.
func (h *Hypervisor) Domain(ctx context.Context, name string) (Domain, error) {
	return call(ctx, h, func(conn *libvirt.Connect) (Domain, error) {
		dom, err := lookup(conn, name)
		if err != nil {
			return Domain{}, err
		}
		defer free(dom)
		return describe(conn, dom)
	}, nil)
}

// State is a cheap look at a VM's state. The error has the code CodeVMNotFound or CodeHypervisorDown.
func (h *Hypervisor) State(ctx context.Context, name string) (State, error) {
	return call(ctx, h, func(conn *libvirt.Connect) (State, error) {
		dom, err := lookup(conn, name)
		if err != nil {
			return Stopped, err
		}
		defer free(dom)
		return stateOf(dom)
	}, nil)
}

func stateOf(dom *libvirt.Domain) (State, error) {
	state, _, err := dom.GetState()
	if err != nil {
		return Stopped, err
	}
	switch state {
	case libvirt.DOMAIN_SHUTOFF:
		return Stopped, nil
	case libvirt.DOMAIN_PAUSED, libvirt.DOMAIN_PMSUSPENDED:
		return Paused, nil
	case libvirt.DOMAIN_CRASHED:
		// A crashed guest's QEMU may have been kept.
		if active, err := dom.IsActive(); err != nil || !active {
			return Stopped, err
		}
		return Paused, nil
	}
	return Running, nil
}

func describe(conn *libvirt.Connect, dom *libvirt.Domain) (d Domain, err error) {
	if d.Name, err = dom.GetName(); err != nil {
		return Domain{}, err
	}
	if d.UUID, err = dom.GetUUIDString(); err != nil {
		return Domain{}, err
	}
	if d.State, err = stateOf(dom); err != nil {
		return Domain{}, err
	}
	if d.XML, err = dom.GetXMLDesc(libvirt.DOMAIN_XML_INACTIVE); err != nil {
		return Domain{}, err
	}
	now := d.XML
	if d.State.Active() {
		if now, err = dom.GetXMLDesc(0); err != nil {
			return Domain{}, err
		}
	}
	var def libvirtxml.Domain
	if err := def.Unmarshal(now); err != nil {
		return Domain{}, fmt.Errorf("read the definition of %s: %w", d.Name, err)
	}
	if d.State.Active() {
		if d.UID, d.GID, err = qemuOwner(def); err != nil {
			return Domain{}, err
		}
	}
	d.Disks, d.Skipped = disksOf(def)
	for i := range d.Disks {
		locate(conn, dom, &d.Disks[i])
	}
	return d, nil
}

// locate adds what the definition does not say: the size, and where a volume of a pool lies.
// What libvirt cannot tell (a file that is missing, say) is left out; whoever opens the disk finds out.
func locate(conn *libvirt.Connect, dom *libvirt.Domain, d *Disk) {
	if info, err := dom.GetBlockInfo(d.Target, 0); err == nil {
		d.SizeBytes = int64(info.Capacity)
	}
	if d.Kind != KindVolume {
		return
	}
	pool, err := conn.LookupStoragePoolByName(d.pool)
	if err != nil {
		return
	}
	defer func() { _ = pool.Free() }()
	volume, err := pool.LookupStorageVolByName(d.volume)
	if err != nil {
		return
	}
	defer func() { _ = volume.Free() }()
	info, err := volume.GetInfo()
	if err != nil {
		return
	}
	path, err := volume.GetPath()
	if err != nil {
		return
	}
	switch info.Type {
	case libvirt.STORAGE_VOL_FILE:
		d.Kind, d.Path = KindFile, path
	case libvirt.STORAGE_VOL_BLOCK:
		d.Kind, d.Path = KindBlock, path
	}
}

// qemuOwner reads what QEMU runs as from the label of libvirt's DAC driver: +uid:+gid, or names.
func qemuOwner(def libvirtxml.Domain) (uid, gid int, err error) {
	for _, l := range def.SecLabel {
		if l.Model == "dac" && l.Label != "" {
			return parseOwner(l.Label)
		}
	}
	return 0, 0, nil // without the driver QEMU runs as libvirtd does
}

func parseOwner(label string) (uid, gid int, err error) {
	u, g, ok := strings.Cut(label, ":")
	if !ok {
		return 0, 0, fmt.Errorf("the label %q of QEMU is not user:group", label)
	}
	if uid, err = id(u, func(name string) (string, error) {
		found, err := user.Lookup(name)
		if err != nil {
			return "", err
		}
		return found.Uid, nil
	}); err != nil {
		return 0, 0, err
	}
	gid, err = id(g, func(name string) (string, error) {
		found, err := user.LookupGroup(name)
		if err != nil {
			return "", err
		}
		return found.Gid, nil
	})
	return uid, gid, err
}

// id reads a numeric id or looks a name up. A plus sign says that it is a number.
func id(s string, find func(string) (string, error)) (int, error) {
	number, numeric := strings.CutPrefix(s, "+")
	if !numeric {
		if found, err := find(s); err == nil {
			number = found
		}
	}
	n, err := strconv.ParseUint(number, 10, 32)
	if err != nil {
		return 0, fmt.Errorf("%q is no user or group", s)
	}
	return int(n), nil
}

// errStopped is for a VM that has no QEMU process when it needs one.
func errStopped(name string, cause error) *messages.Error {
	if cause == nil {
		return messages.Errorf(messages.CodeVMStateChanged, "%s does not run", name)
	}
	return messages.Errorf(messages.CodeVMStateChanged, "%s does not run any more: %w", name, cause)
}
