package bus

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"slices"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// The kinds of errors this package returns. Test for them with errors.Is; Hint says what to do.
var (
	// ErrUnreachable: no server answered, or the connection was lost.
	ErrUnreachable = errors.New("NATS is not reachable")
	// ErrUnauthorized: the server refused the credentials, or the right to a subject.
	ErrUnauthorized = errors.New("NATS refused access")
	// ErrNoStream: a stream or bucket is not there, or JetStream is off.
	ErrNoStream = errors.New("no such stream or bucket")
	// ErrNotFound: the thing asked for is not stored.
	ErrNotFound = errors.New("not found")
	// ErrConflict: something of that name exists and is not what it should be.
	ErrConflict = errors.New("conflict")
	// ErrUnreadable: what is stored is not what it should be.
	ErrUnreadable = errors.New("it cannot be read")
	// ErrStopped: Next was called on something that was stopped.
	ErrStopped = errors.New("stopped")
	// ErrAbsent: no worker of the host is connected.
	ErrAbsent = errors.New("the host's worker is not connected")
	// ErrCancelled: the job was cancelled before it was accepted.
	ErrCancelled = errors.New("the job was cancelled")
	// ErrAccepted: a host has begun with the job.
	ErrAccepted = errors.New("the job was accepted")
	// ErrLocked: another server uses the store folder.
	ErrLocked = errors.New("the NATS store folder is in use")
)

// Hint returns one sentence that says what to do about an error of this package, or "".
func Hint(err error) string {
	switch {
	case errors.Is(err, ErrUnauthorized):
		return "Check the credentials (--creds, --context) and the rights of that user."
	case errors.Is(err, ErrUnreachable):
		return "Check that the NATS server runs and that the address (--nats) is right."
	case errors.Is(err, ErrNoStream):
		return "Check that JetStream is on and that the zone has been set up there."
	case errors.Is(err, ErrAbsent):
		return "Start the hostworker there (publisher hosts lists the hosts that are alive)."
	case errors.Is(err, ErrLocked):
		return "Stop the other worker, or give this one a folder of its own."
	case errors.Is(err, ErrConflict):
		return "Look at it with the nats CLI (stream info, consumer info)."
	}
	return ""
}

// kindOf returns which of ErrUnauthorized, ErrNoStream and ErrUnreachable an error of the NATS
// library amounts to, or nil.
func kindOf(err error) error {
	var netErr net.Error
	var pathErr *fs.PathError
	switch {
	case errors.As(err, &pathErr): // a context or a certificate; its errno would pass for a net.Error
		return nil
	case isAny(err, nats.ErrAuthorization, nats.ErrAuthExpired, nats.ErrAuthRevoked, nats.ErrAccountAuthExpired,
		nats.ErrPermissionViolation):
		return ErrUnauthorized
	case isAny(err, jetstream.ErrStreamNotFound, jetstream.ErrBucketNotFound, jetstream.ErrNoStreamResponse,
		jetstream.ErrJetStreamNotEnabled, jetstream.ErrJetStreamNotEnabledForAccount, nats.ErrNoResponders):
		return ErrNoStream
	case isAny(err, nats.ErrNoServers, nats.ErrConnectionClosed, nats.ErrDisconnected, nats.ErrConnectionReconnecting,
		nats.ErrConnectionDraining, nats.ErrReconnectBufExceeded, nats.ErrStaleConnection, nats.ErrTimeout,
		nats.ErrHeadersNotSupported, // of a server that has not been seen yet
		jetstream.ErrAsyncPublishTimeout, jetstream.ErrTooManyStalledMsgs, jetstream.ErrConnectionClosed,
		context.DeadlineExceeded, io.EOF, io.ErrUnexpectedEOF),
		errors.As(err, &netErr):
		return ErrUnreachable
	}
	return nil
}

func isAny(err error, targets ...error) bool {
	return slices.ContainsFunc(targets, func(t error) bool { return errors.Is(err, t) })
}

// denial is a permissions violation. The server reports it apart from the request it concerns,
// which then just times out.
type denial struct {
	at  time.Time
	err error
}

// fail wraps an error of the NATS library in its kind; nil stays nil. What the caller cancelled
// keeps its own error, and a timeout after a denial is told as the denial.
func (b *Bus) fail(what string, err error) error {
	if err == nil {
		return nil
	}
	if errors.Is(err, context.Canceled) {
		return fmt.Errorf("%s: %w", what, err)
	}
	kind := kindOf(err)
	if errors.Is(kind, ErrUnreachable) && b.nc.IsConnected() {
		if d := b.denied.Load(); d != nil && time.Since(d.at) < 2*b.cfg.Timeout {
			return fmt.Errorf("%s: %w: %w", what, ErrUnauthorized, d.err)
		}
	}
	if kind == nil || errors.Is(err, kind) {
		return fmt.Errorf("%s: %w", what, err)
	}
	return fmt.Errorf("%s: %w: %w", what, kind, err)
}

// transient says whether the same request may succeed a little later.
func transient(err error) bool {
	return isAny(kindOf(err), ErrUnreachable, ErrNoStream) || isCode(err, codeDuplicateInProcess) || unavailable(err)
}

// unavailable says whether JetStream itself says "not now": a cluster that elects a leader, a server that starts.
func unavailable(err error) bool {
	var api *jetstream.APIError
	return errors.As(err, &api) && api.Code == http.StatusServiceUnavailable
}

// Codes of the JetStream API (server/errors.json of nats-server) that nats.go has no name for.
const (
	codeDuplicateInProcess jetstream.ErrorCode = 10158
	codeWrongLastSequence2 jetstream.ErrorCode = 10164
)

func isCode(err error, codes ...jetstream.ErrorCode) bool {
	var api *jetstream.APIError
	if !errors.As(err, &api) {
		return false
	}
	return slices.Contains(codes, api.ErrorCode)
}
