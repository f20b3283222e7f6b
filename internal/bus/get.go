package bus

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"

	"github.com/nasfleet/nasfleet/messages"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// stored is a message as a stream keeps it.
type stored struct {
	subject string
	seq     uint64
	data    []byte
	// signature is that of a command, or "". Nobody has checked it.
	signature string
}

// last returns the newest message on a subject, or ErrNotFound. It is a direct get, the subject
// of which names what is read: a server can permit it to a host without STREAM.INFO, which shows
// every subject. In a cluster a replica may answer that is milliseconds behind.
func (b *Bus) last(ctx context.Context, stream, subject string) (stored, error) {
	return b.directGet(ctx, stream, stream+"."+subject, nil)
}

// next returns the first message at or after a sequence whose subject matches the filter, or ErrNotFound.
func (b *Bus) next(ctx context.Context, stream, filter string, seq uint64) (stored, error) {
	request, err := json.Marshal(struct {
		Seq    uint64 `json:"seq"`
		Filter string `json:"next_by_subj"`
	}{max(seq, 1), filter})
	if err != nil {
		return stored{}, err
	}
	return b.directGet(ctx, stream, stream, request)
}

func (b *Bus) directGet(ctx context.Context, stream, target string, request []byte) (stored, error) {
	ctx, cancel := b.bounded(ctx)
	defer cancel()
	// The direct get API: $JS.API.DIRECT.GET.<stream>[.<subject>]; the message comes back with
	// its place in headers, or without one and a status of 404.
	m, err := b.nc.RequestWithContext(ctx, b.api+"DIRECT.GET."+target, request)
	if errors.Is(err, nats.ErrNoResponders) {
		return stored{}, fmt.Errorf("%w: %s is not there or allows no direct gets", ErrNoStream, stream)
	}
	if err != nil {
		return stored{}, b.fail("read "+stream, err)
	}
	switch status := m.Header.Get("Status"); status {
	case "":
	case "404":
		return stored{}, fmt.Errorf("%s: %w", stream, ErrNotFound)
	default:
		return stored{}, fmt.Errorf("read %s: status %s %s", stream, status, m.Header.Get("Description"))
	}
	seq, err := strconv.ParseUint(m.Header.Get(jetstream.SequenceHeader), 10, 64)
	if err != nil {
		return stored{}, fmt.Errorf("read %s: %w", stream, err)
	}
	return stored{
		subject: m.Header.Get(jetstream.SubjectHeader), seq: seq, data: m.Data, signature: m.Header.Get(messages.SignatureHeader),
	}, nil
}
