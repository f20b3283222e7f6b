package bus

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/nasfleet/nasfleet/messages"
	"github.com/nats-io/nats.go/jetstream"
)

const (
	// maxDeliver is a backstop only: attempts are counted by the worker. A command that was
	// delivered so often is not delivered again.
	maxDeliver = 1000
	// maxAckPending is generous because a command that waits for Retry's delay keeps its place.
	maxAckPending = 10_000
)

// Commands is a host's queue of commands.
type Commands struct {
	bus        *Bus
	zone, host string
	stopped    context.Context
	stop       context.CancelFunc
	ackWait    atomic.Int64

	mu       sync.Mutex         // held by Next
	consumer jetstream.Consumer // nil while it has to be bound
}

// Commands opens the queue of a host. It only checks the names: the durable consumer is looked
// for, and created where it is missing and that is allowed, by Next, which waits for a server, a
// stream or a queue that is not there yet; see EnsureQueues. A consumer that exists keeps its
// settings. The caller must Stop it.
//
// A new consumer, and one that was deleted and is created again, delivers everything that the
// stream keeps, done or not. FinalEvent tells what is done.
func (b *Bus) Commands(zone, host string) (*Commands, error) {
	if err := checkHost(zone, host); err != nil {
		return nil, err
	}
	c := &Commands{bus: b, zone: zone, host: host}
	c.stopped, c.stop = context.WithCancel(context.Background())
	c.ackWait.Store(int64(b.cfg.AckWait))
	return c, nil
}

// AckWait is how long a delivery may go without Extend. Extend at a third of it.
func (c *Commands) AckWait() time.Duration { return time.Duration(c.ackWait.Load()) }

// Next waits for a command and returns it. Nothing is fetched ahead: a command that no Next
// waits for stays with the server. Lost connections, restarts of the server and a deleted
// consumer are waited for or repaired; Next fails when ctx ends, with ErrStopped after Stop, with
// ErrUnreachable when the Bus is closed, and with ErrConflict when the consumer's name is taken
// by one that is not the host's queue. Calls exclude each other.
func (c *Commands) Next(ctx context.Context) (*Delivery, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(c.stopped, cancel)()
	for {
		msg, err := c.next(ctx)
		if err != nil && c.stopped.Err() != nil {
			return nil, ErrStopped
		}
		if err != nil {
			return nil, err
		}
		if d := c.delivery(msg); d != nil {
			return d, nil
		}
	}
}

// Stop ends a waiting Next. The consumer stays at the server, and keeps what is published meanwhile.
func (c *Commands) Stop() {
	c.stop()
	c.mu.Lock() // no Next is left
	defer c.mu.Unlock()
	c.consumer = nil
}

func (c *Commands) next(ctx context.Context) (jetstream.Msg, error) {
	for {
		if c.consumer == nil {
			consumer, err := c.bus.bind(ctx, c.bind)
			if err != nil {
				return nil, err
			}
			c.consumer = consumer
		}
		msg, err := c.bus.pullOne(ctx, c.consumer)
		if err == nil || ctx.Err() != nil {
			return msg, err
		}
		if c.bus.nc.IsClosed() {
			return nil, c.bus.fail("consume", err)
		}
		c.consumer = nil
		c.bus.cfg.Log.Info().Err(err).Str("host", c.host).Msg("the queue of commands is opened again")
		pause(ctx, bindPause)
	}
}

func (c *Commands) bind(ctx context.Context) (jetstream.Consumer, error) {
	stream, want := messages.JobStream(c.zone), c.config()
	// It is looked for first: a host with its own rights only may not make one, because whoever makes a
	// consumer may have it send what is stored to any subject.
	consumer, err := c.bus.js.Consumer(ctx, stream, want.Name)
	if errors.Is(err, jetstream.ErrConsumerNotFound) {
		consumer, err = c.bus.js.CreateConsumer(ctx, stream, want)
	}
	if err != nil {
		return nil, err
	}
	have := consumer.CachedInfo().Config
	if have.FilterSubject != want.FilterSubject || have.AckPolicy != want.AckPolicy || have.InactiveThreshold != 0 {
		return nil, fmt.Errorf("consumer %s of %s is not the queue of %s: %w", want.Name, stream, want.FilterSubject, ErrConflict)
	}
	c.ackWait.Store(int64(have.AckWait))
	return consumer, nil
}

// Delivery is a command in this worker's hands. It must be ended by exactly one of Ack, Retry,
// Return and Term; without Extend it is delivered again, here or elsewhere, after AckWait.
type Delivery struct {
	// Subject is where the command was published.
	Subject string
	Zone    string
	Host    string
	// JobID is the last token of Subject, literal, and a ULID only if the publisher kept the contract.
	JobID string
	Data  []byte
	// Signature is the command's, or "". Nobody has checked it.
	Signature string
	// NumDelivered counts from 1. It counts every delivery, also those that Return gave back.
	NumDelivered int
	// Published is when the command was stored.
	Published time.Time

	bus *Bus
	msg jetstream.Msg
}

// delivery returns nil, and ends the delivery, where no event could answer the command: the
// server lets a client publish on a subject that ends in a wildcard, as a name.
func (c *Commands) delivery(msg jetstream.Msg) *Delivery {
	zone, host, job, ok := messages.ParseJobSubject(msg.Subject())
	if ok && (zone != c.zone || host != c.host) {
		// The queue hands out no such thing: somebody had it sent to this host's inbox, and it is not
		// this host's to end.
		c.bus.cfg.Log.Error().Str("subject", msg.Subject()).Msg("another host's command left alone")
		return nil
	}
	err := checkToken("job", job)
	var meta *jetstream.MsgMetadata
	if err == nil {
		meta, err = msg.Metadata()
	}
	if err != nil {
		c.bus.cfg.Log.Error().Err(err).Str("subject", msg.Subject()).Msg("command refused unread")
		_ = msg.TermWithReason("not a job's subject") // should it be lost: delivered again after AckWait
		return nil
	}
	return &Delivery{
		Subject: msg.Subject(), Zone: c.zone, Host: c.host, JobID: job, Data: msg.Data(),
		Signature:    msg.Headers().Get(messages.SignatureHeader),
		NumDelivered: int(meta.NumDelivered), Published: meta.Timestamp, bus: c.bus, msg: msg,
	}
}

// Extend asks for another AckWait. It fails while the connection is down; the job may go on, and
// another delivery of it may then come to this host.
func (d *Delivery) Extend() error {
	if !d.bus.Connected() {
		return fmt.Errorf("extend job %s: %w", d.JobID, ErrUnreachable)
	}
	return d.bus.fail("extend job "+d.JobID, d.msg.InProgress())
}

// Ack ends the delivery for good and returns nil when the server has confirmed that; it is tried
// until ctx ends. The server confirms late acks too, also of a command that was delivered to
// somebody else meanwhile. Ack only after the job's final event is stored.
func (d *Delivery) Ack(ctx context.Context) error {
	_, err := backoff.Retry(ctx, func() (struct{}, error) {
		tryCtx, cancel := context.WithTimeout(ctx, d.bus.cfg.Timeout)
		defer cancel()
		err := d.msg.DoubleAck(tryCtx)
		if err != nil && !transient(err) {
			err = backoff.Permanent(err)
		}
		return struct{}{}, err
	}, backoff.WithBackOff(newBackOff()), backoff.WithMaxElapsedTime(0))
	return d.bus.fail("ack job "+d.JobID, err)
}

// Retry has the command delivered again after a delay. It keeps its place in the queue's limit
// of 10,000 meanwhile. The server does not confirm it: should it be lost, the command comes back
// after AckWait.
func (d *Delivery) Retry(delay time.Duration) error {
	return d.bus.fail("retry job "+d.JobID, d.msg.NakWithDelay(delay))
}

// Return gives the command back: it is delivered again at once, to whoever asks next. Like Retry
// it is not confirmed.
func (d *Delivery) Return() error {
	return d.bus.fail("return job "+d.JobID, d.msg.Nak())
}

// Term ends the delivery: the command is never delivered again. The reason goes into a server
// advisory and must hold no secret. Like Retry it is not confirmed.
func (d *Delivery) Term(reason string) error {
	return d.bus.fail("terminate job "+d.JobID, d.msg.TermWithReason(reason))
}
