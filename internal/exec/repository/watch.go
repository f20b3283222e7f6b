package repository

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nasfleet/nasfleet/internal/exec/bounded"
	"github.com/nasfleet/nasfleet/messages"
)

// maxProbePause is the longest pause between two looks at an open repository, and looksUntilLost how many
// in a row find it silent before it is lost. Looks are counted, not seconds: a worker that was stopped
// itself has not looked.
const (
	maxProbePause  = 2 * time.Second
	looksUntilLost = 10
)

// checkPatience bounds one question whether the repository is still there.
const checkPatience = 10 * time.Second

var errMountGone = errors.New("the mount is gone")

// probePause returns the pause between two looks: a part of the stall timeout, and short enough to
// notice at once that a mount has gone.
func (r *Repository) probePause() (pause time.Duration, looks int) {
	pause = min(r.stall/looksUntilLost, maxProbePause)
	return pause, int((r.stall + pause - 1) / pause)
}

func (r *Repository) beginWatch() {
	r.quit, r.watched = make(chan struct{}), make(chan struct{})
	go func() {
		defer close(r.watched)
		if err := r.watch(); err != nil {
			r.giveUp(err)
		}
	}()
}

// endWatch waits until nobody gives the repository up any more.
func (r *Repository) endWatch() {
	if r.quit != nil {
		close(r.quit)
		<-r.watched
	}
}

// watch asks the repository for a sign of life again and again, until Close; its error says why there
// is none. One question is open at a time: each may hang.
func (r *Repository) watch() error {
	var ended <-chan struct{}
	if r.mnt != nil && r.mnt.daemon != nil {
		ended = r.mnt.daemon.gone
	}
	pause, most := r.probePause()
	tick := time.NewTicker(pause)
	defer tick.Stop()
	answer := make(chan error, 1)
	open, silent := false, 0
	var last error
	for {
		select {
		case <-r.quit:
			return nil
		case <-ended:
			return r.mnt.daemon.lastWords()
		case last = <-answer:
			open = false
			switch {
			case last == nil:
				silent = 0
			case gone(last) || errors.Is(last, errMountGone):
				return last
			}
		case <-tick.C:
			if silent++; silent > most {
				return errors.Join(fmt.Errorf("no answer for %s", r.stall), last)
			}
			if !open && r.ask(answer) {
				open = true
			}
		}
	}
}

// ask sends the answer to one question; false when the repository is being closed.
func (r *Repository) ask(answer chan<- error) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.closed {
		return false
	}
	r.pending.Add(1)
	go func() {
		defer r.pending.Done()
		answer <- bounded.Try(r.probe)
	}()
	return true
}

// probe is one look: is it still mounted, and does it answer?
func (r *Repository) probe() error {
	if r.mnt != nil {
		if info, err := r.mnt.info(); err == nil && info == nil {
			return errMountGone
		}
	}
	_, err := r.statfs()
	return err
}

// Check says whether the repository is still there, in at most twelve seconds: nil, or an error of
// CodeRepositoryLost. It is for telling what a failure comes from.
func (r *Repository) Check(ctx context.Context) error {
	r.mu.Lock()
	lost, closed := r.lost, r.closed
	if lost == nil && !closed {
		r.pending.Add(1)
	}
	r.mu.Unlock()
	if lost != nil || closed {
		return lost
	}
	err := bounded.Do(ctx, min(checkPatience, r.stall), fmt.Errorf("no answer within %s", checkPatience), func() error {
		defer r.pending.Done()
		return r.probe()
	})
	if err != nil && ctx.Err() == nil {
		return r.lostError(err)
	}
	return nil // it answers, or nobody waits for an answer any more
}

func (r *Repository) lostError(cause error) error {
	return messages.Errorf(messages.CodeRepositoryLost, "the repository is lost: %w", cause)
}

// giveUp ends every call to the repository, those that hang included: with the mount gone, the kernel
// fails what waits on it.
func (r *Repository) giveUp(cause error) {
	err := r.lostError(cause)
	r.mu.Lock()
	r.lost = err
	r.mu.Unlock()
	r.log.Warn().Err(cause).Str("folder", r.dir).Msg("the repository is lost")
	if r.onLost != nil {
		r.onLost(err)
	}
	if r.mnt != nil {
		r.mnt.abort()
	}
}

// gone says whether an error of the system means that the file system has no other end any more: a FUSE
// connection that is closed or aborted, a file handle the server has forgotten, a server that is down.
func gone(err error) bool {
	for _, errno := range []unix.Errno{unix.ENOTCONN, unix.ECONNABORTED, unix.ESTALE, unix.EHOSTDOWN, unix.ESHUTDOWN} {
		if errors.Is(err, errno) {
			return true
		}
	}
	return false
}

// lastWords says that the program has ended, and what it said.
func (d *daemon) lastWords() error {
	err := errors.New("the program that serves the mount has ended")
	if words := strings.TrimSpace(d.Stderr()); d.Err() == nil && words != "" {
		return fmt.Errorf("%w: %s", err, words)
	}
	return errors.Join(err, d.Err())
}
