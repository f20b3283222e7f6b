package repository

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"

	"github.com/nasfleet/nasfleet/messages"
)

// DefaultTimeout bounds one mount or umount command where Options do not.
const DefaultTimeout = time.Minute

// grace is how long a call that was told to end has to do so before it is given up.
const grace = 2 * time.Second

// Options are how Open mounts.
type Options struct {
	// MountDir is the folder to mount on, for this job alone: made 0700 if it is missing, removed by
	// Close. What an earlier attempt left mounted there is unmounted first. Not used for a repository of
	// type dir.
	MountDir string
	// Timeout bounds each mount and umount command; 0 means DefaultTimeout.
	Timeout time.Duration
	Log     zerolog.Logger
}

// Repository is an open repository. Its methods may be called from any goroutine. Each returns when
// its context ends, whatever the NAS does; the call itself may then hang on until Close.
type Repository struct {
	root *os.Root
	dir  string
	mnt  *mount // nil for a repository of type dir

	mu      sync.Mutex
	closed  bool
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
	r := &Repository{dir: spec.Address}
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
	return r, nil
}

// openRoot is the first look at the mount. It is bounded as mounting is: a FUSE program may mount before
// it has reached its server.
func (r *Repository) openRoot(ctx context.Context, timeout time.Duration) error {
	ctx, cancel := context.WithTimeoutCause(ctx, timeout, errNoAnswer)
	defer cancel()
	root, err := call(ctx, r, "open "+r.dir, func(*os.Root) (*os.Root, error) { return os.OpenRoot(r.dir) })
	if err != nil {
		return err
	}
	r.root = root
	return nil
}

func (r *Repository) openError(ctx context.Context, spec messages.Repository, err error) error {
	if ctx.Err() != nil {
		return contextError(ctx, "open "+spec.Address)
	}
	if r.mnt == nil {
		return messages.Errorf(messages.CodeMountFailed, "%w", err).
			WithHint("%s must be a folder that exists on the host.", spec.Address)
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
	free, err := call(ctx, r, "statfs", func(root *os.Root) (int64, error) {
		dir, err := root.Open(".")
		if err != nil {
			return 0, err
		}
		defer closeQuietly(dir)
		var st unix.Statfs_t
		if err := unix.Fstatfs(int(dir.Fd()), &st); err != nil {
			return 0, os.NewSyscallError("statfs", err)
		}
		return freeBytes(st), nil
	})
	return free, readError("free space of the repository", err)
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

// call runs f, which may block on the NAS, and waits for it only as long as ctx lives. f should look at ctx
// itself between its steps: it has the grace to end in order. A result that comes too late is closed
// where it can be.
func call[T any](ctx context.Context, r *Repository, what string, f func(*os.Root) (T, error)) (T, error) {
	var zero T
	if err := ctx.Err(); err != nil {
		return zero, contextError(ctx, what)
	}
	r.mu.Lock()
	if r.closed {
		r.mu.Unlock()
		return zero, messages.Errorf(messages.CodeInternal, "%s: the repository is closed", what)
	}
	r.pending.Add(1)
	r.mu.Unlock()

	c := &pendingCall[T]{done: make(chan struct{})}
	go func() {
		defer r.pending.Done()
		c.finish(f(r.root))
	}()
	select {
	case <-c.done:
	case <-ctx.Done():
		t := time.NewTimer(grace)
		defer t.Stop()
		select {
		case <-c.done:
		case <-t.C:
		}
	}
	v, ok, err := c.take()
	if !ok || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return zero, contextError(ctx, what)
	}
	return v, err
}

// do is call for what has no result.
func do(ctx context.Context, r *Repository, what string, f func(*os.Root) error) error {
	_, err := call(ctx, r, what, func(root *os.Root) (struct{}, error) { return struct{}{}, f(root) })
	return err
}

// pendingCall hands a result from the goroutine that made it to the one that waits, or to nobody.
type pendingCall[T any] struct {
	done chan struct{}

	mu    sync.Mutex
	over  bool // finished, or given up
	value T
	err   error
}

func (c *pendingCall[T]) finish(v T, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.over {
		if closer, ok := any(v).(io.Closer); ok && err == nil {
			closeQuietly(closer)
		}
		return
	}
	c.over, c.value, c.err = true, v, err
	close(c.done)
}

// take returns the result; ok is false when there is none yet, and then there never will be.
func (c *pendingCall[T]) take() (v T, ok bool, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.over {
		c.over = true
		return v, false, nil
	}
	return c.value, true, c.err
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
