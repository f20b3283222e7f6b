package hypervisor

import (
	"context"
	"fmt"
	"slices"
	"time"

	"libvirt.org/go/libvirt"
	"libvirt.org/go/libvirtxml"

	"github.com/nasfleet/nasfleet/messages"
)

// Checkpoint is a moment of a VM since which libvirt knows what has changed: by a dirty bitmap of
// the checkpoint's name in the qcow2 of each of its disks. Since libvirt 6.7 each bitmap records by
// itself, so that deleting one checkpoint does not touch another's.
type Checkpoint struct {
	Name string
	// Description is for people and for telling whose it is.
	Description string
	// Disks are the targets that have a bitmap.
	Disks []string
}

// Checkpoints lists a VM's checkpoints, parents first. The error has the code CodeVMNotFound or
// CodeHypervisorDown.
func (h *Hypervisor) Checkpoints(ctx context.Context, domain string) ([]Checkpoint, error) {
	return call(ctx, h, func(conn *libvirt.Connect) ([]Checkpoint, error) {
		dom, err := lookup(conn, domain)
		if err != nil {
			return nil, err
		}
		defer free(dom)
		return checkpoints(dom)
	}, nil)
}

func checkpoints(dom *libvirt.Domain) ([]Checkpoint, error) {
	handles, err := dom.ListAllCheckpoints(libvirt.DOMAIN_CHECKPOINT_LIST_TOPOLOGICAL)
	if err != nil {
		return nil, err
	}
	var list []Checkpoint
	for i := range handles {
		defer func() { _ = handles[i].Free() }()
		c, err := describeCheckpoint(&handles[i])
		if err != nil {
			return nil, err
		}
		list = append(list, c)
	}
	return list, nil
}

func describeCheckpoint(handle *libvirt.DomainCheckpoint) (Checkpoint, error) {
	document, err := handle.GetXMLDesc(libvirt.DOMAIN_CHECKPOINT_XML_NO_DOMAIN)
	if err != nil {
		return Checkpoint{}, err
	}
	var x libvirtxml.DomainCheckpoint
	if err := x.Unmarshal(document); err != nil {
		return Checkpoint{}, fmt.Errorf("read a checkpoint: %w", err)
	}
	c := Checkpoint{Name: x.Name, Description: x.Description}
	if x.Disks != nil {
		for _, d := range x.Disks.Disks {
			if d.Checkpoint == "bitmap" {
				c.Disks = append(c.Disks, d.Name)
			}
		}
	}
	return c, nil
}

// checkpointXML writes libvirt's domaincheckpoint document. Every disk of the VM is named: libvirt
// would give those left out a bitmap too.
func checkpointXML(def libvirtxml.Domain, c Checkpoint, created time.Time) (string, error) {
	x := libvirtxml.DomainCheckpoint{Name: c.Name, Description: c.Description, Disks: &libvirtxml.DomainCheckpointDisks{}}
	if !created.IsZero() {
		x.CreationTime = fmt.Sprint(created.Unix())
	}
	if def.Devices != nil {
		for _, d := range def.Devices.Disks {
			disk := libvirtxml.DomainCheckpointDisk{Name: targetOf(d), Checkpoint: "no"}
			if slices.Contains(c.Disks, disk.Name) {
				disk.Checkpoint, disk.Bitmap = "bitmap", c.Name
			}
			x.Disks.Disks = append(x.Disks.Disks, disk)
		}
	}
	return x.Marshal()
}

// AdoptCheckpoint makes libvirt know a checkpoint again that it has forgotten while the bitmaps
// stayed in the disks' qcow2, as after the VM was defined again. The VM must run. An error of
// CodeChainBroken says that a bitmap is missing or cannot be trusted; other codes are
// CodeVMNotFound and CodeHypervisorDown.
func (h *Hypervisor) AdoptCheckpoint(ctx context.Context, domain string, c Checkpoint, created time.Time) error {
	_, err := call(ctx, h, func(conn *libvirt.Connect) (struct{}, error) {
		dom, err := lookup(conn, domain)
		if err != nil {
			return struct{}{}, err
		}
		defer free(dom)
		return struct{}{}, redefine(dom, c, created, libvirt.DOMAIN_CHECKPOINT_CREATE_REDEFINE_VALIDATE)
	}, nil)
	return err
}

func redefine(dom *libvirt.Domain, c Checkpoint, created time.Time, flags libvirt.DomainCheckpointCreateFlags) error {
	live, err := dom.GetXMLDesc(0)
	if err != nil {
		return err
	}
	var def libvirtxml.Domain
	if err := def.Unmarshal(live); err != nil {
		return fmt.Errorf("read the VM's definition: %w", err)
	}
	document, err := checkpointXML(def, c, created)
	if err != nil {
		return err
	}
	handle, err := dom.CreateCheckpointXML(document, libvirt.DOMAIN_CHECKPOINT_CREATE_REDEFINE|flags)
	if err != nil {
		return messages.Errorf(messages.CodeChainBroken, "checkpoint %s: %w", c.Name, plain(err))
	}
	_ = handle.Free()
	return nil
}

// DeleteCheckpoint removes a checkpoint and its bitmaps. Disks are those that may have a bitmap of
// its name; where libvirt knows the checkpoint, its own are taken. What is missing of it is no
// error. libvirt touches the bitmaps of a running VM alone: of a stopped one the checkpoint stays,
// and false is returned. The error has the code CodeHypervisorDown.
func (h *Hypervisor) DeleteCheckpoint(ctx context.Context, domain string, c Checkpoint) (bool, error) {
	return call(ctx, h, func(conn *libvirt.Connect) (bool, error) {
		dom, err := lookup(conn, domain)
		if messages.CodeOf(err) == messages.CodeVMNotFound {
			return true, nil
		}
		if err != nil {
			return false, err
		}
		defer free(dom)
		return deleteCheckpoint(dom, c)
	}, nil)
}

func deleteCheckpoint(dom *libvirt.Domain, c Checkpoint) (bool, error) {
	if state, err := stateOf(dom); err != nil || !state.Active() {
		return false, err
	}
	handle, err := dom.CheckpointLookupByName(c.Name, 0)
	if err == nil {
		defer func() { _ = handle.Free() }()
		known, err := describeCheckpoint(handle)
		if err != nil {
			return false, err
		}
		c.Disks = known.Disks
		if handle.Delete(0) == nil {
			return true, nil
		}
		// One of its bitmaps is not there. libvirt then removes none of the others.
		if err := handle.Delete(libvirt.DOMAIN_CHECKPOINT_DELETE_METADATA_ONLY); err != nil {
			return false, err
		}
	} else if !is(err, libvirt.ERR_NO_DOMAIN_CHECKPOINT) {
		return false, err
	}
	for _, target := range c.Disks {
		if err := deleteBitmap(dom, c.Name, target); err != nil {
			return false, err
		}
	}
	return true, nil
}

// deleteBitmap removes a bitmap of a checkpoint that libvirt does not know, by way of one that it does.
func deleteBitmap(dom *libvirt.Domain, name, target string) error {
	err := redefine(dom, Checkpoint{Name: name, Disks: []string{target}}, time.Unix(1, 0), 0)
	if messages.CodeOf(err) == messages.CodeChainBroken {
		return nil // the VM has no such disk any more
	}
	if err != nil {
		return err
	}
	handle, err := dom.CheckpointLookupByName(name, 0)
	if err != nil {
		return err
	}
	defer func() { _ = handle.Free() }()
	if handle.Delete(0) == nil {
		return nil
	}
	return handle.Delete(libvirt.DOMAIN_CHECKPOINT_DELETE_METADATA_ONLY)
}
