package exec

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nasfleet/nasfleet/internal/exec/bounded"
	"github.com/nasfleet/nasfleet/messages"
)

const (
	// sweepEvery is how often is looked for backup jobs that nobody works on.
	sweepEvery = 15 * time.Second
	// sweepPatience bounds a look.
	sweepPatience = 10 * time.Second
	// lockPatience is how long a job waits for its folder while its leftovers are ended, and lockPause
	// lies between two tries.
	lockPatience = 2 * time.Minute
	lockPause    = 50 * time.Millisecond
)

// Sweep begins to end the backup jobs of killed attempts, now and every 15 seconds, and returns what stops
// that. The guests' scratch files grow until then, and the command itself comes back only after AckWait,
// if ever.
func (e *Executor) Sweep(ctx context.Context) (stop func()) {
	if e.cfg.Hypervisor == nil {
		return func() {}
	}
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(sweepEvery)
		defer tick.Stop()
		for {
			if err := bounded.Try(func() error { return e.sweep(ctx) }); err != nil && ctx.Err() == nil {
				e.cfg.Log.Warn().Err(err).Msg("look for backup jobs of killed attempts")
			}
			select {
			case <-tick.C:
			case <-ctx.Done():
				return
			}
		}
	}()
	return func() { cancel(); <-done }
}

func (e *Executor) sweep(ctx context.Context) error {
	look, cancel := context.WithTimeoutCause(ctx, sweepPatience,
		messages.Errorf(messages.CodeHypervisorDown, "no answer in %s", sweepPatience))
	defer cancel()
	jobs, err := e.cfg.Hypervisor.BackupJobs(look)
	errs := []error{err}
	for _, j := range jobs {
		if job := e.jobOf(j.Socket); job != "" {
			errs = append(errs, e.endUnowned(ctx, j.VM, job, j.Socket))
		}
	}
	return errors.Join(errs...)
}

// endUnowned ends a backup job, and removes its files, unless a worker works on it: this one, or another
// with the same run folder.
func (e *Executor) endUnowned(ctx context.Context, vm, job, socket string) error {
	dir := filepath.Join(e.cfg.RunDir, job)
	if err := os.MkdirAll(dir, 0o711); err != nil {
		return err
	}
	lock, err := tryLock(dir)
	if lock == nil {
		return err
	}
	defer func() { _ = lock.Close() }()
	e.cfg.Log.Warn().Str("vm", vm).Str("socket", socket).Msg("ends the backup job of a killed attempt")
	if err := e.cfg.Hypervisor.EndBackup(ctx, vm, socket); err != nil {
		return err
	}
	return e.removeLeftover(ctx, job, "")
}

// tryLock takes the lock of a job's folder, which whoever works on the job holds: the kernel gives it
// back when its process dies. It returns nil when somebody has it, or the folder is gone.
func tryLock(dir string) (*os.File, error) {
	f, err := os.Open(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		_ = f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			err = nil
		}
		return nil, err
	}
	// Whoever had it before may have removed the folder.
	held, err := f.Stat()
	if err == nil {
		if now, nerr := os.Stat(dir); nerr == nil && os.SameFile(held, now) {
			return f, nil
		}
	}
	return nil, errors.Join(err, f.Close())
}

// lockFolder makes a job's folder and takes its lock.
func lockFolder(dir string) (*os.File, error) {
	for deadline := time.Now().Add(lockPatience); ; time.Sleep(lockPause) {
		if err := os.MkdirAll(dir, 0o711); err != nil {
			return nil, messages.Errorf(messages.CodeInternal, "make the job's folder: %w", err)
		}
		lock, err := tryLock(dir)
		if err != nil {
			return nil, messages.Errorf(messages.CodeInternal, "lock the job's folder: %w", err)
		}
		if lock != nil {
			return lock, nil
		}
		if time.Now().After(deadline) {
			return nil, messages.Errorf(messages.CodeInternal, "another process works on the job: the lock of %s is taken", dir)
		}
	}
}
