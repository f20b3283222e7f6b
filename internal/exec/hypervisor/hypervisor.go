// Package hypervisor is the only one that knows libvirt: what a VM is made of, the backup job that
// serves its disks over NBD, the guest agent's freeze, and the definition of a restored VM.
//
// It needs the build tag libvirt_dlopen: libvirt's library is loaded when it is first used.
package hypervisor

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/rs/zerolog"
	"libvirt.org/go/libvirt"

	"github.com/nasfleet/nasfleet/internal/exec/bounded"
	"github.com/nasfleet/nasfleet/messages"
)

// maxCalls bounds the calls to libvirt in flight. Each takes a thread until libvirt answers, so a
// libvirtd that hangs must not gather more and more of them.
const maxCalls = 16

// answerTimeout bounds every call: more than a freeze, the beginning of a backup and its end take together.
const answerTimeout = 3 * time.Minute

// closeGrace is how long Close waits for calls in flight.
const closeGrace = 10 * time.Second

// Hypervisor is a connection to a libvirtd; it connects again when the connection is lost. Its
// methods may be called from any goroutine.
//
// libvirt's own calls block and cannot be cancelled. A method returns when its context ends, with
// the context's cause; what it had asked for ends in the background when libvirt answers.
type Hypervisor struct {
	uri    string
	log    zerolog.Logger
	slots  chan struct{} // holds one item for each call in flight
	closed chan struct{}
	once   sync.Once
	// watchdogs are those that have been left to end.
	watchdogs sync.WaitGroup

	mu   sync.Mutex
	link *link
}

// link is one connection; Hypervisor.mu guards its fields.
type link struct {
	conn  *libvirt.Connect
	users int
	// stale means that the last user closes it.
	stale bool
}

// Connect connects to the libvirtd at the URI, such as qemu:///system. The error has the code
// CodeHypervisorDown. The caller must Close the Hypervisor.
func Connect(ctx context.Context, uri string, log zerolog.Logger) (*Hypervisor, error) {
	h := &Hypervisor{
		uri:    uri,
		log:    log,
		slots:  make(chan struct{}, maxCalls),
		closed: make(chan struct{}),
	}
	_, err := call(ctx, h, (*libvirt.Connect).GetLibVersion, nil)
	if err != nil {
		return nil, err
	}
	return h, nil
}

// Close waits for the calls in flight, for at most ten seconds, and ends the connection. A watchdog
// that still tries to thaw a guest goes on after it.
func (h *Hypervisor) Close() error {
	h.once.Do(func() { close(h.closed) })
	timeout := time.NewTimer(closeGrace)
	defer timeout.Stop()
	for range maxCalls {
		select {
		case h.slots <- struct{}{}: // never given back: no call can follow
		case <-timeout.C:
			return messages.Errorf(messages.CodeHypervisorDown, "libvirt has left calls unanswered for %v", closeGrace)
		}
	}
	if !until(timeout.C, func() { h.replace(nil) }) {
		return messages.Errorf(messages.CodeHypervisorDown, "libvirt does not let go of the connection")
	}
	if !until(timeout.C, h.watchdogs.Wait) {
		h.log.Warn().Msg("a watchdog still thaws a guest, and goes on")
	}
	return nil
}

// until runs f and says whether it has returned before the timeout.
func until(timeout <-chan time.Time, f func()) bool {
	done := make(chan struct{})
	go func() {
		defer close(done)
		f()
	}()
	select {
	case <-done:
		return true
	case <-timeout:
		return false
	}
}

// outcome is what a call gave.
type outcome[T any] struct {
	value T
	err   error
}

// call runs f with a connection that has just answered. When ctx ends first the caller gets its
// cause, and f's result goes to undo (which may be nil) if f succeeds after all: exactly one of
// the caller and undo gets it.
func call[T any](ctx context.Context, h *Hypervisor, f func(*libvirt.Connect) (T, error), undo func(*libvirt.Connect, T)) (T, error) {
	var none T
	ctx, cancel := context.WithTimeoutCause(ctx, answerTimeout,
		messages.Errorf(messages.CodeHypervisorDown, "no answer within %s", answerTimeout))
	defer cancel()
	if err := h.enter(ctx); err != nil {
		return none, err
	}
	result, abandoned := make(chan outcome[T]), make(chan struct{})
	go func() {
		defer func() { <-h.slots }()
		var o outcome[T]
		l, err := h.acquire()
		if err == nil {
			defer h.release(l)
			o.value, err = bounded.Safely(func() (T, error) { return f(l.conn) })
		}
		o.err = coded(l, err)
		select {
		case result <- o:
		case <-abandoned:
			if o.err == nil && undo != nil {
				undo(l.conn, o.value)
			}
		}
	}()
	select {
	case o := <-result:
		if o.err != nil && ctx.Err() != nil {
			return none, unanswered(ctx)
		}
		return o.value, o.err
	case <-ctx.Done():
		close(abandoned)
		return none, unanswered(ctx)
	}
}

// coded tells a lost connection from a refusal, and gives an error its code.
func coded(l *link, err error) error {
	if err == nil || l == nil {
		return err
	}
	if alive, _ := l.conn.IsAlive(); !alive {
		return messages.Errorf(messages.CodeHypervisorDown, "the connection to libvirt was lost: %w", plain(err))
	}
	return messages.EnsureCode(messages.CodeHypervisorDown, plain(err))
}

// enter waits for a slot.
func (h *Hypervisor) enter(ctx context.Context) error {
	if ctx.Err() != nil {
		return unanswered(ctx)
	}
	select {
	case <-h.closed:
		return messages.Errorf(messages.CodeHypervisorDown, "the connection to libvirt is closed")
	default:
	}
	select {
	case h.slots <- struct{}{}:
		return nil
	case <-h.closed:
		return messages.Errorf(messages.CodeHypervisorDown, "the connection to libvirt is closed")
	case <-ctx.Done():
		return unanswered(ctx)
	}
}

func unanswered(ctx context.Context) error {
	return fmt.Errorf("libvirt has not answered: %w", context.Cause(ctx))
}

// acquire returns a link that has just answered. The caller must release it.
func (h *Hypervisor) acquire() (*link, error) {
	h.mu.Lock()
	l := h.link
	if l != nil {
		l.users++
	}
	h.mu.Unlock()
	if l != nil {
		// libvirt notices that a connection was lost when it is used.
		_, err := l.conn.GetLibVersion()
		if err == nil {
			return l, nil
		}
		h.log.Warn().Str("uri", h.uri).Err(plain(err)).Msg("connecting to libvirt again")
		h.release(l)
	}
	conn, err := libvirt.NewConnect(h.uri)
	if err != nil {
		return nil, messages.Errorf(messages.CodeHypervisorDown, "connect to %s: %w", h.uri, plain(err))
	}
	l = &link{conn: conn, users: 1}
	h.replace(l)
	return l, nil
}

// replace makes l the link for the calls to come.
func (h *Hypervisor) replace(l *link) {
	h.mu.Lock()
	old := h.link
	h.link = l
	unused := old != nil && old.users == 0
	if old != nil {
		old.stale = true
	}
	h.mu.Unlock()
	if unused {
		closeConn(old.conn)
	}
}

func (h *Hypervisor) release(l *link) {
	h.mu.Lock()
	l.users--
	unused := l.stale && l.users == 0
	h.mu.Unlock()
	if unused {
		closeConn(l.conn)
	}
}

// closeConn ends a connection. That fails only for one that is lost, and then there is nothing to end.
func closeConn(c *libvirt.Connect) { _, _ = c.Close() }
