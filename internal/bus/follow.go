package bus

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nasfleet/nasfleet/messages"
	"github.com/nats-io/nats.go/jetstream"
)

const (
	// watchBatch is how many messages are fetched ahead.
	watchBatch = 256
	// watcherIdle is after how long the server forgets the consumer of a watcher that went away.
	watcherIdle = 5 * time.Minute
)

// errGap is a message that was lost on its way.
var errGap = errors.New("a message is missing")

// follower reads stored messages in order, each once, over lost connections and restarts of the
// server. It holds its place itself, in the stream's sequence, and goes on from there on a new
// consumer. Not for concurrent use.
type follower struct {
	bus     *Bus
	stream  string
	filters []string // subjects, none twice; none is all of them
	start   Filter
	idle    time.Duration // after which the server forgets the consumer; 0 means watcherIdle

	placed bool
	seq    uint64 // of the last message seen, or the one before the first wanted

	iter  jetstream.MessagesContext // nil while it has to be opened
	epoch context.Context           // ends when what was on its way to iter is lost
	count uint64                    // messages seen of iter
	left  uint64                    // messages stored behind the last one seen
}

// run calls send with each event until ctx ends or the connection is closed.
func (f *follower) run(ctx context.Context, send func(messages.Event)) error {
	for {
		m, err := f.next(ctx)
		if err == nil {
			if e, err := decodeEvent(m.Subject(), m.Data()); err != nil {
				f.bus.cfg.Log.Warn().Err(err).Uint64("sequence", f.seq).Msg("event left out")
			} else {
				send(e)
			}
			continue
		}
		if err := f.reopen(ctx, err); err != nil {
			return err
		}
	}
}

// toEnd calls fn with each message up to the newest that is stored.
func (f *follower) toEnd(ctx context.Context, fn func(jetstream.Msg)) error {
	if err := f.open(ctx); err != nil {
		return err
	}
	defer f.close()
	for f.left > 0 {
		m, err := f.next(ctx)
		if err == nil {
			fn(m)
		} else if err = f.reopen(ctx, err); err != nil {
			return err
		}
	}
	return nil
}

// reopen goes on, after next has failed, with a new consumer. It fails where there is no going on.
func (f *follower) reopen(ctx context.Context, cause error) error {
	f.close()
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if f.bus.nc.IsClosed() {
		return f.bus.fail("watch", cause)
	}
	f.bus.cfg.Log.Debug().Err(cause).Msg("reading goes on with a new consumer")
	if f.epoch.Err() == nil && !errors.Is(cause, errGap) {
		pause(ctx, bindPause)
	}
	consumer, err := f.bus.bind(ctx, f.bind)
	if err != nil {
		return err
	}
	return f.read(consumer)
}

// next returns the next message. After an error the follower has to be opened again.
func (f *follower) next(ctx context.Context) (jetstream.Msg, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	// Without acks, nothing brings back what was on its way when the connection broke.
	defer context.AfterFunc(f.epoch, cancel)()
	m, err := f.iter.Next(jetstream.NextContext(ctx))
	if err != nil {
		return nil, err
	}
	meta, err := m.Metadata()
	if err != nil {
		return nil, fmt.Errorf("message on %s: %w", m.Subject(), err)
	}
	if f.count++; meta.Sequence.Consumer != f.count {
		return nil, errGap
	}
	f.seq, f.left = meta.Sequence.Stream, meta.NumPending
	return m, nil
}

func (f *follower) open(ctx context.Context) error {
	consumer, err := f.bus.bindOnce(ctx, f.bind)
	if err != nil {
		return err
	}
	return f.read(consumer)
}

func (f *follower) read(consumer jetstream.Consumer) (err error) {
	f.count, f.left = 0, consumer.CachedInfo().NumPending
	f.iter, err = consumer.Messages(jetstream.PullMaxMessages(watchBatch), jetstream.PullExpiry(pullExpiry),
		jetstream.PullHeartbeat(f.bus.cfg.heartbeat), jetstream.WithMessagesErrOnMissingHeartbeat(true))
	return f.bus.fail("watch", err)
}

func (f *follower) close() {
	if f.iter != nil {
		f.iter.Stop()
		f.iter = nil
	}
}

func (f *follower) bind(ctx context.Context) (jetstream.Consumer, error) {
	f.epoch = f.bus.untilReconnect()
	cfg := jetstream.ConsumerConfig{
		FilterSubjects:    f.filters,
		AckPolicy:         jetstream.AckNonePolicy,
		InactiveThreshold: cmp.Or(f.idle, watcherIdle),
		MemoryStorage:     true,
		Replicas:          1,
	}
	switch {
	case f.placed:
		cfg.DeliverPolicy, cfg.OptStartSeq = jetstream.DeliverByStartSequencePolicy, f.seq+1
	case f.start.History:
		cfg.DeliverPolicy = jetstream.DeliverAllPolicy
	case !f.start.Since.IsZero():
		cfg.DeliverPolicy, cfg.OptStartTime = jetstream.DeliverByStartTimePolicy, &f.start.Since
	default:
		cfg.DeliverPolicy = jetstream.DeliverNewPolicy
	}
	consumer, err := f.bus.js.CreateConsumer(ctx, f.stream, cfg)
	if err != nil {
		return nil, err
	}
	if !f.placed {
		// "From now on" must keep its meaning when the consumer has to be made again before
		// the first message.
		f.placed, f.seq = true, consumer.CachedInfo().Delivered.Stream
	}
	return consumer, nil
}
