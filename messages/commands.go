package messages

import (
	"encoding/json"
	"strings"
	"time"
)

// Version is the newest version of the contract; a command with a higher one is refused.
const Version = 1

// DefaultAttempts is how often a job is tried when its command does not say.
const DefaultAttempts = 3

// maxAttempts bounds a command's attempts.
const maxAttempts = 100

// DefaultFullEvery is how many backups a chain has at most when the command does not say.
const DefaultFullEvery = 14

// MaxChain bounds every chain: a restore opens all of its backups at once.
const MaxChain = 128

// maxTimeout bounds a command's timeout (seconds): the stream keeps commands for 30 days.
const maxTimeout = 30 * 24 * 60 * 60

// Type says what a command asks for.
type Type string

// The commands.
const (
	TypeTake    Type = "TakeBackup"
	TypeRestore Type = "RestoreBackup"
	TypeVerify  Type = "VerifyBackup"
	TypeDelete  Type = "DeleteBackup"
	TypeRekey   Type = "RekeyBackup"
	TypeList    Type = "ListBackups"
	// TypeConsolidate is the longest.
	TypeConsolidate Type = "ConsolidateBackup"
)

// Header begins every command.
type Header struct {
	// Version of the contract the command is written in; 1.
	Version int  `json:"version"`
	Type    Type `json:"type"`
	// JobID is a ULID, and the command's Nats-Msg-Id. A backup's id is the id of the job that took it.
	JobID    string    `json:"job_id"`
	IssuedAt time.Time `json:"issued_at"`
	// Attempts bounds how often the job is tried; 0 means DefaultAttempts.
	Attempts int `json:"attempts,omitempty"`
	// Timeout is how long the job may take in seconds, all attempts and the waits between them
	// together, from the moment it is accepted first. 0 means the host's own limit.
	Timeout int `json:"timeout,omitempty"`
	// Replays is the id of the job that this one runs again; "" for a job that is no replay.
	Replays string `json:"replays,omitempty"`
}

// MaxAttempts returns the attempts in force.
func (h Header) MaxAttempts() int {
	if h.Attempts == 0 {
		return DefaultAttempts
	}
	return h.Attempts
}

// Head returns the header; it makes each command a Command.
func (h Header) Head() Header { return h }

// Command is one of *TakeBackup, *RestoreBackup, *VerifyBackup, *DeleteBackup, *RekeyBackup, *ConsolidateBackup,
// *ListBackups.
type Command interface {
	Head() Header
	// Target is what the command works on, for people: a VM, an image, a backup, a repository.
	Target() string
	// Validate checks every field and returns an *Error that names the first bad one.
	Validate() error
}

// TakeBackup asks for a backup of a VM or of disk images that belong to no VM.
type TakeBackup struct {
	Header
	// VM is the name of a libvirt domain on the host. Exactly one of VM and Images is given.
	VM string `json:"vm,omitempty"`
	// Images are disks of no VM.
	Images []Image `json:"images,omitempty"`
	// BackupPath is a folder below the repository's root to keep the backup in; "" is the root.
	BackupPath string     `json:"backup_path,omitempty"`
	Repository Repository `json:"repository"`
	// Quiesce asks the guest agent to freeze the file systems; off by default.
	Quiesce Quiesce `json:"quiesce,omitempty"`
	// Mode is full, incremental or auto. Without it the backup is a full one that leaves nothing in
	// the VM; with any of the three the VM gets a checkpoint where it can, which the next
	// incremental continues from.
	Mode Mode `json:"mode,omitempty"`
	// FullEvery is how many backups a chain may have before auto takes a full one, that one
	// included; 0 means DefaultFullEvery, 1 that every backup is full.
	FullEvery int     `json:"full_every,omitempty"`
	Details   Details `json:"details,omitzero"`
}

// ChainLimit returns the FullEvery in force.
func (c *TakeBackup) ChainLimit() int {
	if c.FullEvery == 0 {
		return DefaultFullEvery
	}
	return c.FullEvery
}

// Image is a disk that belongs to no VM. In JSON it is its path, or an object when it states its format.
type Image struct {
	// Path is absolute.
	Path string `json:"path"`
	// Format is qcow2, raw, or "" to tell it from the first bytes. A qcow2 that names other files
	// is only opened when its format is stated.
	Format string `json:"format,omitempty"`
}

// RestoreBackup asks for the disks of a backup: as files, over the disks of a stopped VM, or over RBD images.
type RestoreBackup struct {
	Header
	Backup BackupRef `json:"backup"`
	// Disks restricts the restore to some disks, such as vda; empty is all of them.
	Disks []string `json:"disks,omitempty"`
	// ToDir is an absolute path on the host; each disk becomes <ToDir>/<disk>.<Format>.
	ToDir string `json:"to_dir,omitempty"`
	// Format of the files in ToDir: qcow2 (the default) or raw.
	Format string `json:"format,omitempty"`
	// ToVM names a stopped VM whose disks are overwritten. Exactly one of ToDir, ToVM and ToRBD is given.
	ToVM string `json:"to_vm,omitempty"`
	// ToRBD names images of Ceph that exist and are overwritten, as pool/image, by the disks of the backup that they
	// become. No other disk is restored. The host has to allow the pools.
	ToRBD map[string]string `json:"to_rbd,omitempty"`
	// Define defines the VM from the backup's domain.xml, its disks where the restore put them.
	Define bool `json:"define,omitempty"`
	// Force overwrites files that exist.
	Force bool `json:"force,omitempty"`
	// Details may hold encryption_passphrase, encryption_revision and bandwidth_limit.
	Details Details `json:"details,omitzero"`
}

// VerifyBackup asks for a stored backup to be read whole and compared with its digests.
type VerifyBackup struct {
	Header
	Backup BackupRef `json:"backup"`
	// Details may hold encryption_passphrase, encryption_revision and bandwidth_limit.
	Details Details `json:"details,omitzero"`
}

// DeleteBackup asks for a stored backup to be removed.
type DeleteBackup struct {
	Header
	Backup BackupRef `json:"backup"`
	// Cascade also removes the incrementals that need the backup; without it they are a reason to
	// refuse.
	Cascade bool `json:"cascade,omitempty"`
}

// RekeyBackup asks for other passphrases on an encrypted backup. Its data stays as it is: what
// changes are the headers of its LUKS containers and the manifest. Afterwards the passphrases in
// Details open the backup, and no others do. The other backups of its chain get them too, because one
// passphrase opens a chain.
type RekeyBackup struct {
	Header
	Backup BackupRef `json:"backup"`
	// OldPassphrase opens the backup now; sealed like encryption_passphrase.
	OldPassphrase string `json:"old_passphrase"`
	// OldRevision names OldPassphrase, for who replays the command; "" where nobody keeps it.
	OldRevision string `json:"old_revision,omitempty"`
	// Details hold encryption_passphrase, which is the new one, and may hold encryption_revision,
	// encryption_recovery_passphrase and encryption_recovery_revision.
	Details Details `json:"details"`
}

// ConsolidateBackup asks for a new full backup out of an incremental and all that it continues. The VM is
// not touched. The new backup lies beside the others and shows the same moment; an incremental can continue
// it where one could continue the old. Its id is the job's, as for TakeBackup.
type ConsolidateBackup struct {
	Header
	// Backup is the incremental to make whole.
	Backup BackupRef `json:"backup"`
	// ChainPassphrase opens Backup and all that it continues; sealed like encryption_passphrase. "" where
	// they are not encrypted.
	ChainPassphrase string `json:"chain_passphrase,omitempty"`
	// ChainRevision names ChainPassphrase, for who replays the command; "" where nobody keeps it.
	ChainRevision string `json:"chain_revision,omitempty"`
	// Details shape the new backup. What is encrypted must stay so, with this passphrase or another.
	Details Details `json:"details,omitzero"`
}

// ListBackups asks for the manifests of a repository to be read; the host's part of the catalog
// is rebuilt from them.
type ListBackups struct {
	Header
	BackupPath string     `json:"backup_path,omitempty"`
	Repository Repository `json:"repository"`
	// VM restricts the list to one VM; "" is all of them.
	VM string `json:"vm,omitempty"`
}

// BackupRef says where a backup lies: <repository>/<backup_path>/<vm>/<id>/.
type BackupRef struct {
	ID         string     `json:"id"`
	VM         string     `json:"vm"`
	BackupPath string     `json:"backup_path,omitempty"`
	Repository Repository `json:"repository"`
}

// Repository is the NAS: what to mount and how.
type Repository struct {
	// Type is a file-system type of mount(8) (nfs, nfs4, cifs, ceph, ext4, fuse.sshfs, …), or "dir"
	// for a folder of the host that needs no mount.
	Type string `json:"type"`
	// Address is what is mounted (server:/export), or the folder's absolute path.
	Address string `json:"address"`
	// MountOptions are mount(8)'s, separated by commas.
	MountOptions string `json:"mount_options,omitempty"`
}

// RepositoryDir is the Type of a repository that is a folder and needs no mount.
const RepositoryDir = "dir"

// Mode says what a backup holds.
type Mode string

// The modes. ModeAuto is an incremental where that is possible and a full where it is not.
const (
	ModeFull        Mode = "full"
	ModeIncremental Mode = "incremental"
	ModeAuto        Mode = "auto"
)

// FullReason is why a backup of mode auto is a full one. The words are stable.
type FullReason string

// The reasons. The first three are of a source that has no bitmaps, the others of a chain.
const (
	// FullImages: disk images of no VM.
	FullImages FullReason = "images"
	// FullNoBitmaps: no disk of the VM is a qcow2, which alone can hold a bitmap.
	FullNoBitmaps FullReason = "no_bitmaps"
	// FullNoChain: the repository holds no backup of this VM that an incremental can continue.
	FullNoChain FullReason = "no_chain"
	// FullCheckpointLost: libvirt no longer has the checkpoint of any of them, as after the VM was
	// defined again, migrated or restored.
	FullCheckpointLost FullReason = "checkpoint_lost"
	// FullBitmapBroken: a bitmap is missing or cannot be trusted, as after a crash of the host.
	FullBitmapBroken FullReason = "bitmap_broken"
	// FullDiskAdded, FullDiskResized, FullDiskReplaced: the VM's disks are not those of the parent.
	FullDiskAdded    FullReason = "disk_added"
	FullDiskResized  FullReason = "disk_resized"
	FullDiskReplaced FullReason = "disk_replaced"
	// FullParentBroken: a backup of the chain is missing, damaged, or failed a verification.
	FullParentBroken FullReason = "parent_broken"
	// FullEncryptionChanged: the chain has another passphrase, or one of the two is not encrypted.
	FullEncryptionChanged FullReason = "encryption_changed"
	// FullEvery: the chain has as many backups as the command allows.
	FullEvery FullReason = "full_every"
)

// Quiesce says whether the guest's file systems are frozen for the moment of the backup.
type Quiesce string

// The values of Quiesce. In JSON true is best_effort and false is off.
const (
	QuiesceOff        Quiesce = "off"
	QuiesceBestEffort Quiesce = "best_effort"
	QuiesceRequired   Quiesce = "required"
)

// UnmarshalJSON also takes a boolean.
func (q *Quiesce) UnmarshalJSON(data []byte) error {
	switch string(data) {
	case "true":
		*q = QuiesceBestEffort
		return nil
	case "false", "null":
		*q = QuiesceOff
		return nil
	}
	return json.Unmarshal(data, (*string)(q))
}

// UnmarshalJSON also takes a bare path.
func (i *Image) UnmarshalJSON(data []byte) error {
	if strings.HasPrefix(string(data), `"`) {
		*i = Image{}
		return json.Unmarshal(data, &i.Path)
	}
	type plain Image
	return strictUnmarshal(data, (*plain)(i))
}

// MarshalJSON writes a bare path where no format is stated.
func (i Image) MarshalJSON() ([]byte, error) {
	if i.Format == "" {
		return json.Marshal(i.Path)
	}
	type plain Image
	return json.Marshal(plain(i))
}
