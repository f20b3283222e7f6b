package exec

import (
	"context"
	"errors"
	"fmt"
	"io"
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

// verify does a VerifyBackup. Of an incremental it reads what that holds itself; the backups that it
// continues must be there.
func (e *Executor) verify(ctx context.Context, ws *workspace, cmd *messages.VerifyBackup, r Reporter) (Outcome, error) {
	r.Phase(messages.PhaseMounting)
	b, err := e.stored(ctx, ws, cmd.Backup, cmd.Details)
	if err != nil {
		return Outcome{}, err
	}
	defer b.wipe()
	disks, err := b.disks(ctx, b.manifest().Disks)
	if err != nil {
		return Outcome{}, err
	}
	r.Phase(messages.PhaseVerifying)
	v, err := e.readBack(ctx, ws, disks, b.pass, ws.limiter, r)
	e.markVerified(ctx, b.chain[0], err)
	if err != nil {
		return Outcome{}, err
	}
	r.Verified(cmd.Backup.ID, v)
	return Outcome{BackupID: cmd.Backup.ID}, nil
}

// markVerified keeps an incremental from continuing a backup that failed. A mark that cannot be
// written changes nothing about the verification.
func (e *Executor) markVerified(ctx context.Context, b *repository.Backup, err error) {
	failed := messages.CodeOf(err) == messages.CodeVerifyFailed
	if err != nil && !failed || failed == b.Damaged {
		return
	}
	if merr := b.MarkDamaged(ctx, failed); merr != nil {
		e.cfg.Log.Warn().Err(merr).Str("backup", b.Manifest.ID).Msg("note what a verification has found")
	}
}

// readBack reads every byte of a backup from the repository: the qcow2's own metadata with
// qemu-img check, and its content against the digests taken when it was copied.
func (e *Executor) readBack(ctx context.Context, ws *workspace, disks []storedDisk, pass *secret.Passphrase, limiter *copier.Limiter, r Reporter) (messages.Verification, error) {
	started := time.Now()
	var bytes atomic.Int64
	err := each(ctx, disks, func(ctx context.Context, disk storedDisk) error {
		n, err := e.readDisk(ctx, ws, disk, pass, limiter, r)
		bytes.Add(n)
		return err
	})
	if err != nil {
		return messages.Verification{}, err
	}
	return messages.Verification{Disks: len(disks), Bytes: bytes.Load(), Seconds: time.Since(started).Seconds()}, nil
}

func (e *Executor) readDisk(ctx context.Context, ws *workspace, disk storedDisk, pass *secret.Passphrase, limiter *copier.Limiter, r Reporter) (int64, error) {
	link := disk.links[0]
	d, err := ws.daemon(ctx, fmt.Sprintf("check%d", disk.index))
	if err != nil {
		return 0, err
	}
	if err := d.OpenBackup(ctx, disk.name, storaged.Backup{Path: link.path, Passphrase: pass.Bytes()}); err != nil {
		return 0, err
	}
	if _, err := storaged.Check(ctx, e.cfg.QEMUImg, d.Socket(), disk.name); err != nil {
		if ended := d.Ended(); ended != nil {
			err = messages.Errorf(messages.CodeStorageDaemonFailed, "%w: %w", ended, err)
		}
		return 0, fmt.Errorf("disk %s: %w", disk.name, err)
	}
	export := endpoint{socket: d.Socket(), export: disk.name}
	check, err := openCheck(ctx, e.cfg.StallTimeout, disk, disk.links[:1], func(int) endpoint { return export })
	if err != nil {
		return 0, err
	}
	defer func() { _ = check.Close() }()
	src, err := dial(ctx, export, messages.CodeSourceReadFailed, nbd.BaseAllocation)
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
		return stats.DataBytes, mismatch(messages.CodeVerifyFailed, disk.name, undecodable(ctx, disk.links[:1], fmt.Errorf("disk %s: %w", disk.name, stalled(died(err, d), sourceSide))))
	}
	return stats.DataBytes, errors.Join(src.Close(), check.Close(), d.Stop())
}

// undecodable tells a damaged cluster from failing storage. QEMU answers both with EIO: a
// compressed cluster with a flipped bit often does not decompress at all. If the files themselves
// can be read to their ends, their storage is well and their content is not.
func undecodable(ctx context.Context, links []storedLink, err error) error {
	var e *nbd.Error
	// Of a restore, the target can fail with EIO as well.
	if messages.CodeOf(err) != messages.CodeSourceReadFailed || !errors.As(err, &e) || e.Errno != unix.EIO || ctx.Err() != nil {
		return err
	}
	for _, l := range links {
		if readThrough(ctx, l.path) != nil {
			return err
		}
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
