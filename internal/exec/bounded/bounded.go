// Package bounded makes calls that may hang in the kernel, such as those on the files of a NAS, and
// waits for them only as long as a context lives. A call that panics costs its caller, and not the program.
package bounded

import (
	"context"
	"fmt"
	"io"
	"runtime/debug"
	"sync"
	"time"

	"github.com/nasfleet/nasfleet/messages"
)

// Grace is how long a call that is given up has to end by itself: one that looks at its context
// between its steps ends in order.
const Grace = 2 * time.Second

// Panic is the error of a call that panicked, of CodeInternal. The stack is for the log alone.
type Panic struct {
	Value any
	Stack []byte
}

func (p *Panic) Error() string { return fmt.Sprintf("panic: %v", p.Value) }
func (p *Panic) Unwrap() error { return &messages.Error{Code: messages.CodeInternal} }

// Safely calls f and turns a panic into a *Panic. A goroutine that works for a job needs it: nobody above
// it can recover.
func Safely[T any](f func() (T, error)) (v T, err error) {
	defer func() {
		if value := recover(); value != nil {
			err = &Panic{value, debug.Stack()}
		}
	}()
	return f()
}

// Try is Safely for what has no result.
func Try(f func() error) error {
	_, err := Safely(func() (struct{}, error) { return struct{}{}, f() })
	return err
}

// Call runs f and returns its result; a panic is a *Panic. When ctx ends first, and f has not ended after the Grace, ok is
// false: f hangs on in a goroutine of its own until the kernel lets go of it, and a result that comes
// too late is closed where it can be. f must not touch what its caller uses then.
func Call[T any](ctx context.Context, f func() (T, error)) (v T, ok bool, err error) {
	c := &pending[T]{done: make(chan struct{})}
	go func() { c.finish(Safely(f)) }()
	select {
	case <-c.done:
	case <-ctx.Done():
		t := time.NewTimer(Grace)
		defer t.Stop()
		select {
		case <-c.done:
		case <-t.C:
		}
	}
	return c.take()
}

// Do is Call for what has no result, with a time to do it in. Given up, its error is the cause of
// ctx's end, or late when the time is over.
func Do(ctx context.Context, timeout time.Duration, late error, f func() error) error {
	ctx, cancel := context.WithTimeoutCause(ctx, timeout, late)
	defer cancel()
	_, ok, err := Call(ctx, func() (struct{}, error) { return struct{}{}, f() })
	if !ok {
		return context.Cause(ctx)
	}
	return err
}

// pending hands a result from the goroutine that made it to the one that waits, or to nobody.
type pending[T any] struct {
	done chan struct{}

	mu    sync.Mutex
	over  bool // finished, or given up
	value T
	err   error
}

func (c *pending[T]) finish(v T, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.over {
		if closer, ok := any(v).(io.Closer); ok && err == nil {
			_ = closer.Close()
		}
		return
	}
	c.over, c.value, c.err = true, v, err
	close(c.done)
}

// take returns the result; ok is false when there is none yet, and then there never will be.
func (c *pending[T]) take() (v T, ok bool, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.over {
		c.over = true
		return v, false, nil
	}
	return c.value, true, c.err
}
