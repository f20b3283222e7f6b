package bus

import (
	"context"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/nasfleet/nasfleet/messages"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// PublishEvent stores a lasting event. It is tried until it is stored or ctx ends, each time
// under the same message id, so that it is stored once; a final event is stored once per job and
// kind, whenever it is repeated. A job's events keep their order if they are published one after
// the other. The event's JobID must be a token of a subject: for a command that was not readable
// that is Delivery.JobID.
func (b *Bus) PublishEvent(ctx context.Context, e messages.Event) error {
	m, err := b.eventMsg(e)
	if err != nil {
		return err
	}
	if e.Kind.Final() {
		m.Header.Set(jetstream.ExpectedLastSubjSeqHeader, "0")
	}
	if err := b.store(ctx, m, 0); !errors.Is(err, errDuplicate) {
		return err
	}
	return nil
}

// eventID is the event's message id; see Config.EventKey.
func (b *Bus) eventID(e messages.Event) string {
	if b.cfg.EventKey == nil {
		return e.MsgID()
	}
	mac := hmac.New(sha256.New, b.cfg.EventKey)
	_, _ = mac.Write([]byte(e.MsgID())) // never fails
	return hex.EncodeToString(mac.Sum(nil))
}

// PublishAccepted stores an accepted event as PublishEvent does, but not when the job has a
// cancelled event: ErrCancelled. Together with PublishUnaccepted, of which one is refused when the
// other came first, it decides between a host that begins a job and the management side that
// cancels it.
func (b *Bus) PublishAccepted(ctx context.Context, e messages.Event) error {
	return b.publishUnless(ctx, e, messages.KindAccepted, messages.KindCancelled, 0, ErrCancelled)
}

// PublishUnaccepted stores the cancelled event of a job that no host has accepted; ErrAccepted
// where one has.
func (b *Bus) PublishUnaccepted(ctx context.Context, e messages.Event) error {
	return b.publishUnless(ctx, e, messages.KindCancelled, messages.KindAccepted, publishTries, ErrAccepted)
}

// publishUnless stores an event of one kind unless the job has one of another kind: the server
// checks the condition and stores in one step (nats-server 2.11 and newer).
func (b *Bus) publishUnless(ctx context.Context, e messages.Event, kind, unless messages.Kind, tries uint, refusal error) error {
	if e.Kind != kind {
		return fmt.Errorf("event %q is not %s: %w", e.Kind, kind, ErrConflict)
	}
	m, err := b.eventMsg(e)
	if err != nil {
		return err
	}
	m.Header.Set(jetstream.ExpectedLastSubjSeqHeader, "0")
	m.Header.Set(jetstream.ExpectedLastSubjSeqSubjHeader, messages.EventSubject(e.Zone, e.Host, e.JobID, unless))
	err = b.store(ctx, m, tries)
	if isWrongSequence(err) {
		return fmt.Errorf("job %s: %w", e.JobID, refusal)
	}
	if errors.Is(err, errDuplicate) {
		return nil // by its message id: it is stored
	}
	return err
}

// eventMsg is the message that stores an event once.
func (b *Bus) eventMsg(e messages.Event) (*nats.Msg, error) {
	if err := checkAddress(e.Zone, e.Host, e.JobID); err != nil {
		return nil, err
	}
	if err := checkToken("event kind", string(e.Kind)); err != nil {
		return nil, err
	}
	data, err := json.Marshal(e)
	if err != nil {
		return nil, fmt.Errorf("event: %w", err)
	}
	m := nats.NewMsg(messages.EventSubject(e.Zone, e.Host, e.JobID, e.Kind))
	m.Data = data
	m.Header.Set(jetstream.MsgIDHeader, b.eventID(e))
	m.Header.Set(jetstream.ExpectedStreamHeader, messages.EventStream)
	return m, nil
}

// PublishProgress tells whoever listens how far a job is. It is not stored, and lost while the
// connection is down.
func (b *Bus) PublishProgress(p messages.Progress) error {
	if err := checkAddress(p.Zone, p.Host, p.JobID); err != nil {
		return err
	}
	data, err := json.Marshal(p)
	if err != nil {
		return fmt.Errorf("progress: %w", err)
	}
	return b.fail("progress", b.nc.Publish(messages.ProgressSubject(p.Zone, p.Host, p.JobID), data))
}

// JobEvents returns the stored events of one job, oldest first. None is not an error.
func (b *Bus) JobEvents(ctx context.Context, zone, host, job string) ([]messages.Event, error) {
	if err := checkAddress(zone, host, job); err != nil {
		return nil, err
	}
	var events []messages.Event
	filter := messages.EventSubject(zone, host, job, "*")
	for seq := uint64(1); ; {
		m, err := b.next(ctx, messages.EventStream, filter, seq)
		if errors.Is(err, ErrNotFound) {
			return events, nil
		}
		if err != nil {
			return nil, fmt.Errorf("events of job %s: %w", job, err)
		}
		seq = m.seq + 1
		if e, err := decodeEvent(m.subject, m.data); err != nil {
			b.cfg.Log.Warn().Err(err).Uint64("sequence", m.seq).Msg("event left out")
		} else {
			events = append(events, e)
		}
	}
}

// FinalEvent returns the event that ended a job, or ErrNotFound while it has none. It costs three
// small requests at most, and needs no right beyond direct gets on the job's own subjects.
func (b *Bus) FinalEvent(ctx context.Context, zone, host, job string) (*messages.Event, error) {
	if err := checkAddress(zone, host, job); err != nil {
		return nil, err
	}
	for _, kind := range []messages.Kind{messages.KindSucceeded, messages.KindFailed, messages.KindCancelled} {
		m, err := b.last(ctx, messages.EventStream, messages.EventSubject(zone, host, job, kind))
		if errors.Is(err, ErrNotFound) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("final event of job %s: %w", job, err)
		}
		e, err := decodeEvent(m.subject, m.data)
		if err != nil {
			return nil, err
		}
		return &e, nil
	}
	return nil, fmt.Errorf("final event of job %s: %w", job, ErrNotFound)
}

// decodeEvent reads an event and holds it against its subject: the server checks who may write
// to a subject, and nobody checks what the body claims.
func decodeEvent(subject string, data []byte) (messages.Event, error) {
	e, err := messages.DecodeEvent(data)
	if err != nil {
		return e, fmt.Errorf("%s: %w", subject, err)
	}
	if subject != messages.EventSubject(e.Zone, e.Host, e.JobID, e.Kind) {
		return e, messages.Errorf(messages.CodeInvalidMessage, "%s: the event claims to be another's", subject)
	}
	return e, nil
}

// decodeProgress reads a progress message in the same way.
func decodeProgress(subject string, data []byte) (messages.Progress, error) {
	var p messages.Progress
	if err := json.Unmarshal(data, &p); err != nil {
		return p, messages.Errorf(messages.CodeInvalidMessage, "%s: %w", subject, err)
	}
	if subject != messages.ProgressSubject(p.Zone, p.Host, p.JobID) {
		return p, messages.Errorf(messages.CodeInvalidMessage, "%s: the progress claims to be another's", subject)
	}
	return p, nil
}
