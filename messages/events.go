package messages

import (
	"encoding/json"
	"errors"
	"strconv"
	"strings"
	"time"
)

// Kind says what happened to a job. It is the last token of the event's subject.
type Kind string

// The kinds of lasting events. Succeeded, failed and cancelled are final: exactly one of them
// ends a job.
const (
	KindAccepted  Kind = "accepted"
	KindVerified  Kind = "verified"
	KindSucceeded Kind = "succeeded"
	KindFailed    Kind = "failed"
	KindRetrying  Kind = "retrying"
	KindCancelled Kind = "cancelled"
	KindThrottled Kind = "throttled"
)

// Kinds lists every kind of lasting event, in the order a job may have them.
func Kinds() []Kind {
	return []Kind{KindAccepted, KindThrottled, KindVerified, KindRetrying, KindSucceeded, KindFailed, KindCancelled}
}

// Final says whether the kind ends a job.
func (k Kind) Final() bool {
	return k == KindSucceeded || k == KindFailed || k == KindCancelled
}

// Event is one step of a job that is kept.
type Event struct {
	Version int  `json:"version"`
	Kind    Kind `json:"kind"`
	// JobID may be empty where the command was not readable.
	JobID string `json:"job_id"`
	Type  Type   `json:"type,omitempty"`
	Zone  string `json:"zone"`
	Host  string `json:"host"`
	// VM is the command's target.
	VM   string    `json:"vm,omitempty"`
	Time time.Time `json:"time"`
	// Attempt counts from 1; 0 before the first.
	Attempt int `json:"attempt"`
	// Error is set in failed, retrying and cancelled events.
	Error *Failure `json:"error,omitempty"`
	// BackupID is set in the verified and succeeded events of commands on one backup.
	BackupID string `json:"backup_id,omitempty"`
	// Backup is set when a backup was taken, made out of a chain, or got another passphrase.
	Backup *CatalogEntry `json:"backup,omitempty"`
	// Verified is set in a verified event.
	Verified *Verification `json:"verified,omitempty"`
	// Throttled is set in a throttled event.
	Throttled *Throttle `json:"throttled,omitempty"`
	// Restored names the files or devices a restore wrote, by disk.
	Restored map[string]string `json:"restored,omitempty"`
	// Backups is set when a repository was listed: how many it holds.
	Backups *int `json:"backups,omitempty"`
	// Notes are things worth knowing that did not fail the job, such as a device left out.
	Notes []string `json:"notes,omitempty"`
	// Seconds is how long the attempt took.
	Seconds float64 `json:"seconds,omitempty"`
}

// MsgID is the event's Nats-Msg-Id: the same event published twice is stored once. An attempt has
// each kind once, but may be throttled several times.
func (e Event) MsgID() string {
	id := e.Zone + "." + e.Host + "." + e.JobID + "." + string(e.Kind) + "." + strconv.Itoa(e.Attempt)
	if e.Kind == KindThrottled {
		id += "." + strconv.FormatInt(e.Time.UnixNano(), 36)
	}
	return id
}

// Throttle is a change of a job's bandwidth limit, both in MiB/s; 0 is no limit.
type Throttle struct {
	From int `json:"from"`
	To   int `json:"to"`
}

// Failure is an Error as it travels.
type Failure struct {
	Code      Code   `json:"code"`
	Message   string `json:"message"`
	Hint      string `json:"hint,omitempty"`
	Retryable bool   `json:"retryable"`
	// NextAttempt is set in a retrying event.
	NextAttempt *time.Time `json:"next_attempt,omitempty"`
}

// maxFailure bounds a Failure's message (bytes). An error may quote what somebody sent, and the
// event that refuses a message must not grow larger than a message may be.
const maxFailure = 4096

// FailureOf turns an error into what an event carries: its message cut at 4 KiB. A nil error is nil.
func FailureOf(err error) *Failure {
	if err == nil {
		return nil
	}
	e := &Error{Code: CodeOf(err)}
	errors.As(err, &e)
	message := err.Error()
	if len(message) > maxFailure {
		message = message[:maxFailure] + "…"
	}
	message = strings.ToValidUTF8(message, "")
	return &Failure{Code: e.Code, Message: message, Hint: e.Advice(), Retryable: e.Code.Retryable()}
}

// Verification says what a verify read.
type Verification struct {
	// Disks counts the disks that were read.
	Disks int `json:"disks"`
	// Bytes is how much data was read and compared.
	Bytes   int64   `json:"bytes"`
	Seconds float64 `json:"seconds"`
}

// Phase is where a running job is.
type Phase string

// The phases of a job, in order. Jobs other than TakeBackup use those that apply.
const (
	PhaseMounting   Phase = "mounting"
	PhaseFreezing   Phase = "freezing"
	PhaseCopying    Phase = "copying"
	PhaseVerifying  Phase = "verifying"
	PhaseCommitting Phase = "committing"
)

// Progress is published about once a second while a job runs, and not stored.
type Progress struct {
	JobID   string         `json:"job_id"`
	Zone    string         `json:"zone"`
	Host    string         `json:"host"`
	VM      string         `json:"vm,omitempty"`
	Attempt int            `json:"attempt"`
	Phase   Phase          `json:"phase"`
	Disks   []DiskProgress `json:"disks,omitempty"`
}

// DiskProgress is one disk's share: bytes of data done, and bytes of data known to be there.
type DiskProgress struct {
	Name  string `json:"name"`
	Done  int64  `json:"done_bytes"`
	Total int64  `json:"total_bytes"`
}

// HostInfo is what a host announces in HostBucket while it is alive.
type HostInfo struct {
	Zone string `json:"zone"`
	Host string `json:"host"`
	// SealKey is the curve key (an nkeys xkey, X…) that passphrases for this host are sealed with.
	SealKey string `json:"seal_key"`
	// Version of the hostworker.
	Version   string    `json:"version"`
	StartedAt time.Time `json:"started_at"`
	SeenAt    time.Time `json:"seen_at"`
	// Running lists the ids of the jobs at work.
	Running []string `json:"running"`
	// Slots is how many jobs the host runs at a time.
	Slots int `json:"slots"`
}

// CatalogEntry describes a backup that exists, in CatalogBucket and in the succeeded event.
type CatalogEntry struct {
	ID        string    `json:"id"`
	Zone      string    `json:"zone"`
	Host      string    `json:"host"`
	VM        string    `json:"vm"`
	JobID     string    `json:"job_id"`
	CreatedAt time.Time `json:"created_at"`
	// Mode says what it is, full or incremental, whatever was asked for.
	Mode Mode `json:"mode"`
	// Parent is the id of the backup that an incremental continues and cannot be restored without;
	// "" for a full one.
	Parent string `json:"parent,omitempty"`
	// FullReason says why a backup of mode auto is a full one.
	FullReason FullReason `json:"full_reason,omitempty"`
	// ConsolidatedFrom is the id of the incremental that a full backup was made of, without its VM; the two
	// show the same moment. "" for one that was taken.
	ConsolidatedFrom string `json:"consolidated_from,omitempty"`
	Encrypted        bool   `json:"encrypted"`
	// Revision names the passphrase, RecoveryRevision the recovery passphrase, of those that are kept
	// for the zone; "" where nobody keeps it, or there is none.
	Revision         string `json:"passphrase_revision,omitempty"`
	RecoveryRevision string `json:"recovery_revision,omitempty"`
	// Compressed says whether the clusters are compressed.
	Compressed bool `json:"compressed"`
	// Quiesced says whether the guest's file systems were frozen for it.
	Quiesced bool `json:"quiesced"`
	// VirtualBytes is the sum of the disks' sizes; DataBytes what was copied of them; StoredBytes
	// what the files take on the repository.
	VirtualBytes int64         `json:"virtual_bytes"`
	DataBytes    int64         `json:"data_bytes"`
	StoredBytes  int64         `json:"stored_bytes"`
	Disks        []CatalogDisk `json:"disks"`
	BackupPath   string        `json:"backup_path,omitempty"`
	Repository   Repository    `json:"repository"`
	Notes        []string      `json:"notes,omitempty"`
}

// Ref returns where the backup lies.
func (c CatalogEntry) Ref() BackupRef {
	return BackupRef{ID: c.ID, VM: c.VM, BackupPath: c.BackupPath, Repository: c.Repository}
}

// CatalogDisk is one disk of a backup.
type CatalogDisk struct {
	Name         string `json:"name"`
	File         string `json:"file"`
	VirtualBytes int64  `json:"virtual_bytes"`
	DataBytes    int64  `json:"data_bytes"`
	StoredBytes  int64  `json:"stored_bytes"`
}

// DecodeEvent reads an event. Unknown fields are left alone: events grow.
func DecodeEvent(data []byte) (Event, error) {
	var e Event
	if err := json.Unmarshal(data, &e); err != nil {
		return Event{}, Errorf(CodeInvalidMessage, "not an event: %w", err)
	}
	return e, nil
}
