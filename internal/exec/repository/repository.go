package repository

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"

	"github.com/nasfleet/nasfleet/internal/exec/bounded"
	"github.com/nasfleet/nasfleet/messages"
)

// DefaultTimeout bounds one mount or umount command where Options do not.
const DefaultTimeout = time.Minute

// DefaultStallTimeout is how long a repository may be silent where Options do not say.
const DefaultStallTimeout = time.Minute

// grace is how long what was told to end has to do so before it is given up.
const grace = bounded.Grace

// Options are how Open mounts.
type Options struct {
	// MountDir is the folder to mount on, for this job alone: made 0700 if it is missing, removed by
	// Close. What an earlier attempt left mounted there is unmounted first. Not used for a repository of
	// type dir.
	MountDir string
	// MountOptions are the names of options that are let through although it is not known what they do. That a
	// file which an option names may be used is the caller's to see to: OfHost lists them.
	MountOptions []string
	// Timeout bounds each mount and umount command; 0 means DefaultTimeout.
	Timeout time.Duration
	// StallTimeout is how long the repository may be silent before it is lost; 0 means DefaultStallTimeout.
	StallTimeout time.Duration
	// Lost is called once, from another goroutine, when the repository is lost; the error has the code
	// CodeRepositoryLost. The mount is taken away right after, so that whatever hangs on it fails.
	Lost func(error)
	Log  zerolog.Logger
}

// Repository is an open repository. Its methods may be called from any goroutine. Each returns when
// its context ends, or after a bounded time with CodeRepositoryLost, whatever the NAS does; the call itself
// may then hang on until the mount is gone.
//
// It is watched until Close. When it is silent for Options.StallTimeout, its FUSE program ends or its
// mount goes, it is lost: every call fails with CodeRepositoryLost from then on.
type Repository struct {
	root   *os.Root
	folder *os.File // the root again, for statfs
	dir    string
	mnt    *mount // nil for a repository of type dir
	stall  time.Duration
	log    zerolog.Logger
	onLost func(error)

	// quit ends the watch, watched is closed when it has ended; both are nil before it begins.
	quit, watched chan struct{}

	mu      sync.Mutex
	closed  bool
	lost    error
	pending sync.WaitGroup

	once     sync.Once
	closeErr error
}

// Open mounts a repository, or opens the folder of one of type dir. Its errors are CodeMountFailed with
// mount's own words, CodeRepositoryUnsupported for a type the host cannot mount, and CodeInvalidMessage
// for a type, address or option that is refused. After an error nothing is left mounted. The caller must
// Close.
func Open(ctx context.Context, spec messages.Repository, o Options) (*Repository, error) {
	if err := checkSpec(spec); err != nil {
		return nil, err
	}
	if o.Timeout == 0 {
		o.Timeout = DefaultTimeout
	}
	if o.StallTimeout == 0 {
		o.StallTimeout = DefaultStallTimeout
	}
	r := &Repository{dir: spec.Address, stall: o.StallTimeout, log: o.Log, onLost: o.Lost}
	if spec.Type == messages.RepositoryDir {
		if !filepath.IsAbs(spec.Address) || spec.MountOptions != "" {
			return nil, messages.Errorf(messages.CodeInvalidMessage, "a repository of type dir has an absolute path and no mount options")
		}
	} else {
		m, err := attach(ctx, spec, o)
		if err != nil {
			return nil, err
		}
		r.mnt, r.dir = m, m.dir
	}
	if err := r.openRoot(ctx, o.Timeout); err != nil {
		// Closed first: a FUSE program may have more to say when it ends.
		closeErr := r.Close()
		return nil, errors.Join(r.openError(ctx, spec, err), closeErr)
	}
	r.beginWatch()
	return r, nil
}

// openRoot is the first look at the mount. It is bounded as mounting is: a FUSE program may mount before
// it has reached its server.
func (r *Repository) openRoot(ctx context.Context, timeout time.Duration) error {
	ctx, cancel := context.WithTimeoutCause(ctx, timeout, errNoAnswer)
	defer cancel()
	root, err := call(ctx, r, quick, "open "+r.dir, func(context.Context, *os.Root) (*os.Root, error) { return os.OpenRoot(r.dir) })
	if err != nil {
		return err
	}
	r.root = root
	r.folder, err = call(ctx, r, quick, "open "+r.dir, func(_ context.Context, root *os.Root) (*os.File, error) { return root.Open(".") })
	return err
}

func (r *Repository) openError(ctx context.Context, spec messages.Repository, err error) error {
	if ctx.Err() != nil {
		return contextError(ctx, "open "+spec.Address)
	}
	if r.mnt == nil {
		return messages.Errorf(messages.CodeMountFailed, "%w", err).
			WithHint("%s must be a folder that exists on the host.", spec.Address)
	}
	if coded := new(messages.Error); errors.As(err, &coded) {
		err = coded.Err // it was never there, rather than lost
	}
	if r.mnt.daemon != nil {
		err = fmt.Errorf("%w: %s", err, strings.TrimSpace(r.mnt.daemon.Stderr()))
	}
	return messages.Errorf(messages.CodeMountFailed, "open %s: %w", spec.Address, err)
}

// Dir returns the absolute path of the repository's root on this host.
func (r *Repository) Dir() string { return r.dir }

// FreeBytes returns how much can be written; math.MaxInt64 where the file system does not tell.
func (r *Repository) FreeBytes(ctx context.Context) (int64, error) {
	st, err := call(ctx, r, quick, "statfs", func(context.Context, *os.Root) (unix.Statfs_t, error) { return r.statfs() })
	if err != nil {
		return 0, readError("free space of the repository", err)
	}
	return freeBytes(st), nil
}

// statfs asks the file system itself: network file systems pass it on to their server, which makes it
// a sign of life.
func (r *Repository) statfs() (st unix.Statfs_t, err error) {
	raw, err := r.folder.SyscallConn()
	if err != nil {
		return st, err
	}
	cerr := raw.Control(func(fd uintptr) { err = os.NewSyscallError("statfs", unix.Fstatfs(int(fd), &st)) })
	return st, errors.Join(cerr, err)
}

func freeBytes(st unix.Statfs_t) int64 {
	unit := uint64(max(st.Frsize, 0)) // FUSE counts in fragments; 0 where there are none
	if unit == 0 {
		unit = uint64(max(st.Bsize, 0))
	}
	if st.Blocks == 0 || unit == 0 || st.Bavail > math.MaxInt64/unit {
		return math.MaxInt64
	}
	return int64(st.Bavail * unit)
}

// Close unmounts. What is busy or hangs is detached, so that no mount and no mount point is left, in at most
// about three times the timeout. It may be called again, with the same result.
func (r *Repository) Close() error {
	r.once.Do(func() {
		r.mu.Lock()
		r.closed = true
		r.mu.Unlock()
		r.endWatch()
		if r.folder != nil {
			closeQuietly(r.folder)
		}
		if r.root != nil {
			closeQuietly(r.root)
		}
		if r.mnt != nil {
			r.closeErr = messages.EnsureCode(messages.CodeMountFailed, r.mnt.detach())
		}
		r.closeErr = errors.Join(r.closeErr, r.waitPending())
	})
	return r.closeErr
}

// waitPending waits for the calls that were given up. With the mount gone they end, unless the kernel
// holds them.
func (r *Repository) waitPending() error {
	done := make(chan struct{})
	go func() {
		defer close(done)
		r.pending.Wait()
	}()
	t := time.NewTimer(grace)
	defer t.Stop()
	select {
	case <-done:
		return nil
	case <-t.C:
		return messages.Errorf(messages.CodeMountFailed, "a call to %s still hangs", r.dir)
	}
}

// bound says how long a call may take, as a multiple of Options.StallTimeout.
type bound int

const (
	// quick is for what looks at, or changes, a few names.
	quick bound = 1
	// long is for what syncs files, removes them, or reads many.
	long bound = 10
)

// call runs f, which may block on the NAS, and waits for it only as long as ctx lives and the bound
// allows. f should look at ctx itself between its steps: it has the grace to end in order. A result
// that comes too late is closed where it can be.
func call[T any](ctx context.Context, r *Repository, b bound, what string, f func(context.Context, *os.Root) (T, error)) (T, error) {
	var zero T
	limit := time.Duration(b) * r.stall
	ctx, cancel := context.WithTimeoutCause(ctx, limit,
		messages.Errorf(messages.CodeRepositoryLost, "the repository has not answered within %s", limit))
	defer cancel()
	if err := ctx.Err(); err != nil {
		return zero, contextError(ctx, what)
	}
	r.mu.Lock()
	if r.closed || r.lost != nil {
		defer r.mu.Unlock()
		if r.lost != nil {
			return zero, fmt.Errorf("%s: %w", what, r.lost)
		}
		return zero, messages.Errorf(messages.CodeInternal, "%s: the repository is closed", what)
	}
	r.pending.Add(1)
	r.mu.Unlock()

	v, ok, err := bounded.Call(ctx, func() (T, error) {
		defer r.pending.Done()
		return f(ctx, r.root)
	})
	if !ok || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return zero, contextError(ctx, what)
	}
	if gone(err) {
		err = messages.Errorf(messages.CodeRepositoryLost, "%w", err)
	}
	return v, err
}

// do is call for what has no result.
func do(ctx context.Context, r *Repository, b bound, what string, f func(context.Context, *os.Root) error) error {
	_, err := call(ctx, r, b, what, func(ctx context.Context, root *os.Root) (struct{}, error) { return struct{}{}, f(ctx, root) })
	return err
}

// contextError says that a call was given up: a coded cause as it is, otherwise CodeTimeout or CodeCancelled.
func contextError(ctx context.Context, what string) error {
	cause := context.Cause(ctx)
	code := messages.CodeCancelled
	if errors.Is(cause, context.DeadlineExceeded) {
		code = messages.CodeTimeout
	}
	return messages.EnsureCode(code, fmt.Errorf("%s: %w", what, cause))
}
