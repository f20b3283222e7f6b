package bus

import (
	"context"
	"errors"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/nats-io/nats.go/jetstream"
)

const (
	// pullExpiry is how long one pull waits at the server before it is sent again.
	pullExpiry = 30 * time.Second
	// bindPause lies between a failed pull and binding again. The server tells those who wait of
	// a deleted consumer before it has cleared its files; one created again at once can find
	// them half gone and skip messages.
	bindPause = time.Second
	// drainWait bounds how long the end of a subscription is waited for. A command that comes
	// later is delivered again after AckWait.
	drainWait = 2 * time.Second
)

// binder returns a consumer, and creates it where it is missing.
type binder func(context.Context) (jetstream.Consumer, error)

// bind calls a binder until it succeeds, fails for good (ErrConflict, a closed connection), or ctx ends.
func (b *Bus) bind(ctx context.Context, bind binder) (jetstream.Consumer, error) {
	warned := ""
	return backoff.Retry(ctx, func() (jetstream.Consumer, error) {
		consumer, err := b.bindOnce(ctx, bind)
		if err != nil && (b.nc.IsClosed() || errors.Is(err, ErrConflict)) {
			err = backoff.Permanent(err)
		}
		return consumer, err
	}, backoff.WithBackOff(newBackOff()), backoff.WithMaxElapsedTime(0),
		backoff.WithNotify(func(err error, _ time.Duration) {
			if text := err.Error(); text != warned { // each reason once
				warned = text
				b.cfg.Log.Warn().Err(err).Str("hint", Hint(err)).Msg("cannot consume yet")
			}
		}))
}

func (b *Bus) bindOnce(ctx context.Context, bind binder) (jetstream.Consumer, error) {
	ctx, cancel := context.WithTimeout(ctx, b.cfg.Timeout)
	defer cancel()
	consumer, err := bind(ctx)
	return consumer, b.fail("bind consumer", err)
}

// pullOne waits for one message, or for anything that may mean that the consumer has to be bound
// again. Nothing is fetched beyond it. A message that comes when ctx ends is given back.
//
// It is a subscription of its own with a callback, which queues without a limit: an iterator for
// one message at a time has room for one, and when a heartbeat has taken that, the message is
// dropped and comes again only after AckWait.
func (b *Bus) pullOne(ctx context.Context, consumer jetstream.Consumer) (jetstream.Msg, error) {
	got, failed := make(chan jetstream.Msg, 1), make(chan error, 1)
	sub, err := consumer.Consume(func(m jetstream.Msg) {
		select {
		case got <- m:
		default:
			_ = m.Nak() // should it be lost: delivered again after AckWait
		}
	}, jetstream.PullMaxMessages(1), jetstream.StopAfter(1), jetstream.PullExpiry(pullExpiry),
		jetstream.PullHeartbeat(b.cfg.heartbeat), jetstream.ConsumeErrHandler(func(_ jetstream.ConsumeContext, err error) {
			select {
			case failed <- err:
			default:
			}
		}))
	if err != nil {
		return nil, err
	}
	select {
	case m := <-got:
		sub.Stop()
		return m, nil
	case err = <-failed:
	case <-ctx.Done():
		err = ctx.Err()
	}
	b.drain(sub)
	select {
	case m := <-got:
		if ctx.Err() == nil {
			return m, nil
		}
		_ = m.Nak() // as above
	default:
	}
	return nil, err
}

// drain ends a subscription after what is on its way to it has come.
func (b *Bus) drain(sub jetstream.ConsumeContext) {
	if !b.nc.IsConnected() {
		sub.Stop()
		return
	}
	sub.Drain()
	timer := time.NewTimer(drainWait)
	defer timer.Stop()
	select {
	case <-sub.Closed():
	case <-timer.C:
		sub.Stop()
	}
}

// pause waits, or less when ctx ends.
func pause(ctx context.Context, d time.Duration) {
	select {
	case <-time.After(d):
	case <-ctx.Done():
	}
}
