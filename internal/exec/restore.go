package exec

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/nasfleet/nasfleet/internal/exec/copier"
	"github.com/nasfleet/nasfleet/internal/exec/hypervisor"
	"github.com/nasfleet/nasfleet/internal/exec/repository"
	"github.com/nasfleet/nasfleet/internal/exec/storaged"
	"github.com/nasfleet/nasfleet/messages"
)

// maxDomainXML bounds the definition of a VM that is read from a repository (bytes).
const maxDomainXML = 4 << 20

// restoring is a restore under way.
type restoring struct {
	e       *Executor
	ws      *workspace
	cmd     *messages.RestoreBackup
	r       Reporter
	backup  *storedBackup
	limiter *copier.Limiter
	// to says where each disk goes, in the order of the manifest.
	to    []*restoreTarget
	notes []string
}

// restoreTarget is where one disk is restored to.
type restoreTarget struct {
	disk repository.Disk
	// path is what the disk will be; tmp is the new file that becomes it at the end, "" where an
	// existing disk is overwritten in place.
	path, tmp, format string
	// backing is what lies below an existing disk.
	backing []storaged.Image
	// remote is the disk to overwrite if it lies on another machine.
	remote *hypervisor.Disk
	// restored says that an attempt before this one has restored the disk, and died before it could say so.
	restored bool

	// The rest is there once the disk is open.
	stored     storedDisk
	check      *diskCheck
	from, into *storaged.Daemon
}

// restore does a RestoreBackup. The digests taken with the backup are compared on the way: a
// restore that succeeds has brought back what was backed up.
func (e *Executor) restore(ctx context.Context, ws *workspace, cmd *messages.RestoreBackup, r Reporter) (Outcome, error) {
	t := &restoring{e: e, ws: ws, cmd: cmd, r: r, limiter: ws.limiter}
	r.Phase(messages.PhaseMounting)
	var err error
	if t.backup, err = e.stored(ctx, ws, cmd.Backup, cmd.Details); err != nil {
		return Outcome{}, err
	}
	defer t.backup.wipe()
	chosen, err := t.choose()
	if err != nil {
		return Outcome{}, err
	}
	switch {
	case cmd.ToVM != "":
		err = t.aimAtVM(ctx, chosen)
	case len(cmd.ToRBD) > 0:
		err = t.aimAtRBD(ctx, chosen)
	default:
		err = t.onTarget(ctx, func() error { return t.aimAtDir(chosen) })
	}
	if err != nil {
		return Outcome{}, err
	}
	domain, err := t.domain(ctx)
	if err != nil {
		return Outcome{}, err
	}
	r.Phase(messages.PhaseCopying)
	if err := t.copy(ctx); err != nil {
		return Outcome{}, err
	}
	r.Phase(messages.PhaseCommitting)
	out := Outcome{BackupID: cmd.Backup.ID, Restored: map[string]string{}, Notes: t.notes}
	for _, to := range t.to {
		if err := t.onTarget(ctx, func() error { return t.settle(to) }); err != nil {
			return Outcome{}, err
		}
		out.Restored[to.disk.Name] = to.path
	}
	if domain != "" {
		if err := e.cfg.Hypervisor.Define(ctx, domain); err != nil {
			return Outcome{}, err
		}
	}
	return out, nil
}

// choose returns the disks that were asked for.
func (t *restoring) choose() ([]repository.Disk, error) {
	all := t.backup.manifest().Disks
	wanted := t.cmd.Disks
	if len(t.cmd.ToRBD) > 0 {
		wanted = slices.Sorted(maps.Keys(t.cmd.ToRBD))
	}
	if len(wanted) == 0 {
		return all, nil
	}
	var names []string
	for _, d := range all {
		names = append(names, d.Name)
	}
	for _, want := range wanted {
		if !slices.Contains(names, want) {
			return nil, messages.Errorf(messages.CodeDiskNotFound, "backup %s has no disk %s", t.cmd.Backup.ID, want).
				WithHint("The backup has these disks: %s.", strings.Join(names, ", "))
		}
	}
	return slices.DeleteFunc(slices.Clone(all), func(d repository.Disk) bool { return !slices.Contains(wanted, d.Name) }), nil
}

// domain returns the XML to define, its disks where they are going to be; "" unless asked for.
func (t *restoring) domain(ctx context.Context) (string, error) {
	if !t.cmd.Define {
		return "", nil
	}
	if t.e.cfg.Hypervisor == nil {
		return "", messages.Errorf(messages.CodeHypervisorDown, "this host was set up without libvirt")
	}
	if t.backup.manifest().DomainFile == "" {
		return "", messages.Errorf(messages.CodeVMNotFound, "backup %s is not of a vm", t.cmd.Backup.ID).
			WithHint("Restore the disks without --define.")
	}
	xml, err := t.backup.chain[0].ReadFile(ctx, t.backup.manifest().DomainFile, maxDomainXML)
	if err != nil {
		return "", err
	}
	sources := map[string]hypervisor.Source{}
	for _, to := range t.to {
		sources[to.disk.Name] = hypervisor.Source{Path: to.path, Format: to.format}
	}
	rewritten, notes, err := hypervisor.RewriteDisks(string(xml), sources)
	if err != nil {
		return "", err
	}
	t.notes = notes
	if dom, err := t.e.cfg.Hypervisor.Domain(ctx, t.cmd.Backup.VM); messages.CodeOf(err) != messages.CodeVMNotFound {
		if err == nil && t.defined(dom) {
			return "", nil
		}
		if err == nil {
			err = messages.Errorf(messages.CodeVMExists, "vm %s is defined", t.cmd.Backup.VM)
		}
		return "", err
	}
	return rewritten, nil
}

// defined says whether an attempt before this one has defined the VM, and died before it could say so.
func (t *restoring) defined(dom hypervisor.Domain) bool {
	for _, to := range t.to {
		mine := func(d hypervisor.Disk) bool { return d.Target == to.disk.Name && d.Path == to.path }
		if !to.restored || !slices.ContainsFunc(dom.Disks, mine) {
			return false
		}
	}
	return true
}

// copy opens every disk on both sides before it writes to the first: what is wrong with one of
// them is found while a VM's other disks are still what they were.
func (t *restoring) copy(ctx context.Context) error {
	todo := slices.DeleteFunc(slices.Clone(t.to), func(to *restoreTarget) bool { return to.restored })
	stored, err := t.backup.disks(ctx, disksOf(todo))
	if err != nil {
		return err
	}
	for i, d := range stored {
		todo[i].stored = d
	}
	if err := each(ctx, todo, t.open); err != nil {
		return err
	}
	if err := t.checkStopped(ctx); err != nil {
		return err
	}
	err = t.whileStopped(ctx, func(ctx context.Context) error { return each(ctx, todo, t.copyDisk) })
	if err != nil && t.cmd.ToDir == "" {
		return fmt.Errorf("a disk that was overwritten may be half old and half restored now: %w", err)
	}
	return err
}

func disksOf(targets []*restoreTarget) []repository.Disk {
	var disks []repository.Disk
	for _, to := range targets {
		disks = append(disks, to.disk)
	}
	return disks
}

// open opens one disk of the backup, and what it is restored to.
func (t *restoring) open(ctx context.Context, to *restoreTarget) (err error) {
	d := to.stored
	if to.from, err = t.ws.daemon(ctx, fmt.Sprintf("src%d", d.index)); err != nil {
		return err
	}
	if to.check, err = d.open(ctx, to.from, t.backup.pass, t.e.cfg.StallTimeout); err != nil {
		return err
	}
	t.ws.onClose("digests", func(context.Context) error { return to.check.Close() })
	if to.into, err = t.ws.daemon(ctx, fmt.Sprintf("dst%d", d.index)); err != nil {
		return err
	}
	if to.tmp != "" {
		return to.into.CreateDisk(ctx, d.name, storaged.NewDisk{Path: to.tmp, Format: to.format, Size: d.size})
	}
	return t.openExisting(ctx, to.into, to)
}

func (t *restoring) copyDisk(ctx context.Context, to *restoreTarget) error {
	d := to.stored
	_, err := runLane(ctx, lane{
		name: d.name, src: endpoint{socket: to.from.Socket(), export: d.name}, dst: endpoint{socket: to.into.Socket(), export: d.name},
		size: d.size, limiter: t.limiter, check: to.check, zeroHoles: to.tmp == "", report: t.r,
		stall: t.e.cfg.StallTimeout, stored: sourceSide,
	})
	if err != nil {
		return d.failed(ctx, died(err, to.from, to.into))
	}
	return errors.Join(t.closeTarget(ctx, to), to.into.Stop(), to.check.Close(), to.from.Stop())
}

// openExisting opens a disk to overwrite it. Its lock keeps the VM from being started meanwhile, where it has one.
func (t *restoring) openExisting(ctx context.Context, into *storaged.Daemon, to *restoreTarget) error {
	if err := t.openForWrite(ctx, into, to); err != nil {
		return err
	}
	size, err := exportSize(ctx, into.Socket(), to.disk.Name)
	if err != nil {
		return err
	}
	if size < to.disk.VirtualBytes {
		return messages.Errorf(messages.CodeTargetTooSmall, "%s has %d bytes, disk %s of the backup has %d", to.path, size, to.disk.Name, to.disk.VirtualBytes)
	}
	return nil
}

func (t *restoring) openForWrite(ctx context.Context, into *storaged.Daemon, to *restoreTarget) error {
	if to.remote == nil {
		return into.OpenForWrite(ctx, to.disk.Name, storaged.Disk{Path: to.path, Format: to.format, Backing: to.backing})
	}
	return t.e.openRemote(ctx, *to.remote, messages.CodeTargetWriteFailed, func(ctx context.Context, disk storaged.RemoteDisk) error {
		return into.OpenRemoteForWrite(ctx, to.disk.Name, disk)
	})
}
