package messages

import (
	"errors"
	"fmt"
)

// Error is a failure somebody has to act on: a stable code for programs, a hint for people, and
// the cause. It travels in events as a Failure.
type Error struct {
	// Code is stable across releases; see the constants of type Code.
	Code Code
	// Hint is one sentence that says what to do. Empty means the code's own hint.
	Hint string
	// Err is the cause. It must not hold a secret: it is printed, logged and published.
	Err error
}

// Errorf returns an *Error of the given code with the code's own hint. The format is that of
// fmt.Errorf; %w keeps the cause.
func Errorf(code Code, format string, args ...any) *Error {
	return &Error{Code: code, Err: fmt.Errorf(format, args...)}
}

// WithHint returns a copy of e with a more precise hint than its code's.
func (e *Error) WithHint(format string, args ...any) *Error {
	c := *e
	c.Hint = fmt.Sprintf(format, args...)
	return &c
}

func (e *Error) Error() string {
	if e.Err == nil {
		return string(e.Code)
	}
	return string(e.Code) + ": " + e.Err.Error()
}

func (e *Error) Unwrap() error { return e.Err }

// Advice returns the hint of e, or of its code.
func (e *Error) Advice() string {
	if e.Hint != "" {
		return e.Hint
	}
	return e.Code.Hint()
}

// CodeOf returns the code of the outermost *Error in err's chain; CodeInternal for any other
// error, and "" for nil.
func CodeOf(err error) Code {
	if err == nil {
		return ""
	}
	var e *Error
	if errors.As(err, &e) {
		return e.Code
	}
	return CodeInternal
}

// EnsureCode returns err itself if it already carries a code, and otherwise an *Error of the
// given code around it. It is for the edges of a package, where a bare error of the standard
// library would otherwise leave without one. EnsureCode(code, nil) is nil.
func EnsureCode(code Code, err error) error {
	if err == nil {
		return nil
	}
	var e *Error
	if errors.As(err, &e) {
		return err
	}
	return &Error{Code: code, Err: err}
}
