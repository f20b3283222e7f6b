package hypervisor

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/moby/sys/mountinfo"
	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"

	"github.com/nasfleet/nasfleet/messages"
)

const (
	// silence is how long a worker may say nothing while it freezes the guest, and then while the
	// guest is frozen. Freezing has freezeTimeout.
	silence = 30 * time.Second
	// settle is how long a freeze that was cut off may still be under way to the guest.
	settle = 3 * time.Second
	// thawTimeout bounds one try to thaw, with libvirt or the agent hanging.
	thawTimeout = 40 * time.Second
	// giveUp is when the watchdog leaves a guest whose agent never answers; the note stays.
	giveUp = time.Hour
	// maxThawPause is how long the watchdog waits between two tries, at most.
	maxThawPause = 10 * time.Second
)

// WatchConfig is what a watchdog needs to know.
type WatchConfig struct {
	// URI is libvirt's.
	URI string
	// UUID is the VM's.
	UUID string
	// RunDir is the worker's run folder.
	RunDir string
	// OwnMounts says that the process is in a mount namespace of its own, which is a copy of the worker's.
	OwnMounts bool
}

// Args are the arguments that the watchdog's program is started with; its last command gets them
// into a WatchConfig again.
func (c WatchConfig) Args() []string {
	args := []string{c.URI, c.UUID, c.RunDir}
	if c.OwnMounts {
		args = append(args, "own-mounts")
	}
	return args
}

// Watch is the watchdog's whole life. It thaws the guest when the worker's words on in end without a
// last one, when the worker is silent for half a minute, when it is told to, or when ctx ends; until
// the guest is thawed, is off or gone, or an hour is over. In the normal case it does nothing and
// leaves no trace. Its own words go to out.
func Watch(ctx context.Context, cfg WatchConfig, in io.Reader, out io.Writer, log zerolog.Logger) error {
	// The worker may be gone, and with it who reads out and the log.
	signal.Ignore(syscall.SIGPIPE)
	log = log.With().Str("uuid", cfg.UUID).Logger()
	if cfg.OwnMounts {
		letGo(cfg.RunDir, log)
	}
	w := &watch{cfg: cfg, log: log}
	if err := w.prepare(ctx); err != nil {
		_, _ = fmt.Fprintln(out, err)
		return err
	}
	defer w.close()
	_, _ = fmt.Fprintln(out, wordReady)
	reason, frozen := w.listen(ctx, in)
	if reason == "" {
		return w.note.remove()
	}
	_, _ = fmt.Fprintln(out, wordFiring)
	log.Warn().Str("reason", reason).Msg("the watchdog thaws the guest")
	if err := w.thaw(context.WithoutCancel(ctx), frozen); err != nil {
		log.Error().Err(err).Msg("the guest is still frozen (virsh domfsthaw); the next worker tries again")
		return err
	}
	log.Warn().Msg("the guest is thawed")
	return w.note.remove()
}

type watch struct {
	cfg  WatchConfig
	log  zerolog.Logger
	note *note
	h    *Hypervisor
}

// prepare takes the guest's note, and takes back what a watchdog that was killed has left.
func (w *watch) prepare(ctx context.Context) (err error) {
	ctx, cancel := context.WithTimeout(ctx, prepareTimeout)
	defer cancel()
	if w.note, err = takeNote(ctx, w.cfg.RunDir, w.cfg.UUID); err != nil {
		return err
	}
	if w.h, err = Connect(ctx, w.cfg.URI, w.log); err == nil && w.note.left {
		_, err = w.h.thawLeft(ctx, w.cfg.UUID)
	}
	if err != nil {
		if !w.note.left {
			err = errors.Join(err, w.note.remove())
		}
		w.close()
	}
	return err
}

func (w *watch) close() {
	w.note.close()
	if w.h == nil {
		return
	}
	if err := w.h.Close(); err != nil {
		w.log.Debug().Err(err).Msg("close the connection to libvirt")
	}
}

// listen waits for a reason to thaw, "" when there is none, and says whether the freeze had succeeded.
func (w *watch) listen(ctx context.Context, in io.Reader) (reason string, frozen bool) {
	words := make(chan string)
	go func() { // ends with its reader, or with the process
		defer close(words)
		for lines := bufio.NewScanner(in); lines.Scan(); {
			select {
			case words <- lines.Text():
			case <-ctx.Done():
				return
			}
		}
	}()
	for {
		select {
		case word, more := <-words:
			switch {
			case !more:
				return "the worker is gone", frozen
			case word == wordDone:
				return "", frozen
			case word == wordThaw:
				return "the worker could not", frozen
			}
			frozen = frozen || word == wordFrozen
		case <-time.After(silence):
			return fmt.Sprintf("the worker has said nothing for %v", silence), frozen
		case <-ctx.Done():
			return "the watchdog was told to end", frozen
		}
	}
}

// thaw thaws the guest for sure. When the freeze was not known to have succeeded it may come yet.
func (w *watch) thaw(ctx context.Context, frozen bool) error {
	ctx, cancel := context.WithTimeout(ctx, giveUp)
	defer cancel()
	calm := time.Now().Add(settle)
	for pause := time.Second; ; pause = min(2*pause, maxThawPause) {
		err := w.tryThaw(ctx, frozen)
		switch {
		case messages.CodeOf(err) == messages.CodeVMNotFound:
			return nil
		case err == nil && (frozen || time.Now().After(calm)):
			return nil
		case err == nil:
			pause = time.Second / 2
		default:
			w.log.Warn().Err(err).Msg("the guest cannot be thawed yet")
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return errors.Join(err, context.Cause(ctx))
		}
	}
}

func (w *watch) tryThaw(ctx context.Context, frozen bool) error {
	ctx, cancel := context.WithTimeout(ctx, thawTimeout)
	defer cancel()
	if frozen {
		return w.h.thaw(ctx, w.cfg.UUID)
	}
	_, err := w.h.thawLeft(ctx, w.cfg.UUID)
	return err
}

// letGo unmounts what lies below the worker's run folder from the process's own mount namespace.
func letGo(dir string, log zerolog.Logger) {
	mounts, err := mountinfo.GetMounts(func(m *mountinfo.Info) (skip, stop bool) {
		return !strings.HasPrefix(m.Mountpoint, filepath.Clean(dir)+"/"), false
	})
	for i := len(mounts) - 1; i >= 0; i-- {
		err = errors.Join(err, unix.Unmount(mounts[i].Mountpoint, unix.MNT_DETACH))
	}
	if err != nil {
		log.Debug().Err(err).Msg("let go of the worker's mounts")
	}
}

// note is a guest's, locked by its watchdog for as long as that lives.
type note struct {
	file *os.File
	// left says that there was one of a watchdog that was killed.
	left bool
}

const (
	noteSuffix = ".frozen"
	notePoll   = 100 * time.Millisecond
)

// takeNote makes and locks a guest's note. Another watchdog's is waited for.
func takeNote(ctx context.Context, runDir, uuid string) (*note, error) {
	for {
		n, err := tryNote(notePath(runDir, uuid))
		if !errors.Is(err, unix.EWOULDBLOCK) && !errors.Is(err, os.ErrExist) {
			return n, err
		}
		select {
		case <-time.After(notePoll):
		case <-ctx.Done():
			return nil, errors.New("another watchdog is still thawing this guest")
		}
	}
}

// tryNote locks a note. The file may have been removed by its last owner between opening and locking
// it: then the error is os.ErrExist.
func tryNote(path string) (*note, error) {
	_, err := os.Stat(path)
	left := err == nil
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("note the freeze: %w", err)
	}
	if err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err == nil {
		mine, merr := f.Stat()
		now, nerr := os.Stat(path)
		if merr == nil && nerr == nil && os.SameFile(mine, now) {
			return &note{file: f, left: left}, nil
		}
		err = os.ErrExist
	}
	_ = f.Close()
	return nil, fmt.Errorf("note the freeze: %w", err)
}

func (n *note) remove() error { return os.Remove(n.file.Name()) }

func (n *note) close() {
	if n != nil {
		_ = n.file.Close()
	}
}
