package bus

import (
	"errors"
	"testing"

	"github.com/nasfleet/nasfleet/messages"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// Queues are made for hosts that may not make their own, once, with what was published before.
func TestEnsureQueues(t *testing.T) {
	t.Parallel()
	b, ctx := newBus(t, Config{}), t.Context()
	job := publish(t, b, "host-1")
	for range 2 {
		if err := b.EnsureQueues(ctx, testZone, []string{"host-1"}); err != nil {
			t.Fatal(err)
		}
		if err := b.EnsureQueues(ctx, testZone, []string{"host-1", "host-2", "host-3", "host-2"}); err != nil {
			t.Fatal(err)
		}
	}
	stream, err := b.js.Stream(ctx, messages.JobStream(testZone))
	if err != nil {
		t.Fatal(err)
	}
	if n := stream.CachedInfo().State.Consumers; n != 3 {
		t.Errorf("%d queues", n)
	}
	if d := next(t, queue(t, b, "host-1")); d.JobID != job {
		t.Errorf("got %+v", d)
	}
	if err := b.EnsureQueues(ctx, testZone, nil); err != nil {
		t.Error(err)
	}
	if err := b.EnsureQueues(ctx, "zone-b", []string{"host-1"}); !errors.Is(err, ErrNoStream) {
		t.Errorf("a zone that is not there: %v", err)
	}
	if err := b.EnsureQueues(ctx, testZone, []string{"a.b"}); messages.CodeOf(err) != messages.CodeInvalidMessage {
		t.Errorf("a hostile name: %v", err)
	}
}

// A command carries its signature to the host, also one of many and one that is published again.
func TestSignature(t *testing.T) {
	t.Parallel()
	b, ctx := newBus(t, Config{Sign: func(subject string, data []byte) (string, error) {
		if len(data) == 0 {
			return "", errors.New("nothing to sign")
		}
		return "signed for " + subject, nil
	}}), t.Context()
	first, second, third := newTake(), newTake(), newTake()
	for range 2 {
		if _, err := b.Publish(ctx, testZone, testHost, first); err != nil {
			t.Fatal(err)
		}
	}
	b.PublishAll(ctx, []Outgoing{{testZone, testHost, second}, {testZone, testHost, third}}, func(_ int, _ Published, err error) {
		if err != nil {
			t.Error(err)
		}
	})
	c := queue(t, b, testHost)
	for range 3 {
		d := next(t, c)
		if d.Signature != "signed for "+d.Subject {
			t.Errorf("%s carries %q", d.Subject, d.Signature)
		}
	}
	b.cfg.Sign = func(string, []byte) (string, error) { return "", errors.New("no key") }
	if _, err := b.Publish(ctx, testZone, testHost, newTake()); err == nil {
		t.Error("published without the signature it was to have")
	}
}

// A host that knows the ids of another's events cannot have them dropped as duplicates.
func TestEventIDsAreSecret(t *testing.T) {
	t.Parallel()
	key := []byte("0123456789abcdef")
	b, ctx := newBus(t, Config{EventKey: key}), t.Context()
	e := newEvent(newTake().JobID, messages.KindAccepted, 1)
	forged := newEvent(e.JobID, messages.KindAccepted, 1)
	forged.Host = "host-2"
	m := nats.NewMsg(messages.EventSubject(forged.Zone, forged.Host, forged.JobID, forged.Kind))
	m.Data = mustJSON(t, forged)
	m.Header.Set(jetstream.MsgIDHeader, e.MsgID())
	if err := b.storeOnce(ctx, m); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		mustEvent(t, b, e)
	}
	if events, err := b.JobEvents(ctx, testZone, testHost, e.JobID); err != nil || len(events) != 1 {
		t.Errorf("%d events, %v", len(events), err)
	}
}
