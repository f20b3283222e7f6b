package exec

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/nasfleet/nasfleet/internal/exec/bounded"
	"github.com/nasfleet/nasfleet/internal/exec/hypervisor"
	"github.com/nasfleet/nasfleet/internal/exec/repository"
	"github.com/nasfleet/nasfleet/messages"
)

const (
	// stateTimeout bounds a look at a VM: a libvirtd that hangs must not keep a job from watching
	// its scratch folder.
	stateTimeout = 5 * time.Second
	// reachPatience is how long a libvirtd that restarts is waited for, and reachPause lies between two tries.
	reachPatience = 30 * time.Second
	reachPause    = time.Second
	// thawTimeout bounds the thawing of what killed workers left frozen.
	thawTimeout = 30 * time.Second
)

// CleanUp ends what killed attempts at a command left, when there is to be no other attempt: the
// backup job in the guest's QEMU, which would fill the scratch folder, the scratch files, the
// job's folder, an unfinished backup with its checkpoint, an unfinished restore. A backup that was
// committed stays, and is returned:
// the job had succeeded, and its worker died before it could note that.
func (e *Executor) CleanUp(ctx context.Context, cmd messages.Command) (*Outcome, error) {
	ws, err := e.open(cmd.Head().JobID)
	if err != nil {
		return nil, err
	}
	var out *Outcome
	err = bounded.Try(func() (err error) {
		out, err = e.cleanUp(ctx, ws, cmd)
		return err
	})
	return out, errors.Join(err, ws.close())
}

func (e *Executor) cleanUp(ctx context.Context, ws *workspace, cmd messages.Command) (*Outcome, error) {
	switch cmd := cmd.(type) {
	case *messages.TakeBackup:
		serr := e.cleanSource(ctx, ws, cmd)
		out, err := e.cleanRepository(ctx, ws, cmd)
		if out == nil && err == nil && cmd.VM != "" {
			// That of a backup that was committed is what the next incremental needs.
			e.dropCheckpoint(ctx, ws.repo, newBackupRef(cmd), checkpointPrefix+ws.job)
		}
		return out, errors.Join(serr, err)
	case *messages.ConsolidateBackup:
		return e.cleanRepository(ctx, ws, asTake(cmd))
	case *messages.RestoreBackup:
		if err := e.checkPaths(ctx, cmd); err != nil {
			return nil, err // no attempt has gone there
		}
		return onHost(ctx, messages.CodeTargetWriteFailed, "the folder to restore to", func() (*Outcome, error) {
			return nil, removeUnfinished(cmd.ToDir, ws.job)
		})
	}
	return nil, nil
}

func (e *Executor) cleanSource(ctx context.Context, ws *workspace, cmd *messages.TakeBackup) error {
	if cmd.VM != "" && e.cfg.Hypervisor != nil {
		err := e.endLeftover(ctx, cmd.VM, ws.job)
		if err != nil && messages.CodeOf(err) != messages.CodeVMNotFound {
			return err
		}
	}
	return e.removeScratch(ctx, ws.job)
}

// cleanRepository removes an unfinished backup, and returns a finished one.
func (e *Executor) cleanRepository(ctx context.Context, ws *workspace, cmd *messages.TakeBackup) (*Outcome, error) {
	if err := e.checkPaths(ctx, cmd); err != nil {
		return nil, err // no attempt has gone there
	}
	repo, err := ws.repository(ctx, cmd.Repository)
	if err != nil {
		return nil, err
	}
	if err := repo.Sweep(ctx, repository.Location{BackupPath: cmd.BackupPath, VM: cmd.Target(), ID: ws.job}); err != nil {
		return nil, err
	}
	b, err := repo.Find(ctx, newBackupRef(cmd))
	if messages.CodeOf(err) == messages.CodeBackupNotFound {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	out := takenOutcome(cmd, b.Manifest)
	return &out, nil
}

// newBackupRef is where the backup of a command is, or would be: its id is the job's.
func newBackupRef(cmd *messages.TakeBackup) messages.BackupRef {
	return messages.BackupRef{ID: cmd.JobID, VM: cmd.Target(), BackupPath: cmd.BackupPath, Repository: cmd.Repository}
}

// removeUnfinished removes a restore's files that have not got their names.
func removeUnfinished(dir, job string) error {
	entries, err := os.ReadDir(dir)
	if dir == "" || errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	errs := []error{err}
	for _, entry := range entries {
		if strings.HasPrefix(entry.Name(), ".") && strings.HasSuffix(entry.Name(), unfinishedSuffix(job)) {
			errs = append(errs, os.Remove(filepath.Join(dir, entry.Name())))
		}
	}
	return errors.Join(errs...)
}

// ThawLeft thaws the guests that a killed worker had frozen, where its watchdog was killed too. It is
// called before there are jobs. A guest whose agent does not answer is left for its next job, and told in the log.
func (e *Executor) ThawLeft(ctx context.Context) {
	if e.cfg.Hypervisor != nil {
		e.thaw(ctx, func(ctx context.Context) error { return e.cfg.Hypervisor.ThawLeft(ctx, e.cfg.RunDir) })
	}
}

func (e *Executor) thaw(ctx context.Context, thaw func(context.Context) error) {
	ctx, cancel := context.WithTimeout(ctx, thawTimeout)
	defer cancel()
	if err := thaw(ctx); err != nil {
		e.cfg.Log.Error().Err(err).Msg("a guest may still be frozen by a killed worker (virsh domfsthaw)")
	}
}

// endLeftover ends the backup job of an attempt whose worker was killed. No two jobs of this
// worker work on one VM, so a job with a socket below our folder is nobody's; another's is left
// alone. The attempt may have been one at the job that is at work now.
func (e *Executor) endLeftover(ctx context.Context, vm, now string) error {
	e.thaw(ctx, func(ctx context.Context) error { return e.cfg.Hypervisor.ThawVM(ctx, e.cfg.RunDir, vm) })
	job, err := e.cfg.Hypervisor.BackupJob(ctx, vm)
	if err != nil {
		return err
	}
	old := e.jobOf(job.Socket)
	if !job.Running || old == "" {
		return nil
	}
	e.cfg.Log.Warn().Str("vm", vm).Str("socket", job.Socket).Msg("ends the backup job of a killed attempt")
	if err := e.cfg.Hypervisor.EndBackup(ctx, vm, job.Socket); err != nil {
		return err
	}
	return e.removeLeftover(ctx, old, now)
}

// removeLeftover removes the files of a killed attempt. The folder of the job at work is in use.
func (e *Executor) removeLeftover(ctx context.Context, old, now string) error {
	err := e.removeScratch(ctx, old)
	if old != now {
		err = errors.Join(err, removeFolder(filepath.Join(e.cfg.RunDir, old)))
	}
	if err != nil {
		return messages.Errorf(messages.CodeInternal, "remove what a killed attempt left: %w", err)
	}
	return nil
}

// jobOf returns the job of this worker whose source has the socket; "" for another's.
func (e *Executor) jobOf(socket string) string {
	job := filepath.Base(filepath.Dir(filepath.Dir(socket)))
	if messages.CheckID("job", job) != nil || socket != filepath.Join(e.cfg.RunDir, job, sourceFolder, sourceSocket) {
		return ""
	}
	return job
}

// state looks at a VM, and calls a libvirt that hangs unreachable.
func (e *Executor) state(ctx context.Context, vm string) (hypervisor.State, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, stateTimeout,
		messages.Errorf(messages.CodeHypervisorDown, "no answer in %s", stateTimeout))
	defer cancel()
	return e.cfg.Hypervisor.State(ctx, vm)
}

// untilReachable calls f, which asks something of libvirt, until libvirt has answered or
// reachPatience is over.
func untilReachable(ctx context.Context, f func(context.Context) error) error {
	patience, cancel := context.WithTimeoutCause(ctx, reachPatience,
		messages.Errorf(messages.CodeHypervisorDown, "no answer in %s", reachPatience))
	defer cancel()
	for {
		err := f(patience)
		if messages.CodeOf(err) != messages.CodeHypervisorDown {
			return err
		}
		select {
		case <-time.After(reachPause):
		case <-patience.Done():
			return fmt.Errorf("libvirt is away: %w", err)
		}
	}
}
