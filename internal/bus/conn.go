package bus

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/synadia-io/orbit.go/natscontext"

	"github.com/nasfleet/nasfleet/messages"
)

// maxPending bounds the publishes in flight: more than 4,096 at once stall the library.
const maxPending = 512

// drainTimeout bounds Close.
const drainTimeout = 5 * time.Second

// Bus is one connection. Its methods may be called from any goroutine.
type Bus struct {
	cfg    Config
	nc     *nats.Conn
	js     jetstream.JetStream
	api    string // prefix of the JetStream API's subjects, with its dot
	closed chan struct{}
	denied atomic.Pointer[denial]

	mu    sync.Mutex
	epoch context.Context // ends at the next reconnect
	renew context.CancelFunc
}

// Connect connects. Without Persist it fails at once with ErrUnreachable or ErrUnauthorized when
// no server takes the connection; once connected, a lost connection is tried again forever. ctx
// bounds connecting only. The caller must Close the Bus.
func Connect(ctx context.Context, cfg Config) (*Bus, error) {
	cfg = cfg.withDefaults()
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	b := &Bus{cfg: cfg, closed: make(chan struct{})}
	b.epoch, b.renew = context.WithCancel(context.Background())
	settings, err := b.dial(b.options(ctx))
	if err != nil {
		b.renew()
		return nil, err
	}
	if err := b.useJetStream(settings); err != nil {
		b.Close()
		return nil, err
	}
	return b, nil
}

// Close gives what was sent a few seconds to leave, then closes the connection. Stop what was
// started on it first. A second Close does nothing.
func (b *Bus) Close() {
	b.endEpoch()
	if !b.nc.IsConnected() || b.nc.Drain() != nil {
		b.nc.Close()
	}
	<-b.closed
}

// Connected says whether the server can be talked to right now.
func (b *Bus) Connected() bool { return b.nc.IsConnected() }

// Status says in a word how the connection is, such as CONNECTED or RECONNECTING.
func (b *Bus) Status() string { return b.nc.Status().String() }

// ServerURL returns the address of the server in use, without credentials, or "embedded"; "" while
// there is none.
func (b *Bus) ServerURL() string { return b.serverOf(b.nc) }

func (b *Bus) serverOf(nc *nats.Conn) string {
	url := nc.ConnectedUrlRedacted()
	if url != "" && b.cfg.Server != nil {
		return "embedded"
	}
	return url
}

func (b *Bus) dial(opts []nats.Option) (natscontext.Settings, error) {
	var settings natscontext.Settings
	var err error
	if b.cfg.Server == nil {
		auth, err := b.cfg.credentials()
		if err != nil {
			return settings, err
		}
		opts = append(opts, auth...)
	}
	if b.cfg.Server == nil && b.cfg.Context != "" {
		if b.cfg.URL != "" {
			opts = append(opts, servers(b.cfg.URL))
		}
		name := b.cfg.Context
		if strings.ContainsRune(name, filepath.Separator) {
			if name, err = filepath.Abs(name); err != nil {
				return settings, fmt.Errorf("NATS context %s: %w", b.cfg.Context, err)
			}
		}
		b.nc, settings, err = natscontext.Connect(name, opts...)
	} else {
		b.nc, err = nats.Connect(b.cfg.URL, opts...)
	}
	if err == nil {
		return settings, nil
	}
	if kind := kindOf(err); kind != nil {
		return settings, fmt.Errorf("%w: %s: %w", kind, b.where(), err)
	}
	return settings, fmt.Errorf("connect to NATS (%s): %w", b.where(), err)
}

// credentials are the options that say who connects, and whom to trust. A file that is not there is
// told at once: the library would otherwise take it for a server that is not there.
func (c Config) credentials() ([]nats.Option, error) {
	var opts []nats.Option
	for _, f := range []struct{ what, path string }{
		{"credentials file", c.Creds}, {"nkey file", c.NKey}, {"file of CA certificates", c.CA},
	} {
		if f.path == "" {
			continue
		}
		if _, err := os.Stat(f.path); err != nil {
			return nil, fmt.Errorf("%s: %w", f.what, err)
		}
	}
	if c.Creds != "" {
		opts = append(opts, nats.UserCredentials(c.Creds))
	}
	if c.NKey != "" {
		opt, err := nats.NkeyOptionFromSeed(c.NKey)
		if err != nil {
			return nil, fmt.Errorf("nkey file %s: %w", c.NKey, err)
		}
		opts = append(opts, opt)
	}
	if c.CA != "" {
		opts = append(opts, nats.RootCAs(c.CA))
	}
	return opts, nil
}

// where names what was connected to, for errors. A URL may hold a password.
func (b *Bus) where() string {
	switch {
	case b.cfg.Server != nil:
		return "embedded server"
	case b.cfg.URL != "":
		return redact(b.cfg.URL)
	}
	return "context " + b.cfg.Context
}

func redact(urls string) string {
	list := strings.Split(urls, ",")
	for i, u := range list {
		scheme, rest, ok := strings.Cut(u, "://")
		if !ok {
			scheme, rest = "nats", u
		}
		list[i] = scheme + "://" + rest[strings.LastIndex(rest, "@")+1:]
	}
	return strings.Join(list, ",")
}

func servers(urls string) nats.Option {
	return func(o *nats.Options) error {
		o.Servers = strings.Split(urls, ",")
		return nil
	}
}

func (b *Bus) options(ctx context.Context) []nats.Option {
	timeout := b.cfg.Timeout
	if deadline, ok := ctx.Deadline(); ok {
		timeout = min(timeout, time.Until(deadline))
	}
	opts := []nats.Option{
		nats.Timeout(timeout),
		nats.DrainTimeout(drainTimeout),
		nats.MaxReconnects(-1),
		nats.ReconnectWait(500 * time.Millisecond),
		nats.ReconnectJitter(500*time.Millisecond, time.Second),
		// Nothing is kept for a reconnect: an ack or a progress report that arrives minutes late
		// misleads, and what must arrive is published again by its owner.
		nats.ReconnectBufSize(-1),
		nats.ConnectHandler(func(nc *nats.Conn) {
			b.cfg.Log.Info().Str("server", b.serverOf(nc)).Msg("connected to NATS")
		}),
		nats.DisconnectErrHandler(func(_ *nats.Conn, err error) {
			if err != nil { // nil: closed on purpose
				b.cfg.Log.Warn().Err(err).Msg("NATS connection lost")
			}
		}),
		nats.ReconnectHandler(b.reconnected),
		nats.ClosedHandler(func(*nats.Conn) { close(b.closed) }),
		nats.ErrorHandler(b.asyncError),
	}
	if b.cfg.Name != "" {
		opts = append(opts, nats.Name(b.cfg.Name))
	}
	if b.cfg.InboxPrefix != "" {
		opts = append(opts, nats.CustomInboxPrefix(b.cfg.InboxPrefix))
	}
	if b.cfg.Persist {
		opts = append(opts, nats.RetryOnFailedConnect(true), nats.IgnoreAuthErrorAbort())
	}
	if b.cfg.Server != nil {
		opts = append(opts, nats.InProcessServer(b.cfg.Server.ns))
	}
	return opts
}

func (b *Bus) reconnected(nc *nats.Conn) {
	b.cfg.Log.Info().Str("server", b.serverOf(nc)).Msg("NATS connection is back")
	b.endEpoch()
}

func (b *Bus) endEpoch() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.renew()
	b.epoch, b.renew = context.WithCancel(context.Background())
}

// untilReconnect returns a context that ends at the next reconnect.
func (b *Bus) untilReconnect() context.Context {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.epoch
}

func (b *Bus) asyncError(_ *nats.Conn, sub *nats.Subscription, err error) {
	if errors.Is(err, nats.ErrPermissionViolation) {
		b.denied.Store(&denial{at: time.Now(), err: err})
	}
	event := b.cfg.Log.Warn()
	if errors.Is(err, nats.ErrSlowConsumer) && sub != nil && isProgress(sub.Subject) {
		// There is more of it every second.
		event = b.cfg.Log.Debug()
	}
	if sub != nil {
		event = event.Str("subject", sub.Subject)
	}
	event.Err(err).Msg("NATS")
}

// isProgress says that a subscription is to the progress of jobs.
func isProgress(subject string) bool {
	return strings.HasPrefix(subject, strings.TrimSuffix(messages.ProgressSubject("*", "*", "*"), "*.*.*"))
}

func (b *Bus) useJetStream(s natscontext.Settings) error {
	opts := []jetstream.JetStreamOpt{
		jetstream.WithPublishAsyncMaxPending(maxPending),
		jetstream.WithPublishAsyncTimeout(publishTimeout),
		jetstream.WithDefaultTimeout(b.cfg.Timeout),
	}
	var err error
	switch {
	case s.JSAPIPrefix != "":
		b.api = strings.TrimSuffix(s.JSAPIPrefix, ".") + "."
		b.js, err = jetstream.NewWithAPIPrefix(b.nc, s.JSAPIPrefix, opts...)
	case s.JSDomain != "":
		b.api = "$JS." + s.JSDomain + ".API."
		b.js, err = jetstream.NewWithDomain(b.nc, s.JSDomain, opts...)
	default:
		b.api = jetstream.DefaultAPIPrefix
		b.js, err = jetstream.New(b.nc, opts...)
	}
	if err != nil {
		return fmt.Errorf("JetStream: %w", err)
	}
	return nil
}

// bounded gives ctx the default timeout where it has no deadline.
func (b *Bus) bounded(ctx context.Context) (context.Context, context.CancelFunc) {
	if _, ok := ctx.Deadline(); ok {
		return ctx, func() {}
	}
	return context.WithTimeout(ctx, b.cfg.Timeout)
}
