package repository

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"math/bits"
	"os"
	"regexp"
	"slices"

	"github.com/nasfleet/nasfleet/messages"
)

// The bounds of what a manifest can say. They are far above what is real and keep sums from overflowing.
const (
	maxManifestBytes = 16 << 20
	maxDisks         = 1024
	maxDiskBytes     = 1 << 50 // 1 PiB
	minDigestBlock   = 4 << 10
	maxDigestBlock   = 64 << 20
	maxSeconds       = 1e9
	maxWord          = 63
)

// checkpointPattern is that of libvirt's checkpoints with names that we give them.
var checkpointPattern = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._-]{0,99}$`)

// diskPattern is that of a disk in a RestoreBackup command.
var diskPattern = regexp.MustCompile(`^[a-z0-9-]{1,63}$`)

// DecodeManifest reads and checks a manifest. Its errors are CodeUnsupportedVersion for one this reader is too
// old for, and CodeBackupCorrupt. Nothing in the result has been compared with the folder it lies in.
func DecodeManifest(data []byte) (Manifest, error) {
	var m Manifest
	if len(data) > maxManifestBytes {
		return m, corrupt("it has more than %d bytes", maxManifestBytes)
	}
	// The version is judged first: a newer manifest may use a field in another way.
	var head struct {
		Version int `json:"version"`
	}
	if err := json.Unmarshal(data, &head); err != nil {
		return m, corrupt("%w", err)
	}
	if head.Version > ManifestVersion {
		return m, unsupported("its version %d is newer than %d", head.Version, ManifestVersion)
	}
	if err := json.Unmarshal(data, &m); err != nil {
		return Manifest{}, corrupt("%w", err)
	}
	if err := m.check(Location{VM: m.VM, ID: m.ID}); err != nil {
		return Manifest{}, err
	}
	return m, nil
}

// check judges everything that can be judged without the files.
func (m Manifest) check(loc Location) error {
	if m.ID != loc.ID || m.VM != loc.VM {
		return corrupt("it is that of backup %q of VM %q", m.ID, m.VM)
	}
	if m.Version != ManifestVersion {
		return corrupt("version %d does not exist", m.Version)
	}
	for _, err := range []error{
		loc.check(),
		messages.CheckID("job_id", m.JobID),
		messages.CheckLabel("zone", m.Zone),
		messages.CheckLabel("host", m.Host),
		m.Encryption.check(),
		m.checkKind(),
		m.checkChain(),
		m.Digest.check(),
		m.checkDisks(),
	} {
		if messages.CodeOf(err) == messages.CodeInvalidMessage {
			err = corrupt("%w", err)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (m Manifest) checkKind() error {
	switch {
	case m.Mode != messages.ModeFull && m.Mode != messages.ModeIncremental:
		// It must never be taken for a whole disk.
		return unsupported("its mode is %q", m.Mode)
	case !slices.Contains([]SourceKind{SourceRunning, SourceStopped, SourceImages}, m.Source):
		return corrupt("source %q does not exist", m.Source)
	case m.CreatedAt.IsZero() || m.FinishedAt.IsZero():
		return corrupt("created_at or finished_at is missing")
	case m.FrozenSeconds < 0 || m.FrozenSeconds > maxSeconds:
		return corrupt("frozen_seconds is %g", m.FrozenSeconds)
	case !slices.Contains([]string{"", messages.Zstd, messages.Zlib}, m.Compression):
		return unsupported("its compression is %q", m.Compression)
	}
	return nil
}

// checkChain judges a backup's place in its chain.
func (m Manifest) checkChain() error {
	incremental := m.Mode == messages.ModeIncremental
	switch {
	case m.Checkpoint != "" && !checkpointPattern.MatchString(m.Checkpoint):
		return corrupt("%q is not the name of a checkpoint", m.Checkpoint)
	case m.ConsolidatedFrom != "" && (incremental || m.ConsolidatedFrom == m.ID):
		return corrupt("it is made of %q, and is no full backup or that backup itself", m.ConsolidatedFrom)
	case m.ConsolidatedFrom != "" && messages.CheckID("consolidated_from", m.ConsolidatedFrom) != nil:
		return corrupt("consolidated_from is not a backup's id")
	case len(m.FullReason) > maxWord:
		return corrupt("full_reason has %d bytes", len(m.FullReason))
	case !incremental && (m.Parent != "" || m.Links > 1 || m.Links < 0 || m.hasIncremental()):
		return corrupt("it is a full backup and continues another")
	case !incremental:
		return nil
	case m.Parent == m.ID:
		return corrupt("it is its own parent")
	case m.Links < 2 || m.Links > messages.MaxChain:
		return corrupt("it is an incremental and links is %d", m.Links)
	case !m.hasIncremental():
		return corrupt("it is an incremental with none of its disks")
	case m.Digest.Algorithm == "":
		return corrupt("it is an incremental without digests")
	}
	return messages.CheckID("parent", m.Parent)
}

func (m Manifest) hasIncremental() bool {
	return slices.ContainsFunc(m.Disks, func(d Disk) bool { return d.Incremental })
}

// check keeps what is no name of a passphrase out of the catalog.
func (e Encryption) check() error {
	for what, revision := range map[string]string{"revision": e.Revision, "recovery_revision": e.RecoveryRevision} {
		if revision != "" && messages.CheckID(what, revision) != nil {
			return corrupt("encryption %s is not a ULID", what)
		}
	}
	return nil
}

func (d Digest) check() error {
	if d.Algorithm == "" {
		if d.BlockBytes != 0 || d.Keyed || len(d.WrappedKeys) != 0 {
			return corrupt("digest has no algorithm")
		}
		return nil
	}
	if d.BlockBytes < minDigestBlock || d.BlockBytes > maxDigestBlock || bits.OnesCount64(uint64(d.BlockBytes)) != 1 {
		return corrupt("digest block_bytes is %d", d.BlockBytes)
	}
	return nil
}

func (m Manifest) checkDisks() error {
	if len(m.Disks) == 0 || len(m.Disks) > maxDisks {
		return corrupt("it has %d disks", len(m.Disks))
	}
	names := map[string]bool{}
	for _, d := range m.Disks {
		if !diskPattern.MatchString(d.Name) || names[d.Name] {
			return corrupt("disk %q is not a disk's name, or there twice", d.Name)
		}
		names[d.Name] = true
		if d.Format != FormatQCOW2 {
			return unsupported("the format of disk %s is %q", d.Name, d.Format)
		}
		if d.LUKS != m.Encryption.LUKS {
			return corrupt("disk %s and the backup disagree on luks", d.Name)
		}
		if d.DigestsFile != "" && m.Digest.Algorithm == "" {
			return corrupt("disk %s has digests without an algorithm", d.Name)
		}
		for _, n := range []int64{d.VirtualBytes, d.DataBytes, d.FileBytes, d.StoredBytes} {
			if n < 0 || n > maxDiskBytes {
				return corrupt("disk %s has a size of %d bytes", d.Name, n)
			}
		}
	}
	return m.checkNames()
}

func (m Manifest) checkNames() error {
	seen := map[string]bool{}
	for _, f := range m.files() {
		if err := checkFile(f); err != nil {
			return corrupt("%q is not the name of a file", f)
		}
		if seen[f] {
			return corrupt("file %s is there twice", f)
		}
		seen[f] = true
	}
	return nil
}

// files lists the files of a backup but for the manifest.
func (m Manifest) files() []string {
	var files []string
	if m.DomainFile != "" {
		files = append(files, m.DomainFile)
	}
	for _, d := range m.Disks {
		files = append(files, d.File)
		if d.DigestsFile != "" {
			files = append(files, d.DigestsFile)
		}
	}
	return files
}

// checkFiles compares the manifest with what lies beside it: each file must be a regular one, and each
// disk's of the length it had.
func (m Manifest) checkFiles(dir *os.Root) error {
	for _, f := range m.files() {
		_, err := lstatRegular(dir, f)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, errNotRegular) {
			return corrupt("%w", err)
		}
		if err != nil {
			return err
		}
	}
	for _, d := range m.Disks {
		fi, err := dir.Lstat(d.File)
		if err != nil {
			return err
		}
		if fi.Size() != d.FileBytes {
			return corrupt("%s has %d bytes and not %d", d.File, fi.Size(), d.FileBytes)
		}
	}
	return nil
}

func corrupt(format string, args ...any) error {
	return messages.Errorf(messages.CodeBackupCorrupt, "manifest: "+format, args...)
}

func unsupported(format string, args ...any) error {
	return messages.Errorf(messages.CodeUnsupportedVersion, "manifest: "+format, args...).
		WithHint("Use a hostworker that is at least as new as the one that took the backup.")
}

// internalError is for a manifest of our own that no reader would take.
func internalError(err error) error {
	return messages.Errorf(messages.CodeInternal, "%w", fmt.Errorf("refusing to write it: %w", err))
}
