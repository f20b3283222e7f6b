package exec

import (
	"context"
	"slices"
	"time"

	"github.com/nasfleet/nasfleet/internal/exec/hypervisor"
	"github.com/nasfleet/nasfleet/internal/exec/repository"
	"github.com/nasfleet/nasfleet/internal/exec/storaged"
	"github.com/nasfleet/nasfleet/messages"
)

// source is where a backup's data comes from: a running VM, disks that nobody writes, or a chain of backups.
type source interface {
	// prepare finds the disks and their sizes. The guest does not notice.
	prepare(ctx context.Context, ws *workspace) ([]sourceDisk, error)
	// begin makes the disks readable over NBD as they are at one moment. It may be called again
	// after an error.
	begin(ctx context.Context, ws *workspace, p point) (moment, error)
	// check says whether the copy may go on and can still be trusted. It is called about once a
	// second during the copy, and after it.
	check(ctx context.Context) error
	// end lets go of the source as soon as everything is copied. It may be called again.
	end(ctx context.Context) error
	// keep says that the backup is committed: the checkpoint that begin made outlives the job.
	keep()
	// describe fills in the manifest's part on the source.
	describe(*repository.Manifest)
	// domainXML defines the VM again; "" where there is none.
	domainXML() string
}

// liveSource is a source of disks that change, and can be asked what has changed since a backup.
type liveSource interface {
	source
	// noIncremental says why the source can give full backups only; nil if it can give others.
	noIncremental() *full
	// domain is the VM; the zero value for images.
	domain() hypervisor.Domain
	// checkpoints are what an incremental of the VM can continue.
	checkpoints(ctx context.Context) ([]hypervisor.Checkpoint, error)
}

// noBitmaps says that none of a VM's disks can have a bitmap.
func noBitmaps(dom hypervisor.Domain) *full {
	if !slices.ContainsFunc(dom.Disks, func(d hypervisor.Disk) bool { return d.Format == storaged.FormatQcow2 }) {
		return fullBecause(messages.FullNoBitmaps, "no disk of vm %s is a qcow2 image, which alone can say what has changed", dom.Name)
	}
	return nil
}

// sourceDisk is a disk to copy, and the NBD export it can be read from after begin.
type sourceDisk struct {
	name string
	// size in bytes.
	size         int64
	path, format string
	encrypted    bool

	socket, export string
	// guest is nil unless a running VM's own QEMU serves it.
	guest *handshakes
	// daemon serves it; nil for a running VM's own QEMU.
	daemon *storaged.Daemon
	// stored is set for a disk of a chain of backups, which is compared with the digests of each.
	stored *storedDisk
	check  *diskCheck
}

// from is the export that the disk is read from.
func (d sourceDisk) from() endpoint {
	return endpoint{socket: d.socket, export: d.export, guest: d.guest}
}

// moment is the point in time that a backup shows.
type moment struct {
	at       time.Time
	quiesced bool
	frozen   time.Duration
	notes    []string
	// held is the checkpoint of that moment, where begin was not to make it.
	held hypervisor.Checkpoint
}

// source finds out what a command is to back up.
func (e *Executor) source(ctx context.Context, cmd *messages.TakeBackup) (liveSource, error) {
	if len(cmd.Images) > 0 {
		return newImageSource(ctx, e, cmd.Images)
	}
	if e.cfg.Hypervisor == nil {
		return nil, messages.Errorf(messages.CodeVMNotFound, "vm %s: this host was set up without libvirt", cmd.VM).
			WithHint("Start the hostworker with --libvirt, or back up images.")
	}
	dom, err := e.cfg.Hypervisor.Domain(ctx, cmd.VM)
	if err != nil {
		return nil, err
	}
	if len(dom.Disks) == 0 {
		return nil, messages.Errorf(messages.CodeNoDisks, "vm %s has no disk to back up (%s)", cmd.VM, skippedText(dom.Skipped))
	}
	for _, d := range dom.Disks {
		if d.Encrypted && !cmd.Details.Encryption {
			return nil, messages.Errorf(messages.CodeSourceEncrypted, "disk %s of vm %s is encrypted and the backup would not be", d.Target, cmd.VM).
				WithHint("Turn encryption on for this backup: its owner did not mean the disk to be readable on the repository.")
		}
	}
	if dom.State != hypervisor.Stopped {
		// Before anything that may fail: its scratch file grows with what the guest writes.
		if err := e.endLeftover(ctx, cmd.VM, cmd.JobID); err != nil {
			return nil, err
		}
		return newRunningSource(e, dom, cmd.Quiesce), nil
	}
	return newStoppedSource(ctx, e, dom)
}
