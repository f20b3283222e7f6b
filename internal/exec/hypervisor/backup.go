package hypervisor

import (
	"context"
	"errors"
	"fmt"
	"time"

	"libvirt.org/go/libvirt"
	"libvirt.org/go/libvirtxml"

	"github.com/nasfleet/nasfleet/messages"
)

// endTimeout bounds the wait for a backup job to end, endPoll is how often is looked.
const (
	endTimeout = time.Minute
	endPoll    = 50 * time.Millisecond
)

// BackupSpec says how a running VM's disks are served.
type BackupSpec struct {
	// Domain is the VM's name.
	Domain string
	// Socket is the unix socket that QEMU serves NBD on: one export a disk, named by its target.
	// Its folder must be one that QEMU can write to (see Domain.PrepareDir), its path has at most
	// 107 bytes.
	Socket string
	// Disks to serve; the others are left alone.
	Disks   []BackupDisk
	Quiesce messages.Quiesce
	// Watchdog guards the freeze.
	Watchdog Watchdog
	// Checkpoint is made at the moment of the backup, with bitmaps for its disks; one without a
	// name is not. It is gone again when the backup does not begin.
	Checkpoint Checkpoint
}

// BackupDisk is a disk to serve.
type BackupDisk struct {
	// Target is the disk's name, such as vda.
	Target string
	// ScratchFile takes what the guest overwrites during the backup. libvirt creates it for QEMU's
	// user; when its file system is full the guest's writes fail.
	ScratchFile string
	// Since is the name of a checkpoint: the export says what has changed since then, by the dirty
	// bitmap DirtyBitmap. "" leaves that out.
	Since string
}

// DirtyBitmap returns the name of the dirty bitmap that the export of a disk with Since has.
func (d BackupDisk) DirtyBitmap() string { return "backup-" + d.Target }

// Begun says how a backup began.
type Begun struct {
	// At is when: whatever the guest had on its disks by then is in the backup.
	At time.Time
	// Quiesced says that the guest's file systems were frozen for the moment of the backup.
	Quiesced bool
	// Frozen is how long they were, at most: from before the freeze was asked for until the thaw was
	// answered. 0 when they were not.
	Frozen time.Duration
	// Note is worth telling when it is not empty: why the guest was not frozen, or not thawed.
	Note string
}

// BackupJob is the backup job of a VM.
type BackupJob struct {
	// Running says that there is one.
	Running bool
	// Socket is the unix socket it serves, "" for another kind of job. It tells whose job it is.
	Socket string
}

// BeginBackup starts a pull-mode backup job: from its moment on QEMU serves the disks as they were
// then, until EndBackup. A frozen guest is thawed at once, whatever becomes of the job; if its agent
// does not answer, the watchdog goes on trying after this has returned.
//
// After an error there is no job; when ctx ended first, the job and the freeze are taken back as
// soon as libvirt answers. The error has the code CodeVMNotFound, CodeVMStateChanged (the VM does
// not run), CodeDiskUnsupported (see checkIOThreads), CodeFreezeFailed, CodeChainBroken (a
// checkpoint of Since, or one of its bitmaps, is missing or cannot be trusted),
// CodeBackupBeginFailed or CodeHypervisorDown.
func (h *Hypervisor) BeginBackup(ctx context.Context, spec BackupSpec) (Begun, error) {
	return call(ctx, h, func(conn *libvirt.Connect) (Begun, error) {
		return h.begin(ctx, conn, spec)
	}, h.takeBack(spec))
}

// takeBack ends a backup that began when nobody waited for it any more.
func (h *Hypervisor) takeBack(spec BackupSpec) func(*libvirt.Connect, Begun) {
	return func(conn *libvirt.Connect, _ Begun) {
		if err := end(conn, spec.Domain, spec.Socket); err != nil {
			h.log.Error().Str("vm", spec.Domain).Err(plain(err)).Msg("a backup that nobody waits for does not end")
		}
		if spec.Checkpoint.Name == "" {
			return
		}
		dom, err := lookup(conn, spec.Domain)
		if err == nil {
			defer free(dom)
			_, err = deleteCheckpoint(dom, spec.Checkpoint)
		}
		if err != nil {
			h.log.Error().Str("vm", spec.Domain).Err(plain(err)).Msg("the checkpoint of a backup that nobody waits for stays")
		}
	}
}

func (h *Hypervisor) begin(ctx context.Context, conn *libvirt.Connect, spec BackupSpec) (Begun, error) {
	dom, err := lookup(conn, spec.Domain)
	if err != nil {
		return Begun{}, err
	}
	defer free(dom)
	state, err := stateOf(dom)
	if err != nil {
		return Begun{}, err
	}
	if !state.Active() {
		return Begun{}, errStopped(spec.Domain, nil)
	}
	// Found out before the freeze: libvirt would wait half a minute for the other job to end.
	if err := checkIdle(dom, spec.Domain); err != nil {
		return Begun{}, err
	}
	document, checkpoint, err := backupXML(conn, dom, spec)
	if err != nil {
		return Begun{}, err
	}
	f, err := h.freezer(dom, spec)
	if err != nil {
		return Begun{}, err
	}
	begun, err := f.around(ctx, spec.Quiesce, state, func() error { return dom.BackupBegin(document, checkpoint, 0) })
	if err == nil {
		return begun, nil
	}
	if endErr := end(conn, spec.Domain, spec.Socket); endErr != nil {
		h.log.Error().Str("vm", spec.Domain).Err(plain(endErr)).Msg("a backup that nobody wants does not end")
	}
	if spec.Checkpoint.Name != "" {
		// A bitmap of this name, which an earlier attempt left, may be why; it goes as well.
		if _, dropErr := deleteCheckpoint(dom, spec.Checkpoint); dropErr != nil {
			h.log.Error().Str("vm", spec.Domain).Err(plain(dropErr)).Msg("the checkpoint of a backup that did not begin stays")
		}
	}
	if state, stateErr := stateOf(dom); stateErr == nil && !state.Active() {
		return Begun{}, errStopped(spec.Domain, plain(err))
	}
	code := messages.CodeBackupBeginFailed
	if is(err, libvirt.ERR_CHECKPOINT_INCONSISTENT, libvirt.ERR_NO_DOMAIN_CHECKPOINT) {
		code = messages.CodeChainBroken
	}
	return Begun{}, messages.EnsureCode(code, fmt.Errorf("begin the backup of %s: %w", spec.Domain, plain(err)))
}

func (h *Hypervisor) freezer(dom *libvirt.Domain, spec BackupSpec) (freezer, error) {
	uuid, err := dom.GetUUIDString()
	if err != nil {
		return freezer{}, err
	}
	log := h.log.With().Str("vm", spec.Domain).Logger()
	return freezer{agent: dom, log: log, guard: func(ctx context.Context) (guard, error) {
		return h.startWatchdog(ctx, spec.Watchdog, uuid, log)
	}}, nil
}

// checkIdle refuses a VM that a job already works on: libvirt runs one at a time.
func checkIdle(dom *libvirt.Domain, name string) error {
	job, err := dom.GetJobStats(0)
	if is(err, libvirt.ERR_INTERNAL_ERROR) {
		// "backup job data missing": while a job begins or ends. libvirt 9.0 was also seen to stay so, after
		// many backups whose client was killed as they began.
		return messages.Errorf(messages.CodeBackupBeginFailed, "libvirt does not know what works on %s: %w", name, plain(err)).
			WithHint("If it stays so, restart libvirtd on the host: the guests go on.")
	}
	if err != nil {
		return err
	}
	switch {
	case job.Type == libvirt.DOMAIN_JOB_NONE:
		return nil
	case job.Operation == libvirt.DOMAIN_JOB_OPERATION_BACKUP:
		return messages.Errorf(messages.CodeBackupBeginFailed, "another backup of %s runs", name).
			WithHint("Wait for the other backup of the VM, or end it (virsh domjobabort).")
	}
	return messages.Errorf(messages.CodeBackupBeginFailed, "another job of libvirt works on %s", name).
		WithHint("Wait for the VM's other job, such as a migration or a save (virsh domjobinfo).")
}

// backupXML writes libvirt's domainbackup document, for a backup that does the guest no harm, and
// the domaincheckpoint document that goes with it, "" for none.
func backupXML(conn *libvirt.Connect, dom *libvirt.Domain, spec BackupSpec) (backup, checkpoint string, err error) {
	live, err := dom.GetXMLDesc(0)
	if err != nil {
		return "", "", err
	}
	var def libvirtxml.Domain
	if err := def.Unmarshal(live); err != nil {
		return "", "", fmt.Errorf("read the definition of %s: %w", spec.Domain, err)
	}
	if err := checkIOThreads(conn, def, spec); err != nil {
		return "", "", err
	}
	if backup, err = pullXML(def, spec); err != nil || spec.Checkpoint.Name == "" {
		return backup, "", err
	}
	checkpoint, err = checkpointXML(def, spec.Checkpoint, time.Time{})
	return backup, checkpoint, err
}

func pullXML(def libvirtxml.Domain, spec BackupSpec) (string, error) {
	wanted := make(map[string]BackupDisk, len(spec.Disks))
	for _, d := range spec.Disks {
		wanted[d.Target] = d
	}
	var disks libvirtxml.DomainBackupPullDisks
	if def.Devices != nil {
		for _, x := range def.Devices.Disks {
			disk := libvirtxml.DomainBackupPullDisk{Name: targetOf(x), Backup: "no"}
			if d, ok := wanted[disk.Name]; ok {
				disk.Backup, disk.BackupMode = "yes", "full"
				if d.Since != "" {
					disk.BackupMode, disk.Incremental, disk.ExportBitmap = "incremental", d.Since, d.DirtyBitmap()
				}
				disk.Scratch = &libvirtxml.DomainDiskSource{File: &libvirtxml.DomainDiskSourceFile{File: d.ScratchFile}}
				delete(wanted, disk.Name)
			}
			disks.Disks = append(disks.Disks, disk)
		}
	}
	for target := range wanted {
		return "", messages.Errorf(messages.CodeVMStateChanged, "%s has no disk %s any more", spec.Domain, target)
	}
	backup := libvirtxml.DomainBackup{Pull: &libvirtxml.DomainBackupPull{
		Server: &libvirtxml.DomainBackupPullServer{UNIX: &libvirtxml.DomainBackupPullServerUNIX{Socket: spec.Socket}},
		Disks:  &disks,
	}}
	return backup.Marshal()
}

// BackupJob looks for a backup job of a VM. The error has the code CodeVMNotFound or CodeHypervisorDown.
func (h *Hypervisor) BackupJob(ctx context.Context, name string) (BackupJob, error) {
	return call(ctx, h, func(conn *libvirt.Connect) (BackupJob, error) {
		dom, err := lookup(conn, name)
		if err != nil {
			return BackupJob{}, err
		}
		defer free(dom)
		return backupJob(dom)
	}, nil)
}

func backupJob(dom *libvirt.Domain) (BackupJob, error) {
	document, err := dom.BackupGetXMLDesc(0)
	if is(err, libvirt.ERR_NO_DOMAIN_BACKUP, libvirt.ERR_NO_DOMAIN) {
		return BackupJob{}, nil
	}
	if err != nil {
		if state, stateErr := stateOf(dom); stateErr == nil && !state.Active() {
			return BackupJob{}, nil
		}
		return BackupJob{}, err
	}
	job := BackupJob{Running: true}
	var backup libvirtxml.DomainBackup
	if err := backup.Unmarshal(document); err != nil {
		return BackupJob{}, fmt.Errorf("read the backup job: %w", err)
	}
	if backup.Pull != nil && backup.Pull.Server != nil && backup.Pull.Server.UNIX != nil {
		job.Socket = backup.Pull.Server.UNIX.Socket
	}
	return job, nil
}

// EndBackup ends the VM's backup job that serves the socket, and returns when it is gone and its
// scratch files can be removed. It leaves every other job alone. No such job, a VM that is stopped
// or gone: that is the end wished for, and nil. The error has the code CodeHypervisorDown, or
// CodeTimeout for a job that has not ended in a minute.
func (h *Hypervisor) EndBackup(ctx context.Context, name, socket string) error {
	_, err := call(ctx, h, func(conn *libvirt.Connect) (struct{}, error) {
		return struct{}{}, end(conn, name, socket)
	}, nil)
	return err
}

func end(conn *libvirt.Connect, name, socket string) error {
	dom, err := lookup(conn, name)
	if is(err, libvirt.ERR_NO_DOMAIN) {
		return nil
	}
	if err != nil {
		return err
	}
	defer free(dom)
	refusal := errors.New("not aborted yet")
	for deadline := time.Now().Add(endTimeout); time.Now().Before(deadline); time.Sleep(endPoll) {
		job, err := backupJob(dom)
		if err != nil || !job.Running || job.Socket != socket {
			return err
		}
		if refusal != nil {
			// What a refusal means shows in the next look: the job is gone, or it stays.
			refusal = plain(dom.AbortJob())
		}
	}
	if refusal == nil {
		refusal = errors.New("it was aborted")
	}
	return messages.Errorf(messages.CodeTimeout, "the backup job of %s has not ended in %v: %w", name, endTimeout, refusal)
}
