package messages

import "slices"

// Code names a kind of failure. Codes are stable: programs match on them, replay filters by them
// and docs/operations.md has a paragraph on each.
type Code string

// The codes of commands that cannot be obeyed as they stand. Sending the same again fails again.
const (
	CodeInvalidMessage     Code = "invalid_message"
	CodeUnsupportedVersion Code = "unsupported_version"
	CodeUnknownDetail      Code = "unknown_detail"
	CodeInvalidDetail      Code = "invalid_detail"
	CodePassphraseMissing  Code = "passphrase_missing"
	CodePassphraseUnsealed Code = "passphrase_not_sealed"
	CodePassphraseForeign  Code = "passphrase_unreadable"
	CodeWrongPassphrase    Code = "wrong_passphrase"
	CodeModeUnavailable    Code = "mode_unavailable"
	CodeChainBroken        Code = "chain_broken"
)

// The codes of commands that are not the publisher's own word. They are reported by hosts that were
// set up with the publisher's key.
const (
	CodeCommandUnsigned    Code = "command_unsigned"
	CodeCommandForged      Code = "command_forged"
	CodeCommandReaddressed Code = "command_readdressed"
	CodeCommandExpired     Code = "command_expired"
)

// The codes of what a job found at its source: the VM, its disks, the hypervisor.
const (
	CodeVMNotFound        Code = "vm_not_found"
	CodeVMRunning         Code = "vm_running"
	CodeVMExists          Code = "vm_exists"
	CodeDefinitionRefused Code = "definition_refused"
	CodePathNotAllowed    Code = "path_not_allowed"
	CodeVMStateChanged    Code = "vm_state_changed"
	CodeNoDisks           Code = "no_disks"
	CodeDiskNotFound      Code = "disk_not_found"
	CodeDiskUnsupported   Code = "disk_unsupported"
	CodeSourceEncrypted   Code = "source_encrypted"
	CodeSourceReadFailed  Code = "source_read_failed"
	CodeFreezeFailed      Code = "freeze_failed"
	CodeBackupBeginFailed Code = "backup_begin_failed"
	CodeHypervisorDown    Code = "hypervisor_unreachable"
	CodeScratchFull       Code = "scratch_full"
)

// The codes of what a job found at its target: the mount, the repository, the restored disk.
const (
	CodeRepositoryUnsupported Code = "repository_unsupported"
	CodeMountFailed           Code = "mount_failed"
	CodeRepositoryLost        Code = "repository_lost"
	CodeTargetFull            Code = "target_full"
	CodeTargetWriteFailed     Code = "target_write_failed"
	CodeTargetExists          Code = "target_exists"
	CodeTargetTooSmall        Code = "target_too_small"
	CodeBackupNotFound        Code = "backup_not_found"
	CodeBackupCorrupt         Code = "backup_corrupt"
	CodeBackupInUse           Code = "backup_in_use"
	CodeBackupNeeded          Code = "backup_needed"
	CodeAlreadyFull           Code = "already_full"
	CodeVerifyFailed          Code = "verify_failed"
)

// The codes of the job's own life and of the worker's tools.
const (
	CodeStorageDaemonFailed Code = "storage_daemon_failed"
	CodeTimeout             Code = "timeout"
	CodeJobTimeout          Code = "job_timeout"
	CodeJobNotFound         Code = "job_not_found"
	CodeJobOver             Code = "job_over"
	CodeCancelled           Code = "cancelled"
	CodeShuttingDown        Code = "shutting_down"
	CodeInternal            Code = "internal"
)

type codeFacts struct {
	retryable bool
	hint      string
}

// codeTable is the one place that says what a code means for a job: whether trying again can
// help, and what a person should do.
var codeTable = map[Code]codeFacts{
	CodeInvalidMessage:     {false, "Correct the command and publish it again under a new job id; docs/schema describes every field."},
	CodeUnsupportedVersion: {false, "Upgrade the hostworker, or publish the command in a version it knows."},
	CodeUnknownDetail:      {false, "Correct the spelling of the detail; nothing was backed up, so that a misspelt option is never ignored."},
	CodeInvalidDetail:      {false, "Give the detail one of the values that docs/schema lists."},
	CodePassphraseMissing:  {false, "Give a passphrase (publisher take --passphrase-file), or turn encryption off."},
	CodePassphraseUnsealed: {false, "Seal the passphrase for the host (publisher seal); then change it, because it has travelled in the clear."},
	CodePassphraseForeign:  {false, "Seal the passphrase again with this host's present key (publisher seal --zone Z --host H)."},
	CodeWrongPassphrase:    {false, "Give the passphrase the backup was taken with."},
	CodeModeUnavailable:    {false, "Use mode full or auto."},
	CodeChainBroken:        {false, "Take a full backup, which starts a new chain (mode full or auto)."},

	CodeCommandUnsigned:    {false, "Publish it with the publisher's key (publisher --keys DIR); this host takes no other commands."},
	CodeCommandForged:      {false, "Check that --publisher-key on the host is the key publisher signs with; if it is, somebody has altered the command or made it up."},
	CodeCommandReaddressed: {false, "Somebody has put a command of another job or host here: find out who may publish on backup.jobs."},
	CodeCommandExpired:     {false, "Publish it again (publisher replay), and check the clocks of the host and of the publisher."},

	CodeVMNotFound:        {false, "Check the name with virsh list --all on the host, and that its hostworker was started with --libvirt."},
	CodeVMRunning:         {false, "Shut the VM down first, or restore to a folder or another VM."},
	CodeVMExists:          {false, "Leave --define out, or undefine the VM of that name first."},
	CodeDefinitionRefused: {false, "Restore without --define, look at the backup's domain.xml, and define the VM by hand (virsh define)."},
	CodePathNotAllowed:    {false, "Name another folder, or allow this one on the host (hostworker --allow-path)."},
	CodeVMStateChanged:    {true, "The VM was started or stopped during its backup; the job is tried again."},
	CodeNoDisks:           {false, "The VM has no disk that can be backed up; the event lists the devices that were left out and why."},
	CodeDiskNotFound:      {false, "Check that the disk's file or device exists on the host and that its storage is mounted."},
	CodeDiskUnsupported:   {false, "Move the disk to a file or block device, or back it up on the storage it lives on."},
	CodeSourceEncrypted:   {false, "Back the VM up while it runs, or remove the encrypted disk from it."},
	CodeSourceReadFailed:  {true, "Check the storage of the VM's disk: reading it failed."},
	CodeFreezeFailed:      {true, "Check the guest agent, or let the command take a crash-consistent backup (quiesce best_effort)."},
	CodeBackupBeginFailed: {true, "See the cause; another backup or block job of the VM may still run (virsh domjobinfo)."},
	CodeHypervisorDown:    {true, "Check that libvirt answers on the host (hostworker doctor)."},
	CodeScratchFull:       {true, "Give the scratch folder more room (hostworker --scratch); the backup was stopped to protect the guest."},

	CodeRepositoryUnsupported: {false, "Use one of the repository types the host supports (hostworker doctor lists them)."},
	CodeMountFailed:           {true, "Check the repository's address, options and network; the cause holds what mount said."},
	CodeRepositoryLost:        {true, "Check the NAS and the network to it: the repository stopped answering, or its mount went away."},
	CodeTargetFull:            {false, "Free or add space on the repository, then replay the job (publisher replay)."},
	CodeTargetWriteFailed:     {true, "Check the repository's storage: writing to it failed."},
	CodeTargetExists:          {false, "Choose another target, or overwrite this one with --force."},
	CodeTargetTooSmall:        {false, "Enlarge the target disk to at least the size of the one in the backup."},
	CodeBackupNotFound:        {false, "List what exists with publisher ls; rebuild the catalog with publisher ls --refresh."},
	CodeBackupCorrupt:         {false, "Restore another backup; keep this one for examination."},
	CodeBackupInUse:           {true, "Another job works on this backup; it is tried again."},
	CodeBackupNeeded:          {false, "Delete the backups that need it first, or all of them at once (publisher delete --cascade)."},
	CodeAlreadyFull:           {false, "There is nothing to do: a full backup needs no other to be restored."},
	CodeVerifyFailed:          {false, "The bytes on the repository are not those that were copied: check its storage, then take a new backup."},

	CodeStorageDaemonFailed: {true, "See the cause; hostworker doctor checks the QEMU tools of the host."},
	CodeTimeout:             {true, "Something that should be quick took too long; check the repository and the hypervisor."},
	CodeJobTimeout:          {false, "Replay the job with more time (publisher take --timeout, hostworker --job-timeout), or find out what slows it down."},
	CodeJobNotFound:         {false, "Look for the job with publisher jobs; check its id, zone and host."},
	CodeJobOver:             {false, "See how it went with publisher job ID; publisher replay runs it again."},
	CodeCancelled:           {false, "The job was cancelled on request; publisher replay runs it again."},
	CodeShuttingDown:        {true, "The worker is stopping; the job starts again with the next worker of this host."},
	CodeInternal:            {true, "This is a defect or an unforeseen condition; the worker's log has the context."},
}

// Retryable says whether trying the same command again can help.
func (c Code) Retryable() bool { return codeTable[c].retryable }

// Hint returns one sentence that says what to do, or "" for a code that is not in the table.
func (c Code) Hint() string { return codeTable[c].hint }

// Codes lists every code, sorted.
func Codes() []Code {
	codes := make([]Code, 0, len(codeTable))
	for c := range codeTable {
		codes = append(codes, c)
	}
	slices.Sort(codes)
	return codes
}
