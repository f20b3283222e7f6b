package bus

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/nasfleet/nasfleet/messages"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

const (
	// publishTimeout is how long the ack of one publish of many is waited for.
	publishTimeout = 10 * time.Second
	// stallWait is how long a publish waits for room among those pending.
	stallWait = 30 * time.Second
	// publishTries bounds how often a command is published when nothing is known of its fate.
	publishTries = 3
)

// Outgoing is a command and the host it is for.
type Outgoing struct {
	Zone    string
	Host    string
	Command messages.Command
}

// Published says how a command was taken.
type Published struct {
	// Duplicate: the same job had been published before, and that is the one that counts. It may
	// have been this very call, whose first try was stored and its ack lost.
	Duplicate bool
}

// Publish checks a command and stores it for its host. Publishing the same job again is a success
// without effect for as long as the stream keeps the first, so that a caller who does not know
// whether it was stored may simply publish again. Publish itself does so a few times.
func (b *Bus) Publish(ctx context.Context, zone, host string, cmd messages.Command) (Published, error) {
	m, err := b.commandMsg(Outgoing{Zone: zone, Host: host, Command: cmd})
	if err != nil {
		return Published{}, err
	}
	if err = b.store(ctx, m, publishTries); errors.Is(err, errDuplicate) {
		return Published{Duplicate: true}, b.confirm(ctx, m)
	}
	return Published{}, err
}

// PublishAll publishes many commands, at most 512 at a time on their way, and returns when the
// fate of each is known. report is called once for each, from one goroutine, with its index: no
// error when the command is stored (duplicates included), one when it was refused, could not be
// sent, or its ack never came.
func (b *Bus) PublishAll(ctx context.Context, out []Outgoing, report func(i int, p Published, err error)) {
	todo := make([]int, len(out))
	for i := range todo {
		todo[i] = i
	}
	for try := 1; len(todo) > 0; try++ {
		var again []int
		b.publishRound(ctx, out, todo, func(i int, p Published, err error) {
			// The same command again is harmless, and better than not to know.
			if err != nil && try < publishTries && ctx.Err() == nil && transient(err) {
				again = append(again, i)
				return
			}
			report(i, p, err)
		})
		todo = again
	}
}

// Command returns the bytes of a stored command, or ErrNotFound.
func (b *Bus) Command(ctx context.Context, zone, host, job string) ([]byte, error) {
	data, _, err := b.SignedCommand(ctx, zone, host, job)
	return data, err
}

// SignedCommand returns the bytes of a stored command and its signature, "" for none, or ErrNotFound.
// Nobody has checked the signature.
func (b *Bus) SignedCommand(ctx context.Context, zone, host, job string) (data []byte, signature string, err error) {
	if err := checkAddress(zone, host, job); err != nil {
		return nil, "", err
	}
	m, err := b.last(ctx, messages.JobStream(zone), messages.JobSubject(zone, host, job))
	if err != nil {
		return nil, "", fmt.Errorf("command of job %s: %w", job, err)
	}
	return m.data, m.signature, nil
}

// flight is a publish whose ack is still to come, or that failed at once.
type flight struct {
	index int
	msg   *nats.Msg
	ack   jetstream.PubAckFuture
	err   error
}

func (b *Bus) publishRound(ctx context.Context, out []Outgoing, todo []int, done func(int, Published, error)) {
	// Two more are out of the channel: one being launched, one being landed.
	flights := make(chan flight, maxPending-2)
	go func() {
		defer close(flights)
		for _, i := range todo {
			flights <- b.launch(ctx, i, out[i])
		}
	}()
	for f := range flights {
		p, err := b.land(ctx, f)
		done(f.index, p, err)
	}
}

func (b *Bus) launch(ctx context.Context, i int, o Outgoing) flight {
	f := flight{index: i}
	if f.err = ctx.Err(); f.err != nil {
		return f
	}
	if f.msg, f.err = b.commandMsg(o); f.err != nil {
		return f
	}
	f.ack, f.err = b.js.PublishMsgAsync(f.msg, jetstream.WithStallWait(stallWait))
	f.err = b.fail("publish "+f.msg.Subject, f.err)
	return f
}

func (b *Bus) land(ctx context.Context, f flight) (Published, error) {
	if f.err != nil {
		return Published{}, f.err
	}
	var err error
	select {
	case ack := <-f.ack.Ok():
		if !ack.Duplicate {
			return Published{}, nil
		}
		err = errDuplicate
	case err = <-f.ack.Err():
		err = asDuplicate(err)
	case <-ctx.Done():
		err = ctx.Err()
	}
	if errors.Is(err, errDuplicate) {
		return Published{Duplicate: true}, b.confirm(ctx, f.msg)
	}
	return Published{}, b.fail("publish "+f.msg.Subject, err)
}

// commandMsg puts a command into a message that its stream takes once: the message id keeps
// duplicates out for the dedup window, and the sequence 0 that the subject must have (none was
// stored on it) for as long as the first is kept.
func (b *Bus) commandMsg(o Outgoing) (*nats.Msg, error) {
	data, err := messages.Encode(o.Command)
	if err != nil {
		return nil, err
	}
	job := o.Command.Head().JobID
	if err := checkAddress(o.Zone, o.Host, job); err != nil {
		return nil, err
	}
	m := nats.NewMsg(messages.JobSubject(o.Zone, o.Host, job))
	m.Data = data
	m.Header.Set(jetstream.MsgIDHeader, job)
	m.Header.Set(jetstream.ExpectedLastSubjSeqHeader, "0")
	m.Header.Set(jetstream.ExpectedStreamHeader, messages.JobStream(o.Zone))
	return m, b.sign(m)
}

// sign puts the publisher's signature on a message, where this connection has one.
func (b *Bus) sign(m *nats.Msg) error {
	if b.cfg.Sign == nil {
		return nil
	}
	signature, err := b.cfg.Sign(m.Subject, m.Data)
	if err != nil {
		return err
	}
	m.Header.Set(messages.SignatureHeader, signature)
	return nil
}

// errDuplicate is a message that its stream refused because it has it.
var errDuplicate = errors.New("duplicate")

// asDuplicate turns a refusal of the expected sequence into errDuplicate.
func asDuplicate(err error) error {
	if isWrongSequence(err) {
		return fmt.Errorf("%w: %w", errDuplicate, err)
	}
	return err
}

// isWrongSequence says that the server refused a message because of what its stream holds.
func isWrongSequence(err error) bool {
	return isCode(err, jetstream.JSErrCodeStreamWrongLastSequence, codeWrongLastSequence2)
}

// store publishes a message until it is stored, refused for good, tried often enough (0: no
// limit, and a missing right is waited for too), or ctx ends. Each try carries the same headers,
// so it is stored once.
func (b *Bus) store(ctx context.Context, m *nats.Msg, tries uint) error {
	var last error
	_, err := backoff.Retry(ctx, func() (struct{}, error) {
		last = b.storeOnce(ctx, m)
		if last == nil || transient(last) || (tries == 0 && errors.Is(last, ErrUnauthorized)) {
			return struct{}{}, last
		}
		return struct{}{}, backoff.Permanent(last)
	}, backoff.WithBackOff(newBackOff()), backoff.WithMaxTries(tries), backoff.WithMaxElapsedTime(0),
		backoff.WithNotify(func(err error, next time.Duration) {
			b.cfg.Log.Debug().Err(err).Dur("next_ms", next).Msg("to be published again")
		}))
	if err != nil && ctx.Err() != nil && last != nil {
		return fmt.Errorf("%w: %w", ctx.Err(), last)
	}
	return err
}

func (b *Bus) storeOnce(ctx context.Context, m *nats.Msg) error {
	ctx, cancel := context.WithTimeout(ctx, b.cfg.Timeout)
	defer cancel()
	ack, err := b.js.PublishMsg(ctx, m)
	if err == nil && ack.Duplicate {
		err = errDuplicate
	}
	return b.fail("publish "+m.Subject, asDuplicate(err))
}

// confirm makes sure that a duplicate is one: the command is stored on its own subject. It is
// not when its job id was used for another host a moment ago, or when the first publish is
// still on its way through a cluster.
func (b *Bus) confirm(ctx context.Context, m *nats.Msg) error {
	stream := m.Header.Get(jetstream.ExpectedStreamHeader)
	_, err := backoff.Retry(ctx, func() (stored, error) {
		return b.last(ctx, stream, m.Subject)
	}, backoff.WithBackOff(newBackOff()), backoff.WithMaxTries(publishTries))
	if errors.Is(err, ErrNotFound) {
		return fmt.Errorf("publish %s: %w: its job id is taken by another command", m.Subject, ErrConflict)
	}
	return err
}

func newBackOff() *backoff.ExponentialBackOff {
	return &backoff.ExponentialBackOff{
		InitialInterval:     100 * time.Millisecond,
		RandomizationFactor: backoff.DefaultRandomizationFactor,
		Multiplier:          2,
		MaxInterval:         2 * time.Second,
	}
}
