package bus

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/nasfleet/nasfleet/messages"
	"github.com/nats-io/nats.go"
)

const (
	// progressPending bounds the progress messages that wait for a slow reader (messages, bytes).
	progressPending      = 4096
	progressPendingBytes = 16 << 20
)

// Filter selects jobs. An empty name is all of them.
type Filter struct {
	Zone string
	Host string
	Job  string
	// History starts with the oldest stored event. Otherwise Since says where to start, and
	// without it only what is published from now on is seen.
	History bool
	Since   time.Time
}

// Update is either a lasting event or progress.
type Update struct {
	Event    *messages.Event
	Progress *messages.Progress
}

// From says whether a host has told it.
func (u Update) From(zone, host string) bool {
	if u.Event != nil {
		return u.Event.Zone == zone && u.Event.Host == host
	}
	return u.Progress != nil && u.Progress.Zone == zone && u.Progress.Host == host
}

// Watch follows jobs. See Bus.Watch.
type Watch struct {
	bus     *Bus
	updates chan Update
	cancel  context.CancelFunc
	done    context.Context // ends when Stop is called or the events end
	sub     *nats.Subscription
	wg      sync.WaitGroup
	err     error // why the events ended; set before done ends by itself
}

// Watch subscribes to the events and the progress of jobs. When it returns, the subscription
// stands: nothing that is published from then on is missed, so a caller who watches first and
// publishes then sees it all. Lasting events come in the order they were stored, each once, also
// over lost connections and restarts of the server; progress comes as it comes. Events and
// progress that do not fit the subject they came on are left out and logged. The caller must Stop it.
func (b *Bus) Watch(ctx context.Context, f Filter) (*Watch, error) {
	if err := checkFilter(f.Zone, f.Host, f.Job); err != nil {
		return nil, err
	}
	zone, host, job := orAny(f.Zone), orAny(f.Host), orAny(f.Job)
	w := &Watch{bus: b, updates: make(chan Update, 64)}
	w.done, w.cancel = context.WithCancel(context.Background())
	events := &follower{
		bus: b, stream: messages.EventStream, filters: []string{messages.EventSubject(zone, host, job, "*")}, start: f,
	}
	if err := events.open(ctx); err != nil {
		w.cancel()
		return nil, fmt.Errorf("watch: %w", err)
	}
	if err := w.subscribe(ctx, messages.ProgressSubject(zone, host, job)); err != nil {
		w.cancel()
		events.close()
		return nil, fmt.Errorf("watch: %w", err)
	}
	w.wg.Go(func() {
		defer w.cancel()
		defer events.close()
		w.err = events.run(w.done, func(e messages.Event) { w.send(Update{Event: &e}) })
	})
	return w, nil
}

// Next waits for the next update. It fails when ctx ends, with ErrStopped after Stop, or when the
// Bus is closed. Concurrent calls each get some of the updates.
func (w *Watch) Next(ctx context.Context) (Update, error) {
	select {
	case u := <-w.updates:
		return u, nil
	default:
	}
	select {
	case u := <-w.updates:
		return u, nil
	case <-ctx.Done():
		return Update{}, ctx.Err()
	case <-w.done.Done():
		w.wg.Wait()
		if w.err == nil || errors.Is(w.err, context.Canceled) {
			return Update{}, ErrStopped
		}
		return Update{}, w.err
	}
}

// Stop ends the watch.
func (w *Watch) Stop() {
	w.cancel()
	_ = w.sub.Unsubscribe() // fails only where there is no connection left
	w.wg.Wait()
}

// Follow is Watch with a function: it calls fn for each update until fn or the watch fails or
// ctx ends, and returns that error.
func (b *Bus) Follow(ctx context.Context, f Filter, fn func(Update) error) error {
	w, err := b.Watch(ctx, f)
	if err != nil {
		return err
	}
	defer w.Stop()
	for {
		u, err := w.Next(ctx)
		if err != nil {
			return err
		}
		if err := fn(u); err != nil {
			return err
		}
	}
}

func (w *Watch) send(u Update) {
	select {
	case w.updates <- u:
	case <-w.done.Done():
	}
}

func (w *Watch) subscribe(ctx context.Context, subject string) error {
	sub, err := w.bus.nc.Subscribe(subject, func(m *nats.Msg) {
		p, err := decodeProgress(m.Subject, m.Data)
		if err != nil {
			w.bus.cfg.Log.Debug().Err(err).Msg("progress left out")
			return
		}
		w.send(Update{Progress: &p})
	})
	if err != nil {
		return w.bus.fail(subject, err)
	}
	w.sub = sub
	if err := sub.SetPendingLimits(progressPending, progressPendingBytes); err != nil {
		return w.bus.fail(subject, err)
	}
	ctx, cancel := w.bus.bounded(ctx)
	defer cancel()
	return w.bus.fail(subject, w.bus.nc.FlushWithContext(ctx))
}
