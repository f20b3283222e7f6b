package storaged

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"

	"github.com/nasfleet/nasfleet/internal/exec/proc"
	"github.com/nasfleet/nasfleet/messages"
)

// DefaultIterTime is how long one guess of a passphrase takes on the machine that made the
// backup, give or take.
//
// QEMU measures how many PBKDF2-SHA256 rounds it can do in this time. Making a container costs
// about 2.4 s for the measuring and 1.1 times the iter-time for the key; opening it once costs
// the iter-time. On a 2-core machine with SHA instructions: 200 ms gives 0.8 million rounds (2.8 s
// a disk in all), 500 ms 2.0 million (3.5 s), 1000 ms 3.7 million (4.7 s) and 2000 ms 8 million
// (6.8 s). A second is about what cryptsetup's own two seconds for LUKS1 give there, well above
// the common advice of 0.6 million rounds, and every further second is paid again at each
// restore and verify (and thrice with cryptsetup, whose PBKDF2 is slower).
const DefaultIterTime = time.Second

const (
	defaultBinary = "qemu-storage-daemon"
	// maxConnections is for all exports together; a copier opens a few for each disk.
	maxConnections = 256
	// maxSocketPath is the room in sockaddr_un.sun_path, without its final NUL (unix(7)).
	maxSocketPath = 107
	// quitTimeout is how long the daemon may take to obey quit.
	quitTimeout = 2 * time.Second
	// defaultPatience is how long cleaning up may go on after its context has ended. A LUKS key's
	// derivation, which nothing interrupts, takes longer: its daemon is ended, because a job that is
	// cancelled has to end within 5 s.
	defaultPatience = 2 * time.Second
)

// Config says how to start a daemon.
type Config struct {
	// Binary is the program; "" means qemu-storage-daemon in PATH.
	Binary string
	// Dir is an existing folder that only its owner may enter: whoever reaches the socket in it
	// reads and writes the disks. Its path must be short, at most 85 bytes.
	Dir string
	// IterTime of new LUKS containers, in whole milliseconds; 0 means DefaultIterTime.
	IterTime time.Duration
	Log      zerolog.Logger
}

// Daemon is a running qemu-storage-daemon. Its methods may be called from any goroutine. While
// a LUKS container is made or opened the daemon serves nothing else, for seconds: prepare
// backups before the copying begins, or in a daemon of their own.
//
// Every method returns *messages.Error, or the cause of its context when that ended.
type Daemon struct {
	binary   string
	iterTime time.Duration
	log      zerolog.Logger
	proc     *proc.Process
	qmp      *monitor
	socket   string
	patience time.Duration
	ids      atomic.Uint64

	mu      sync.Mutex
	exports map[string]*graph // nil while the graph is being built

	stop    sync.Once
	stopErr error
}

// Start starts a daemon with no exports. The caller calls Stop. ctx bounds the start alone.
func Start(ctx context.Context, cfg Config) (*Daemon, error) {
	limited, cancel := within(ctx, startTimeout)
	defer cancel()
	d, err := start(limited, cfg)
	if err != nil && ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	return d, messages.EnsureCode(messages.CodeStorageDaemonFailed, err)
}

func start(ctx context.Context, cfg Config) (*Daemon, error) {
	if err := checkDir(cfg.Dir); err != nil {
		return nil, err
	}
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	d := &Daemon{
		binary:   cfg.Binary,
		iterTime: cfg.IterTime,
		log:      cfg.Log,
		patience: defaultPatience,
		exports:  map[string]*graph{},
	}
	if d.binary == "" {
		d.binary = defaultBinary
	}
	if d.iterTime == 0 {
		d.iterTime = DefaultIterTime
	}
	conn, err := d.spawn()
	if err != nil {
		return nil, err
	}
	d.socket = filepath.Join(cfg.Dir, fmt.Sprintf("nbd-%d.sock", d.proc.PID()))
	d.qmp, err = newMonitor(ctx, conn, d.log)
	if err == nil {
		err = d.serveNBD(ctx)
	}
	if err != nil {
		err = d.explain(err)
		return nil, errors.Join(err, d.Stop())
	}
	return d, nil
}

func checkDir(dir string) error {
	info, err := os.Stat(dir)
	switch {
	case err != nil:
		return err
	case !info.IsDir() || info.Mode().Perm()&0o077 != 0:
		return fmt.Errorf("%s must be a folder of mode 0700", dir)
	case len(filepath.Join(dir, "nbd-4194304.sock")) > maxSocketPath:
		return fmt.Errorf("%s is too long for the path of a unix socket", dir)
	}
	return nil
}

// spawn starts the child with one end of a socket pair as its monitor and returns the other:
// there is no socket in the file system to find, to wait for, or to remove.
func (d *Daemon) spawn() (net.Conn, error) {
	conn, theirs, err := socketPair()
	if err != nil {
		return nil, err
	}
	defer func() { _ = theirs.Close() }()
	d.proc, err = proc.Start(proc.Spec{
		Path:       d.binary,
		Args:       []string{"--chardev", "socket,id=qmp,fd=3", "--monitor", "chardev=qmp"},
		ExtraFiles: []*os.File{theirs},
	})
	if err != nil {
		_ = conn.Close()
		return nil, err
	}
	return conn, nil
}

// socketPair returns a connection and its other end, for a child.
func socketPair() (net.Conn, *os.File, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("socketpair: %w", err)
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), "qmp"), os.NewFile(uintptr(fds[1]), "qmp-child")
	conn, err := net.FileConn(ours) // a duplicate
	_ = ours.Close()
	if err != nil {
		_ = theirs.Close()
		return nil, nil, err
	}
	return conn, theirs, nil
}

func (d *Daemon) serveNBD(ctx context.Context) error {
	return d.qmp.execute(ctx, "nbd-server-start", object{
		"addr":            object{"type": "unix", "data": object{"path": d.socket}},
		"max-connections": maxConnections,
	}, nil)
}

// Socket returns the path of the unix socket on which the exports are served over NBD.
func (d *Daemon) Socket() string { return d.socket }

// PID returns the child's process id.
func (d *Daemon) PID() int { return d.proc.PID() }

// Done is closed when the daemon has ended, asked or not.
func (d *Daemon) Done() <-chan struct{} { return d.proc.Done() }

// Ended returns an error of CodeStorageDaemonFailed when the daemon has ended, which it does not by
// itself, and nil while it runs. It is for who has lost a connection to it, and waits a moment: the end of
// a connection is seen before the end of the process.
func (d *Daemon) Ended() error {
	t := time.NewTimer(quitTimeout)
	defer t.Stop()
	select {
	case <-d.proc.Done():
		if err := d.proc.Err(); err != nil {
			return messages.Errorf(messages.CodeStorageDaemonFailed, "the storage daemon has ended: %w", err)
		}
		return messages.Errorf(messages.CodeStorageDaemonFailed, "the storage daemon has ended")
	case <-t.C:
		return nil
	}
}

// Stop ends the daemon and removes its socket. Exports that are still open are dropped: only
// CloseExport says whether their last bytes were written. Further calls return what the first did.
func (d *Daemon) Stop() error {
	d.stop.Do(func() {
		d.stopErr = messages.EnsureCode(messages.CodeStorageDaemonFailed, d.quit())
	})
	return d.stopErr
}

func (d *Daemon) quit() error {
	end := d.proc.Stop
	if d.qmp != nil {
		ctx, cancel := context.WithTimeout(context.Background(), quitTimeout)
		defer cancel()
		if err := d.qmp.execute(ctx, "quit", nil, nil); err == nil {
			select {
			case <-d.proc.Done():
			case <-ctx.Done():
			}
		}
		if ctx.Err() != nil {
			// It is busy or hangs, and would not see a TERM either.
			end = d.proc.Kill
		}
	}
	err := end()
	if d.qmp != nil {
		d.qmp.close()
	}
	if e := os.Remove(d.socket); e != nil && !errors.Is(e, os.ErrNotExist) {
		err = errors.Join(err, e)
	}
	return err
}

// abandon kills a daemon that could not be cleaned up: what is left in it goes with it.
func (d *Daemon) abandon(cause error) {
	d.log.Warn().Err(cause).Msg("the storage daemon cannot be cleaned up; it is ended")
	if err := d.proc.Kill(); err != nil {
		d.log.Error().Err(err).Msg("the storage daemon cannot be ended")
	}
}

// explain adds the daemon's last words to the error of a connection that was lost.
func (d *Daemon) explain(err error) error {
	if !errors.Is(err, errMonitorLost) {
		return err
	}
	// The end of the connection is seen a moment before the end of the process.
	t := time.NewTimer(quitTimeout)
	defer t.Stop()
	select {
	case <-d.proc.Done():
	case <-t.C:
	}
	if words := d.proc.Err(); words != nil {
		return messages.Errorf(messages.CodeStorageDaemonFailed, "%w: %w", err, words)
	}
	return messages.Errorf(messages.CodeStorageDaemonFailed, "%w", err)
}

// id returns a new name for something in the daemon.
func (d *Daemon) id(kind string) string { return fmt.Sprintf("%s%d", kind, d.ids.Add(1)) }

// linger returns a context that ends some time after ctx, for cleaning up.
func (d *Daemon) linger(ctx context.Context) (context.Context, context.CancelFunc) {
	out, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	stop := context.AfterFunc(ctx, func() {
		time.AfterFunc(d.patience, func() { cancel(errors.New("cleaning up took too long")) })
	})
	return out, func() { stop(); cancel(context.Canceled) }
}
