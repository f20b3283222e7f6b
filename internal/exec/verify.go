package exec

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nasfleet/nasfleet/internal/exec/copier"
	"github.com/nasfleet/nasfleet/internal/exec/digest"
	"github.com/nasfleet/nasfleet/internal/exec/nbd"
	"github.com/nasfleet/nasfleet/internal/exec/repository"
	"github.com/nasfleet/nasfleet/internal/exec/storaged"
	"github.com/nasfleet/nasfleet/internal/secret"
	"github.com/nasfleet/nasfleet/messages"
)

// storedDisk is a disk of a backup on the repository.
type storedDisk struct {
	index int
	name  string
	// path of the file, and of its digests (which may still be on the host).
	path, digests string
	size          int64
}

// keys open an encrypted backup; both are nil for one that is not.
type keys struct {
	pass    *secret.Passphrase
	digests []byte
}

// verify does a VerifyBackup.
func (e *Executor) verify(ctx context.Context, ws *workspace, cmd *messages.VerifyBackup, r Reporter) (Outcome, error) {
	r.Phase(messages.PhaseMounting)
	b, k, err := e.stored(ctx, ws, cmd.Backup, cmd.Details)
	if err != nil {
		return Outcome{}, err
	}
	defer k.wipe()
	disks, err := storedDisks(ctx, b, b.Manifest.Disks)
	if err != nil {
		return Outcome{}, err
	}
	r.Phase(messages.PhaseVerifying)
	v, err := e.readBack(ctx, ws, disks, k, ws.limiter, r)
	if err != nil {
		return Outcome{}, err
	}
	r.Verified(cmd.Backup.ID, v)
	return Outcome{BackupID: cmd.Backup.ID}, nil
}

// stored finds a backup, and the keys to it where it is encrypted.
func (e *Executor) stored(ctx context.Context, ws *workspace, ref messages.BackupRef, d messages.Details) (*repository.Backup, keys, error) {
	pass, err := e.passphrase(d.Passphrase)
	if err != nil {
		return nil, keys{}, err
	}
	k := keys{pass: pass}
	b, err := k.find(ctx, ws, ref)
	if err != nil {
		k.wipe()
		return nil, keys{}, err
	}
	return b, k, nil
}

func (k *keys) find(ctx context.Context, ws *workspace, ref messages.BackupRef) (*repository.Backup, error) {
	repo, err := ws.repository(ctx, ref.Repository)
	if err != nil {
		return nil, err
	}
	b, err := repo.Find(ctx, ref)
	if err != nil {
		return nil, err
	}
	if !b.Manifest.Encryption.LUKS {
		return b, nil
	}
	if k.pass == nil {
		return nil, messages.Errorf(messages.CodePassphraseMissing, "backup %s is encrypted", ref.ID).
			WithHint("Give the passphrase it was taken with (--passphrase-file).")
	}
	k.digests, err = unwrap(b.Manifest.Digest.WrappedKeys, k.pass)
	return b, err
}

// unwrap opens the first of the wrapped keys that the passphrase opens.
func unwrap(wrapped []json.RawMessage, pass *secret.Passphrase) ([]byte, error) {
	err := error(messages.Errorf(messages.CodeBackupCorrupt, "the manifest holds no key to the digests"))
	for _, raw := range wrapped {
		var w secret.WrappedKey
		if jerr := json.Unmarshal(raw, &w); jerr != nil {
			err = messages.Errorf(messages.CodeBackupCorrupt, "a wrapped key of the manifest: %w", jerr)
			continue
		}
		var key []byte
		if key, err = w.Open(pass); err == nil {
			return key, nil
		}
	}
	return nil, err
}

// wrap wraps the key to the digests for each passphrase there is.
func wrap(key []byte, passphrases ...*secret.Passphrase) ([]json.RawMessage, error) {
	var wrapped []json.RawMessage
	for _, p := range passphrases {
		if p == nil {
			continue
		}
		w, err := secret.WrapKey(p, key)
		if err != nil {
			return nil, messages.Errorf(messages.CodeInternal, "wrap the digest key: %w", err)
		}
		data, err := json.Marshal(w)
		if err != nil {
			return nil, messages.Errorf(messages.CodeInternal, "wrap the digest key: %w", err)
		}
		wrapped = append(wrapped, data)
	}
	return wrapped, nil
}

func (k *keys) wipe() {
	k.pass.Wipe()
	clear(k.digests)
}

func storedDisks(ctx context.Context, b *repository.Backup, from []repository.Disk) ([]storedDisk, error) {
	var disks []storedDisk
	for i, d := range from {
		if d.Incremental {
			return nil, messages.Errorf(messages.CodeUnsupportedVersion, "disk %s of backup %s holds changes alone", d.Name, b.Manifest.ID)
		}
		if d.DigestsFile == "" || d.VirtualBytes == 0 {
			return nil, messages.Errorf(messages.CodeBackupCorrupt, "disk %s has no digests or no size in the manifest", d.Name)
		}
		path, err := b.Path(ctx, d.File)
		if err != nil {
			return nil, err
		}
		digests, err := b.Path(ctx, d.DigestsFile)
		if err != nil {
			return nil, err
		}
		disks = append(disks, storedDisk{index: i, name: d.Name, path: path, digests: digests, size: d.VirtualBytes})
	}
	return disks, nil
}

// openDigests opens a disk's digests, which must be those of a disk of its size.
func (d storedDisk) openDigests(key []byte) (*digest.Reader, error) {
	r, err := digest.Open(d.digests, key)
	if err != nil {
		return nil, messages.EnsureCode(messages.CodeBackupCorrupt, fmt.Errorf("disk %s: its digests: %w", d.name, err))
	}
	if r.Size() != d.size {
		_ = r.Close()
		return nil, messages.Errorf(messages.CodeBackupCorrupt, "disk %s: its digests are of %d bytes, the disk has %d", d.name, r.Size(), d.size)
	}
	return r, nil
}

// readBack reads every byte of a backup from the repository: the qcow2's own metadata with
// qemu-img check, and its content against the digests taken when it was copied.
func (e *Executor) readBack(ctx context.Context, ws *workspace, disks []storedDisk, k keys, limiter *copier.Limiter, r Reporter) (messages.Verification, error) {
	started := time.Now()
	var bytes atomic.Int64
	err := each(ctx, disks, func(ctx context.Context, disk storedDisk) error {
		n, err := e.readDisk(ctx, ws, disk, k, limiter, r)
		bytes.Add(n)
		return err
	})
	if err != nil {
		return messages.Verification{}, err
	}
	return messages.Verification{Disks: len(disks), Bytes: bytes.Load(), Seconds: time.Since(started).Seconds()}, nil
}

func (e *Executor) readDisk(ctx context.Context, ws *workspace, disk storedDisk, k keys, limiter *copier.Limiter, r Reporter) (int64, error) {
	check, err := disk.openDigests(k.digests)
	if err != nil {
		return 0, err
	}
	defer func() { _ = check.Close() }()
	d, err := ws.daemon(ctx, fmt.Sprintf("check%d", disk.index))
	if err != nil {
		return 0, err
	}
	if err := d.OpenBackup(ctx, disk.name, storaged.Backup{Path: disk.path, Passphrase: k.pass.Bytes()}); err != nil {
		return 0, err
	}
	if _, err := storaged.Check(ctx, e.cfg.QEMUImg, d.Socket(), disk.name); err != nil {
		return 0, fmt.Errorf("disk %s: %w", disk.name, err)
	}
	src, err := dial(ctx, endpoint{d.Socket(), disk.name}, messages.CodeSourceReadFailed)
	if err != nil {
		return 0, fmt.Errorf("disk %s: %w", disk.name, err)
	}
	defer func() { _ = src.Close() }()
	stats, err := copier.Verify(ctx, src, check, copier.Options{
		Limiter:  limiter,
		Stall:    e.cfg.StallTimeout,
		Progress: func(done, total int64) { r.Disk(disk.name, done, total) },
	})
	if err != nil {
		return stats.DataBytes, mismatch(messages.CodeVerifyFailed, disk.name, undecodable(ctx, disk.path, fmt.Errorf("disk %s: %w", disk.name, stalled(err, sourceSide))))
	}
	return stats.DataBytes, errors.Join(src.Close(), d.Stop())
}

// undecodable tells a damaged cluster from failing storage. QEMU answers both with EIO: a
// compressed cluster with a flipped bit often does not decompress at all. If the file itself can
// be read to its end, its storage is well and its content is not.
func undecodable(ctx context.Context, path string, err error) error {
	var e *nbd.Error
	// Of a restore, the target can fail with EIO as well.
	if messages.CodeOf(err) != messages.CodeSourceReadFailed || !errors.As(err, &e) || e.Errno != unix.EIO || ctx.Err() != nil {
		return err
	}
	f, oerr := os.Open(path)
	if oerr != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	if _, rerr := io.Copy(io.Discard, readerOf(ctx, f)); rerr != nil {
		return err
	}
	return &digest.Mismatch{Offset: e.Offset, Length: e.Length}
}

// readerOf is r until ctx ends.
func readerOf(ctx context.Context, r io.Reader) io.Reader {
	return readFunc(func(b []byte) (int, error) {
		if err := ctx.Err(); err != nil {
			return 0, err
		}
		return r.Read(b)
	})
}

type readFunc func([]byte) (int, error)

func (f readFunc) Read(b []byte) (int, error) { return f(b) }
