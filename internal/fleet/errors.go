package fleet

import (
	"context"
	"errors"
	"fmt"

	"github.com/nasfleet/nasfleet/internal/bus"
	"github.com/nasfleet/nasfleet/messages"
)

// Class says what kind of failure an error is.
type Class int

// The classes of failures.
const (
	// Failed is a job that failed, and whatever has no class of its own.
	Failed Class = iota + 1
	// Usage is input that cannot be obeyed: nothing was published.
	Usage
	// Unreachable is a NATS server that does not answer, or refuses access.
	Unreachable
	// NotFound is a host or backup that nobody knows.
	NotFound
	// Interrupted is a wait that was broken off; the job goes on.
	Interrupted
)

// Error is a failure of the management side.
type Error struct {
	Class Class
	// Hint is one sentence that says what to do, or "".
	Hint string
	Err  error
}

func (e *Error) Error() string { return e.Err.Error() }

func (e *Error) Unwrap() error { return e.Err }

// ClassOf returns the class of err; Failed for an error without one.
func ClassOf(err error) Class {
	var e *Error
	switch {
	case errors.As(err, &e):
		return e.Class
	case errors.Is(err, bus.ErrUnreachable), errors.Is(err, bus.ErrUnauthorized):
		return Unreachable
	case errors.Is(err, bus.ErrNotFound), errors.Is(err, bus.ErrNoStream):
		return NotFound
	case errors.Is(err, context.Canceled):
		return Interrupted
	}
	return Failed
}

// HintOf returns the sentence that says what to do about err, or "".
func HintOf(err error) string {
	var (
		e *Error
		m *messages.Error
	)
	switch {
	case errors.As(err, &e) && e.Hint != "":
		return e.Hint
	case errors.As(err, &m):
		return m.Advice()
	}
	return bus.Hint(err)
}

func usagef(format string, args ...any) *Error {
	return &Error{Class: Usage, Err: fmt.Errorf(format, args...)}
}

// refused turns what messages says of a command into a Usage error. The advice on
// CodeInvalidMessage is for commands written by hand and is left out.
func refused(err error) error {
	var m *messages.Error
	if !errors.As(err, &m) {
		return &Error{Class: Usage, Err: err}
	}
	if m.Code == messages.CodeInvalidMessage {
		return &Error{Class: Usage, Hint: m.Hint, Err: m.Err}
	}
	return &Error{Class: Usage, Hint: m.Advice(), Err: m}
}

// Outcome returns nil for a job that succeeded, and otherwise an error with what its final event says.
func Outcome(e messages.Event) error {
	if e.Kind == messages.KindSucceeded {
		return nil
	}
	err := fmt.Errorf("job %s on %s/%s was %s", e.JobID, e.Zone, e.Host, e.Kind)
	if e.Error == nil {
		return &Error{Class: Failed, Err: err}
	}
	return &Error{Class: Failed, Hint: e.Error.Hint, Err: fmt.Errorf("job %s on %s/%s: %s", e.JobID, e.Zone, e.Host, e.Error.Message)}
}
