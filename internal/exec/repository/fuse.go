package repository

import (
	"context"
	"errors"
	"fmt"
	"os/exec"
	"strings"
	"time"

	"github.com/nasfleet/nasfleet/internal/exec/proc"
	"github.com/nasfleet/nasfleet/messages"
)

// mountPoll is how often the mount table is looked at while a FUSE program connects.
const mountPoll = 10 * time.Millisecond

// fuseProgram returns the program behind a type such as fuse.sshfs.
func fuseProgram(fsType string) (string, bool) {
	if fsType == "sshfs" {
		return fsType, true
	}
	return strings.CutPrefix(fsType, "fuse.")
}

// serve runs a FUSE program in the foreground (-f, as every libfuse program takes it) until its
// mount is there, which may be before the program has reached its server (sshfs). mount(8) would let it
// go into the background: a daemon without an owner that outlives the worker and, with it, keeps the
// mount namespace and the mount. As a child it dies with the worker, and ending it fails whatever hangs
// on the mount.
func (m *mount) serve(ctx context.Context, program, address string, opts []string) error {
	path, err := lookFUSE(program)
	if err != nil {
		return err
	}
	m.daemon, err = startDaemon(proc.Spec{
		Path:  path,
		Args:  []string{"-f", "-o", strings.Join(opts, ","), address, m.dir},
		Grace: grace,
	})
	if err != nil {
		return err
	}
	tick := time.NewTicker(mountPoll)
	defer tick.Stop()
	for {
		info, err := m.info()
		if err != nil || info != nil {
			return err
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-m.daemon.Done():
			return errors.Join(m.daemon.Err(), fmt.Errorf("%s ended before it mounted %s", program, address))
		}
	}
}

// gaveUp says why a FUSE program has taken back the mount it had made: it did not reach its server.
func (m *mount) gaveUp(ctx context.Context) error {
	select {
	case <-m.daemon.Done():
		return errors.Join(m.daemon.Err(), errors.New("the mount is gone again"))
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// lookFUSE finds a FUSE program by its mount helper's name. By its own only sshfs is found: any other program
// of this host could be started so.
func lookFUSE(program string) (string, error) {
	path, err := exec.LookPath("mount.fuse." + program)
	if err != nil && program == "sshfs" {
		path, err = exec.LookPath(program)
	}
	if err != nil {
		return "", messages.Errorf(messages.CodeRepositoryUnsupported, "%w", err).
			WithHint("Install %s on the host, with its mount helper (mount.fuse.%s).", program, program)
	}
	return path, nil
}

// daemon is a FUSE program with the helpers it starts: sshfs has an ssh, which can wait for long when its
// server is silent.
type daemon struct {
	*proc.Process
	gone chan struct{} // closed when the program has ended and its helpers are killed
}

func startDaemon(spec proc.Spec) (*daemon, error) {
	p, err := proc.Start(spec)
	if err != nil {
		return nil, err
	}
	d := &daemon{Process: p, gone: make(chan struct{})}
	go func() {
		defer close(d.gone)
		<-p.Done()
		// Now, because later the number of the group may be another's.
		killHelpers(p)
	}()
	return d, nil
}

// end waits for the daemon, which ends by itself when its mount is gone, and kills it when it does not.
func (d *daemon) end() error {
	t := time.NewTimer(grace)
	defer t.Stop()
	select {
	case <-d.gone:
		return nil
	case <-t.C:
	}
	// The helpers as well: while one holds the standard error, the program counts as running.
	killHelpers(d.Process)
	if err := d.Kill(); err != nil {
		return err
	}
	<-d.gone
	return nil
}
