package hypervisor

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"
)

// Watchdog says how to start the process that thaws a guest when the worker that froze it is gone
// or hangs. It is a child of the worker that is not killed with it, waits for words on its standard
// input, and calls Watch.
type Watchdog struct {
	// Program and Args start it; WatchConfig.Args are added. An empty Program means no watchdog.
	Program string
	Args    []string
	// RunDir is the worker's run folder: a note of each guest that is frozen lies in it.
	RunDir string
}

// The words between a worker and its watchdog, one a line. A worker whose words end without wordDone
// is gone.
const (
	wordReady  = "ready"  // the watchdog: the guest may be frozen now
	wordFiring = "firing" // the watchdog: it thaws the guest
	wordFrozen = "frozen" // the worker: the freeze succeeded
	wordDone   = "done"   // the worker: the guest is thawed, or never was frozen
	wordThaw   = "thaw"   // the worker: it cannot thaw the guest
)

const (
	// prepareTimeout bounds the watchdog's preparation, and readyTimeout the wait for it. Nothing is
	// frozen yet.
	prepareTimeout = 20 * time.Second
	readyTimeout   = 30 * time.Second
	// endGrace is how long a job waits for the end of a watchdog that has nothing more to do.
	endGrace = 5 * time.Second
)

// noGuard is a guard where no watchdog was set up.
type noGuard struct{}

func (noGuard) frozen()     {}
func (noGuard) fired() bool { return false }
func (noGuard) done()       {}
func (noGuard) takeOver()   {}

// watchdog is the worker's end of one.
type watchdog struct {
	cmd     *exec.Cmd
	words   *os.File
	answers *os.File
	note    string
	log     zerolog.Logger
	// owner waits for the process; ended is closed when it has ended, with err.
	owner *sync.WaitGroup
	ended chan struct{}
	err   error
}

// startWatchdog starts a watchdog for the guest and waits until it is ready.
func (h *Hypervisor) startWatchdog(ctx context.Context, w Watchdog, uuid string, log zerolog.Logger) (guard, error) {
	if w.Program == "" {
		return noGuard{}, nil
	}
	d := &watchdog{note: notePath(w.RunDir, uuid), log: log, owner: &h.watchdogs, ended: make(chan struct{})}
	if err := d.start(w, WatchConfig{URI: h.uri, UUID: uuid, RunDir: w.RunDir}); err != nil {
		return nil, fmt.Errorf("start the watchdog: %w", err)
	}
	answer, err := d.firstAnswer(ctx)
	if err != nil || answer != wordReady {
		d.leave(wordDone)
		return nil, fmt.Errorf("the watchdog is not ready: %w", errors.Join(err, wordsOf(answer)))
	}
	return d, nil
}

// wordsOf makes an error of what a watchdog said instead of wordReady.
func wordsOf(answer string) error {
	if answer == "" {
		return nil
	}
	return errors.New(answer)
}

func (d *watchdog) start(w Watchdog, cfg WatchConfig) error {
	theirIn, words, err := os.Pipe()
	if err != nil {
		return err
	}
	defer func() { _ = theirIn.Close() }()
	answers, theirOut, err := os.Pipe()
	if err != nil {
		_ = words.Close()
		return err
	}
	defer func() { _ = theirOut.Close() }()
	start := func(ownMounts bool) error {
		cfg.OwnMounts = ownMounts
		d.cmd = exec.Command(w.Program, append(append([]string(nil), w.Args...), cfg.Args()...)...) //nolint:noctx // it has to outlive the job, and the worker
		d.cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "LC_ALL=C"}
		d.cmd.Stdin, d.cmd.Stdout, d.cmd.Stderr = theirIn, theirOut, os.Stderr
		// A session of its own: no terminal's ^C, no signal to the worker's group. A mount namespace
		// of its own: it would keep the NAS mounted after a worker that was killed.
		d.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
		if ownMounts {
			d.cmd.SysProcAttr.Unshareflags = syscall.CLONE_NEWNS
		}
		return d.cmd.Start()
	}
	if err = start(true); errors.Is(err, syscall.EPERM) {
		err = start(false)
	}
	if err != nil {
		_, _ = words.Close(), answers.Close()
		return err
	}
	d.words, d.answers = words, answers
	return nil
}

// firstAnswer waits for the watchdog's first line, and reads nothing beyond it.
func (d *watchdog) firstAnswer(ctx context.Context) (string, error) {
	if err := d.answers.SetReadDeadline(time.Now().Add(readyTimeout)); err != nil {
		return "", err
	}
	stop := context.AfterFunc(ctx, func() { _ = d.answers.SetReadDeadline(time.Now()) })
	defer stop()
	var line []byte
	for char := make([]byte, 1); ; line = append(line, char[0]) {
		_, err := d.answers.Read(char)
		if errors.Is(err, io.EOF) {
			err = errors.New("it has ended")
		}
		if err != nil || char[0] == '\n' {
			return string(line), err
		}
	}
}

func (d *watchdog) say(word string) {
	if _, err := fmt.Fprintln(d.words, word); err != nil {
		d.log.Warn().Err(err).Msg("the watchdog of a freeze has ended early")
	}
}

func (d *watchdog) frozen() { d.say(wordFrozen) }

// fired looks without waiting: what the watchdog said before it thawed is in the pipe by now.
func (d *watchdog) fired() bool {
	var readable bool
	raw, err := d.answers.SyscallConn()
	if err == nil {
		err = raw.Control(func(fd uintptr) {
			poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
			n, perr := unix.Poll(poll, 0)
			readable = perr == nil && n > 0 && poll[0].Revents&unix.POLLIN != 0
		})
	}
	return err == nil && readable
}

// done waits for the watchdog's end, so that nothing of it is left when the backup runs.
func (d *watchdog) done() {
	d.leave(wordDone)
	select {
	case <-d.ended:
	case <-time.After(endGrace):
		d.log.Warn().Msg("the watchdog of a freeze takes long to end")
		return
	}
	if d.err != nil {
		// It was killed, and has left its note.
		_ = os.Remove(d.note)
	}
}

func (d *watchdog) takeOver() { d.leave(wordThaw) }

// leave says the last word to the watchdog, and has somebody wait for its end.
func (d *watchdog) leave(word string) {
	d.say(word)
	_ = d.words.Close()
	d.owner.Go(func() {
		defer close(d.ended)
		defer func() { _ = d.answers.Close() }()
		if d.err = d.cmd.Wait(); d.err != nil {
			d.log.Error().Err(d.err).Msg("the watchdog of a freeze has failed")
		}
	})
}

// notePath is the path of the note that a guest is frozen, or may be. Its name is the VM's UUID.
func notePath(runDir, uuid string) string { return filepath.Join(runDir, uuid+noteSuffix) }
