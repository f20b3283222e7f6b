package exec

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nasfleet/nasfleet/internal/exec/bounded"
	"github.com/nasfleet/nasfleet/internal/exec/copier"
	"github.com/nasfleet/nasfleet/internal/exec/repository"
	"github.com/nasfleet/nasfleet/internal/exec/storaged"
	"github.com/nasfleet/nasfleet/messages"
)

// maxRunDir leaves room below the run folder for /<job id>/<daemon>, which is a storage daemon's
// folder and bounded by the length of a unix socket's path (see storaged.Config).
const maxRunDir = 48

// mountFolder is the job's mount point, in its folder.
const mountFolder = "mnt"

// undoTimeout bounds each step of the cleaning up. The steps have bounds of their own, far
// shorter; this one is for what nobody foresaw.
const undoTimeout = time.Minute

// workspace is one job's folder on the host, and what has to be undone when the job ends,
// whichever way: the newest first.
type workspace struct {
	e   *Executor
	job string
	dir string
	// limiter bounds all the job's copying.
	limiter *copier.Limiter
	// giveUp ends the job with a cause; nil where nobody works on one.
	giveUp context.CancelCauseFunc
	// repo is the repository, once there is one.
	repo *repository.Repository

	mu   sync.Mutex
	undo []undoStep
}

type undoStep struct {
	what string
	do   func(context.Context) error
}

// open makes the job's folder. What a killed attempt left in it is removed.
func (e *Executor) open(job string) (*workspace, error) {
	ws := &workspace{e: e, job: job, dir: filepath.Join(e.cfg.RunDir, job)}
	lock, err := lockFolder(ws.dir)
	if err != nil {
		return nil, err
	}
	// What is still mounted there is busy: repository.Open takes it away.
	if err := emptyFolder(ws.dir); err != nil && !errors.Is(err, unix.EBUSY) {
		_ = lock.Close()
		return nil, messages.Errorf(messages.CodeInternal, "remove what an earlier attempt left: %w", err)
	}
	ws.onClose("the job's folder", func(context.Context) error { return errors.Join(removeFolder(ws.dir), lock.Close()) })
	return ws, nil
}

// removeFolder removes a job's folder.
func removeFolder(dir string) error {
	if err := emptyFolder(dir); err != nil {
		return err
	}
	if err := os.Remove(dir); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// emptyFolder removes what is in a job's folder. It never goes below the mount point: if a repository is
// still mounted there, what is below are other jobs' backups.
func emptyFolder(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	var errs []error
	for _, e := range entries {
		remove := os.RemoveAll
		if e.Name() == mountFolder {
			remove = os.Remove
		}
		errs = append(errs, remove(filepath.Join(dir, e.Name())))
	}
	return errors.Join(errs...)
}

// onClose adds a step to the cleaning up. A step must be safe when its work is done already. It
// may be called from any goroutine.
func (ws *workspace) onClose(what string, do func(context.Context) error) {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	ws.undo = append(ws.undo, undoStep{what, do})
}

// close cleans up, once the job's goroutines have ended. It goes on after a step that fails.
func (ws *workspace) close() error {
	var errs []error
	for step, ok := ws.last(); ok; step, ok = ws.last() {
		ctx, cancel := context.WithTimeout(context.Background(), undoTimeout)
		if err := bounded.Try(func() error { return step.do(ctx) }); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", step.what, err))
		}
		cancel()
	}
	return errors.Join(errs...)
}

// last takes the newest step.
func (ws *workspace) last() (undoStep, bool) {
	ws.mu.Lock()
	defer ws.mu.Unlock()
	n := len(ws.undo)
	if n == 0 {
		return undoStep{}, false
	}
	step := ws.undo[n-1]
	ws.undo = ws.undo[:n-1]
	return step, true
}

// folder makes a folder below the job's, open to the worker alone.
func (ws *workspace) folder(name string) (string, error) {
	dir := filepath.Join(ws.dir, name)
	if err := os.Mkdir(dir, 0o700); err != nil {
		return "", messages.Errorf(messages.CodeInternal, "make a folder of the job: %w", err)
	}
	return dir, nil
}

// daemon starts a storage daemon that lives as long as the job. Each disk has its own on each
// side: opening a LUKS container takes a daemon's whole attention for seconds.
func (ws *workspace) daemon(ctx context.Context, name string) (*storaged.Daemon, error) {
	dir, err := ws.folder(name)
	if err != nil {
		return nil, err
	}
	d, err := storaged.Start(ctx, storaged.Config{
		Binary: ws.e.cfg.StorageDaemon, Dir: dir, IterTime: ws.e.cfg.LUKSIterTime, Log: ws.e.cfg.Log,
	})
	if err != nil {
		return nil, err
	}
	ws.onClose("storage daemon", func(context.Context) error { return d.Stop() })
	return d, nil
}

// repository mounts a repository for as long as the job lasts. When it is lost the job ends.
func (ws *workspace) repository(ctx context.Context, spec messages.Repository) (*repository.Repository, error) {
	repo, err := repository.Open(ctx, spec, repository.Options{
		MountDir: filepath.Join(ws.dir, mountFolder), MountOptions: ws.e.cfg.MountOptions,
		Timeout: ws.e.cfg.MountTimeout, StallTimeout: ws.e.cfg.StallTimeout, Lost: ws.giveUp,
		Log: ws.e.cfg.Log.With().Str("job", ws.job).Logger(),
	})
	if err != nil {
		return nil, err
	}
	ws.repo = repo
	ws.onClose("repository", func(context.Context) error { return repo.Close() })
	return repo, nil
}
