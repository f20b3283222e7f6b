// Package proc runs a job's child processes: a child dies with the worker, is ended by TERM, a
// grace and KILL, is always waited for, and its last words are kept for the error.
package proc

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"
)

// DefaultGrace is how long a child has between TERM and KILL.
const DefaultGrace = 5 * time.Second

// maxStderr is how much of a child's standard error is kept (bytes, from its end).
const maxStderr = 8 << 10

// Spec describes a child. Arguments and environment are readable by every user of the machine:
// a secret travels by ExtraFiles or over a socket.
type Spec struct {
	Path string
	Args []string
	// Env is the whole environment; nil means PATH and LC_ALL=C alone.
	Env []string
	Dir string
	// ExtraFiles become descriptors 3 and up of the child.
	ExtraFiles []*os.File
	Stdin      io.Reader
	Stdout     io.Writer
	// Grace between TERM and KILL; 0 means DefaultGrace.
	Grace time.Duration
}

// Process is a running child. Its methods may be called from any goroutine.
type Process struct {
	cmd    *exec.Cmd
	name   string
	grace  time.Duration
	stderr *tail
	done   chan struct{}
	err    error // set before done is closed
}

// Start starts a child. The caller owns it and must call Stop, even after it has exited.
func Start(spec Spec) (*Process, error) {
	p := &Process{
		cmd:    exec.Command(spec.Path, spec.Args...), //nolint:noctx // Stop ends it: a context would KILL it without asking
		name:   filepath.Base(spec.Path),
		grace:  spec.Grace,
		stderr: &tail{},
		done:   make(chan struct{}),
	}
	if p.grace == 0 {
		p.grace = DefaultGrace
	}
	p.cmd.Env = spec.Env
	if p.cmd.Env == nil {
		p.cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "LC_ALL=C"}
	}
	p.cmd.Dir, p.cmd.ExtraFiles, p.cmd.Stdin, p.cmd.Stdout = spec.Dir, spec.ExtraFiles, spec.Stdin, spec.Stdout
	p.cmd.Stderr = p.stderr
	// The child dies with the worker, and a terminal's ^C reaches the worker alone.
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	// A grandchild that keeps the pipes open must not keep Wait.
	p.cmd.WaitDelay = p.grace
	if err := p.cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", p.name, err)
	}
	go func() {
		defer close(p.done)
		p.err = p.describe(p.cmd.Wait())
	}()
	return p, nil
}

// PID returns the child's process id.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Done is closed when the child has ended and was waited for.
func (p *Process) Done() <-chan struct{} { return p.done }

// Err returns how the child ended: nil for exit status 0, or while it runs.
func (p *Process) Err() error {
	select {
	case <-p.done:
		return p.err
	default:
		return nil
	}
}

// Stderr returns the end of what the child has written to its standard error.
func (p *Process) Stderr() string { return p.stderr.String() }

// Stop ends the child: TERM, the grace, KILL. It returns when the child is gone; a child that
// cannot die (it hangs in the kernel on a dead NAS) is left after a second grace, with an error.
func (p *Process) Stop() error {
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGKILL} {
		p.signal(sig)
		if p.wait(p.grace) {
			return nil
		}
	}
	return fmt.Errorf("%s (pid %d) does not die", p.name, p.PID())
}

// signal reaches the child's whole process group: what it started must not outlive it.
func (p *Process) signal(sig syscall.Signal) {
	select {
	case <-p.done:
		// Waited for: its id may be another's by now.
	default:
		// An error means that it has just ended.
		_ = syscall.Kill(-p.PID(), sig)
	}
}

// Kill ends the child at once.
func (p *Process) Kill() error {
	p.signal(syscall.SIGKILL)
	if p.wait(p.grace) {
		return nil
	}
	return fmt.Errorf("%s (pid %d) does not die", p.name, p.PID())
}

func (p *Process) wait(d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-p.done:
		return true
	case <-t.C:
		return false
	}
}

func (p *Process) describe(err error) error {
	if err == nil || errors.Is(err, exec.ErrWaitDelay) {
		return nil
	}
	if words := strings.TrimSpace(p.stderr.String()); words != "" {
		return fmt.Errorf("%s: %w: %s", p.name, err, words)
	}
	return fmt.Errorf("%s: %w", p.name, err)
}

// Run runs a child to its end and returns its standard output. When ctx ends first the child is
// stopped and the error is ctx's.
func Run(ctx context.Context, spec Spec) ([]byte, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	var out bytes.Buffer
	if spec.Stdout == nil {
		spec.Stdout = &out
	}
	p, err := Start(spec)
	if err != nil {
		return nil, err
	}
	select {
	case <-p.Done():
		return out.Bytes(), p.Err()
	case <-ctx.Done():
		return nil, errors.Join(context.Cause(ctx), p.Stop())
	}
}

// ExitCode returns the exit status in err's chain, or -1.
func ExitCode(err error) int {
	var e *exec.ExitError
	if errors.As(err, &e) {
		return e.ExitCode()
	}
	return -1
}

// tail keeps the end of what is written to it.
type tail struct {
	mu  sync.Mutex
	buf []byte
}

func (t *tail) Write(b []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.buf = append(t.buf, b...)
	if extra := len(t.buf) - maxStderr; extra > 0 {
		t.buf = append(t.buf[:0], t.buf[extra:]...)
	}
	return len(b), nil
}

func (t *tail) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return string(t.buf)
}
