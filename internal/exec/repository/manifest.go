package repository

import (
	"encoding/json"
	"strings"
	"time"

	"github.com/nasfleet/nasfleet/messages"
)

// ManifestVersion is the version of manifest.json that is written, and the newest that is read.
//
// A reader leaves fields it does not know alone, so a version may gain fields that an older reader can ignore
// and still restore the right bytes. Whatever changes how the bytes are to be read takes a new version (or a
// new Mode), which an older reader refuses with CodeUnsupportedVersion.
const ManifestVersion = 1

// SourceKind says what a backup was taken from.
type SourceKind string

// The kinds of source.
const (
	SourceRunning SourceKind = "running"
	SourceStopped SourceKind = "stopped"
	SourceImages  SourceKind = "images"
)

// FormatQCOW2 is the format of a backup's disk, inside its LUKS container if it has one.
const FormatQCOW2 = "qcow2"

// Manifest is manifest.json: what a backup is, and the only thing that makes a folder one.
type Manifest struct {
	Version int    `json:"version"`
	ID      string `json:"id"`
	JobID   string `json:"job_id"`
	Zone    string `json:"zone"`
	Host    string `json:"host"`
	VM      string `json:"vm"`
	// UUID is the VM's; "" for images.
	UUID   string     `json:"uuid,omitempty"`
	Source SourceKind `json:"source"`
	// CreatedAt is the moment whose data the backup holds, FinishedAt when it was committed.
	CreatedAt  time.Time     `json:"created_at"`
	FinishedAt time.Time     `json:"finished_at"`
	Mode       messages.Mode `json:"mode"`
	// FullReason says why a backup of mode auto is a full one.
	FullReason messages.FullReason `json:"full_reason,omitempty"`
	// Parent is the backup, beside this one, that an incremental continues; "" for a full one.
	Parent string `json:"parent,omitempty"`
	// Links is how many backups a restore reads: one more than the parent's. 0 stands for 1.
	Links int `json:"links,omitempty"`
	// ConsolidatedFrom is the incremental, beside this one, that a full backup was made of; the rest of the
	// manifest says of that moment what the incremental's said. It need not exist any more. "" for one that
	// was taken.
	ConsolidatedFrom string `json:"consolidated_from,omitempty"`
	// Checkpoint is the name of a libvirt checkpoint, which an incremental can continue from as long as
	// libvirt has it: it says what has changed since CreatedAt, at least. Several backups can name one, and
	// each of them holds it. "" where there was none.
	Checkpoint string `json:"checkpoint,omitempty"`
	// Quiesced says whether the guest's file systems were frozen at CreatedAt, FrozenSeconds for how long.
	Quiesced      bool    `json:"quiesced"`
	FrozenSeconds float64 `json:"frozen_seconds,omitempty"`
	// Consistency says in words how far the data can be trusted, such as "crash-consistent".
	Consistency string `json:"consistency,omitempty"`
	// Compression is the type of the qcow2 clusters' compression; "" for none.
	Compression string     `json:"compression"`
	Encryption  Encryption `json:"encryption"`
	Digest      Digest     `json:"digest"`
	// DomainFile is the VM's definition, "domain.xml"; "" where there is none.
	DomainFile string    `json:"domain_file,omitempty"`
	Disks      []Disk    `json:"disks"`
	Skipped    []Skipped `json:"skipped,omitempty"`
	Notes      []string  `json:"notes,omitempty"`
	// Tool names the program that took the backup, with its version.
	Tool string `json:"tool,omitempty"`
}

// Encryption says how the disks are encrypted.
type Encryption struct {
	// LUKS says that each disk is a qcow2 inside a LUKS container.
	LUKS bool `json:"luks"`
	// Revision names the passphrase and tells nothing about it.
	Revision string `json:"revision,omitempty"`
	// RecoveryRevision names the passphrase of the second key slot; "" where that is not kept, or there is none.
	RecoveryRevision string `json:"recovery_revision,omitempty"`
}

// Digest says how the files of digests were made; the zero value where there are none.
type Digest struct {
	// Algorithm: see package digest.
	Algorithm string `json:"algorithm,omitempty"`
	// BlockBytes is how much of a disk's content one digest covers.
	BlockBytes int64 `json:"block_bytes,omitempty"`
	// Keyed says that the digests need a key, which WrappedKeys hold, each encrypted in its own way.
	Keyed       bool              `json:"keyed,omitempty"`
	WrappedKeys []json.RawMessage `json:"wrapped_keys,omitempty"`
}

// Disk is one disk of a backup. All sizes are in bytes.
type Disk struct {
	// Name is the target in the VM, such as vda.
	Name string `json:"name"`
	File string `json:"file"`
	// DigestsFile holds the disk's digests; "" for none.
	DigestsFile string `json:"digests_file,omitempty"`
	Format      string `json:"format"`
	LUKS        bool   `json:"luks"`
	// Incremental says that File holds only what has changed since the parent's disk of the same
	// name. A full backup has none; an incremental can have disks that are whole.
	Incremental bool `json:"incremental,omitempty"`
	// Bitmap says that the checkpoint has a bitmap of the disk.
	Bitmap bool `json:"bitmap,omitempty"`
	// VirtualBytes is the size of the disk, DataBytes how much of it was copied.
	VirtualBytes int64 `json:"virtual_bytes"`
	DataBytes    int64 `json:"data_bytes"`
	// FileBytes is the length of File, StoredBytes what it takes on the repository. Commit sets both.
	FileBytes   int64  `json:"file_bytes"`
	StoredBytes int64  `json:"stored_bytes"`
	Source      Source `json:"source"`
}

// Source is where a disk's data came from.
type Source struct {
	Path   string `json:"path"`
	Format string `json:"format,omitempty"`
	// Encrypted says that the source itself was encrypted.
	Encrypted bool `json:"encrypted,omitempty"`
}

// Skipped is a device of the VM that was left out.
type Skipped struct {
	Target string `json:"target"`
	Reason string `json:"reason"`
}

// What a catalog entry keeps of the notes, so that it fits into a message.
const (
	catalogNotes     = 32
	catalogNoteBytes = 512
)

// CatalogEntry returns what the catalog and events say of the backup.
func (m Manifest) CatalogEntry(repo messages.Repository, backupPath string) messages.CatalogEntry {
	e := messages.CatalogEntry{
		ID: m.ID, Zone: m.Zone, Host: m.Host, VM: m.VM, JobID: m.JobID, CreatedAt: m.CreatedAt, Mode: m.Mode,
		Parent: m.Parent, FullReason: m.FullReason, ConsolidatedFrom: m.ConsolidatedFrom,
		Encrypted: m.Encryption.LUKS, Revision: m.Encryption.Revision, RecoveryRevision: m.Encryption.RecoveryRevision, Compressed: m.Compression != "", Quiesced: m.Quiesced,
		Disks: make([]messages.CatalogDisk, 0, len(m.Disks)), BackupPath: backupPath, Repository: repo,
	}
	for _, d := range m.Disks {
		e.VirtualBytes += d.VirtualBytes
		e.DataBytes += d.DataBytes
		e.StoredBytes += d.StoredBytes
		e.Disks = append(e.Disks, messages.CatalogDisk{
			Name: d.Name, File: d.File,
			VirtualBytes: d.VirtualBytes, DataBytes: d.DataBytes, StoredBytes: d.StoredBytes,
		})
	}
	for _, n := range m.Notes[:min(len(m.Notes), catalogNotes)] {
		e.Notes = append(e.Notes, strings.ToValidUTF8(n[:min(len(n), catalogNoteBytes)], ""))
	}
	return e
}

// encode writes the manifest for people and programs. An opaque key may get other white space.
func (m Manifest) encode() ([]byte, error) {
	data, err := json.MarshalIndent(m, "", "  ")
	if err != nil {
		return nil, err
	}
	return append(data, '\n'), nil
}
