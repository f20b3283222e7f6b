package bus

import (
	"context"
	"errors"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/nats-io/nats.go/jetstream"
)

// pullExpiry is how long one pull waits at the server before it is sent again.
const pullExpiry = 30 * time.Second

// deletedPause is how long a deleted consumer is left alone. The server tells those who wait
// before it has cleared the consumer's files; one created again at once finds them half gone.
const deletedPause = time.Second

// giveBackTimeout bounds how long the end of a subscription is waited for. What arrives later is
// delivered again after AckWait.
const giveBackTimeout = 2 * time.Second

// puller reads one consumer and never gives up on it: when the connection, the server or the
// consumer goes away it binds again, until the context of next ends. Not for concurrent use.
type puller struct {
	bus *Bus
	// bind creates the consumer where it is missing and returns it.
	bind func(context.Context) (jetstream.Consumer, error)
	// batch is how many messages are fetched ahead.
	batch int
	// rebindOnReconnect is for a consumer without acks: what was on its way to us when the
	// connection broke is not delivered again.
	rebindOnReconnect bool
	// giveBack gets the messages that were fetched and not returned by next. Optional.
	giveBack func(jetstream.Msg)

	iter  jetstream.MessagesContext
	epoch context.Context
}

// next returns the next message. It fails when ctx ends, the connection is closed, or bind fails for good.
func (p *puller) next(ctx context.Context) (jetstream.Msg, error) {
	for {
		if p.iter == nil {
			if err := p.reopen(ctx); err != nil {
				return nil, err
			}
		}
		msg, err := p.pull(ctx)
		if err == nil || ctx.Err() != nil {
			return msg, err
		}
		p.close()
		if p.bus.nc.IsClosed() {
			return nil, p.bus.fail("consume", err)
		}
		switch {
		case errors.Is(err, jetstream.ErrConsumerDeleted):
			p.bus.cfg.Log.Warn().Msg("the consumer was deleted; it is created again")
			select {
			case <-time.After(deletedPause):
			case <-ctx.Done():
				return nil, ctx.Err()
			}
		case !errors.Is(err, context.Canceled): // by a reconnect
			p.bus.cfg.Log.Debug().Err(err).Msg("consumer is bound again")
		}
	}
}

func (p *puller) pull(ctx context.Context) (jetstream.Msg, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if p.rebindOnReconnect {
		defer context.AfterFunc(p.epoch, cancel)()
	}
	return p.iter.Next(jetstream.NextContext(ctx))
}

// reopen opens until that succeeds, fails for good, or ctx ends.
func (p *puller) reopen(ctx context.Context) error {
	warned := ""
	_, err := backoff.Retry(ctx, func() (struct{}, error) {
		err := p.open(ctx)
		if err != nil && (p.bus.nc.IsClosed() || errors.Is(err, ErrConflict)) {
			err = backoff.Permanent(err)
		}
		return struct{}{}, err
	}, backoff.WithBackOff(newBackOff()), backoff.WithMaxElapsedTime(0),
		backoff.WithNotify(func(err error, _ time.Duration) {
			if text := err.Error(); text != warned { // each reason once
				warned = text
				p.bus.cfg.Log.Warn().Err(err).Str("hint", Hint(err)).Msg("cannot consume yet")
			}
		}))
	return err
}

func (p *puller) open(ctx context.Context) error {
	p.epoch = p.bus.untilReconnect()
	ctx, cancel := p.bus.bounded(ctx)
	defer cancel()
	consumer, err := p.bind(ctx)
	if err != nil {
		return p.bus.fail("bind consumer", err)
	}
	p.iter, err = consumer.Messages(jetstream.PullMaxMessages(p.batch), jetstream.PullExpiry(pullExpiry),
		jetstream.PullHeartbeat(p.bus.cfg.heartbeat), jetstream.WithMessagesErrOnMissingHeartbeat(true))
	if err != nil {
		return p.bus.fail("consume", err)
	}
	return nil
}

// close ends the subscription and gives back what it still held.
func (p *puller) close() {
	if p.iter == nil {
		return
	}
	iter := p.iter
	p.iter = nil
	if p.giveBack == nil || !p.bus.nc.IsConnected() {
		iter.Stop()
		return
	}
	iter.Drain()
	ctx, cancel := context.WithTimeout(context.Background(), giveBackTimeout)
	defer cancel()
	for {
		msg, err := iter.Next(jetstream.NextContext(ctx))
		switch {
		case err == nil:
			p.giveBack(msg)
		case !errors.Is(err, jetstream.ErrNoHeartbeat): // a leftover of before
			iter.Stop()
			return
		}
	}
}
