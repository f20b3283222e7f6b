package bus

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/nasfleet/nasfleet/messages"
	"github.com/nats-io/nats.go/jetstream"
)

// Difference is a setting of a live system that is not what it should be.
type Difference struct {
	// Where is the stream, or the queue of a host.
	Where string `json:"where"`
	// Setting is its name in the configuration of JetStream, or "" where all of Where is missing.
	Setting string `json:"setting,omitempty"`
	Have    string `json:"have"`
	Want    string `json:"want"`
}

// Audit compares the streams and buckets of a zone, and the queues of hosts in it, with what
// EnsureZone and EnsureQueues would make of the same Layout, and the bucket of the zones' settings where
// it exists. It changes nothing.
func (b *Bus) Audit(ctx context.Context, zone string, hosts []string) ([]Difference, error) {
	if err := messages.CheckLabel("zone", zone); err != nil {
		return nil, err
	}
	var all []Difference
	for _, want := range append(b.streams(zone), b.zoneBucket()) {
		bound, cancel := context.WithTimeout(ctx, b.cfg.Timeout)
		have, err := b.js.Stream(bound, want.Name)
		cancel()
		if errors.Is(err, jetstream.ErrStreamNotFound) && want.Name == bucketStream(messages.ZoneBucket) {
			continue // made when something is set for a zone
		}
		if errors.Is(err, jetstream.ErrStreamNotFound) {
			all = append(all, missing("stream "+want.Name))
			continue
		}
		if err != nil {
			return nil, b.fail("stream "+want.Name, err)
		}
		all = append(all, compareStreams(have.CachedInfo().Config, want)...)
	}
	for _, host := range hosts {
		found, err := b.auditQueue(ctx, zone, host)
		if err != nil {
			return nil, err
		}
		all = append(all, found...)
	}
	return all, nil
}

func missing(where string) Difference {
	return Difference{Where: where, Have: "not there", Want: "there"}
}

// field is one setting of a configuration, as text.
type field[T any] struct {
	name string
	text func(T) string
}

func of[T, V any](name string, value func(T) V) field[T] {
	return field[T]{name, func(c T) string { return fmt.Sprint(value(c)) }}
}

func compare[T any](where string, have, want T, fields []field[T]) []Difference {
	var all []Difference
	for _, f := range fields {
		if h, w := f.text(have), f.text(want); h != w {
			all = append(all, Difference{Where: where, Setting: f.name, Have: h, Want: w})
		}
	}
	return all
}

type streamConfig = jetstream.StreamConfig

// compareStreams looks at all that decides what is kept, and what a header of a host's can do.
func compareStreams(have, want streamConfig) []Difference {
	have, want = normal(have), normal(want)
	return compare("stream "+want.Name, have, want, []field[streamConfig]{
		of("subjects", func(c streamConfig) []string { return c.Subjects }),
		of("retention", func(c streamConfig) jetstream.RetentionPolicy { return c.Retention }),
		of("storage", func(c streamConfig) jetstream.StorageType { return c.Storage }),
		of("discard", func(c streamConfig) jetstream.DiscardPolicy { return c.Discard }),
		of("discard_new_per_subject", func(c streamConfig) bool { return c.DiscardNewPerSubject }),
		of("num_replicas", func(c streamConfig) int { return c.Replicas }),
		of("max_age", func(c streamConfig) any { return c.MaxAge }),
		of("max_msgs", func(c streamConfig) int64 { return c.MaxMsgs }),
		of("max_bytes", func(c streamConfig) int64 { return c.MaxBytes }),
		of("max_msgs_per_subject", func(c streamConfig) int64 { return c.MaxMsgsPerSubject }),
		of("max_msg_size", func(c streamConfig) int32 { return c.MaxMsgSize }),
		of("max_consumers", func(c streamConfig) int { return c.MaxConsumers }),
		of("duplicate_window", func(c streamConfig) any { return c.Duplicates }),
		of("no_ack", func(c streamConfig) bool { return c.NoAck }),
		of("sealed", func(c streamConfig) bool { return c.Sealed }),
		of("allow_direct", func(c streamConfig) bool { return c.AllowDirect }),
		of("deny_delete", func(c streamConfig) bool { return c.DenyDelete }),
		of("deny_purge", func(c streamConfig) bool { return c.DenyPurge }),
		of("allow_rollup_hdrs", func(c streamConfig) bool { return c.AllowRollup }),
		of("allow_msg_ttl", func(c streamConfig) bool { return c.AllowMsgTTL }),
		of("allow_msg_schedules", func(c streamConfig) bool { return c.AllowMsgSchedules }),
		of("allow_msg_counter", func(c streamConfig) bool { return c.AllowMsgCounter }),
		of("allow_atomic", func(c streamConfig) bool { return c.AllowAtomicPublish }),
		of("republish", func(c streamConfig) bool { return c.RePublish != nil }),
		of("subject_transform", func(c streamConfig) bool { return c.SubjectTransform != nil }),
		of("mirror", func(c streamConfig) bool { return c.Mirror != nil }),
		of("sources", func(c streamConfig) bool { return len(c.Sources) > 0 }),
	})
}

// normal writes the defaults that the server fills in. A stream that takes more consumers than it has
// to is as good.
func normal(c streamConfig) streamConfig {
	for _, n := range []*int64{&c.MaxMsgs, &c.MaxBytes, &c.MaxMsgsPerSubject} {
		if *n == 0 {
			*n = -1
		}
	}
	if c.MaxMsgSize == 0 {
		c.MaxMsgSize = -1
	}
	if c.MaxConsumers == 0 {
		c.MaxConsumers = -1
	}
	c.MaxConsumers = min(c.MaxConsumers, maxConsumers)
	c.Subjects = slices.Sorted(slices.Values(c.Subjects))
	return c
}

type consumerConfig = jetstream.ConsumerConfig

func (b *Bus) auditQueue(ctx context.Context, zone, host string) ([]Difference, error) {
	if err := checkHost(zone, host); err != nil {
		return nil, err
	}
	bound, cancel := context.WithTimeout(ctx, b.cfg.Timeout)
	defer cancel()
	where, want := "queue of "+zone+"/"+host, queueConfig(zone, host, b.cfg.AckWait)
	have, err := b.js.Consumer(bound, messages.JobStream(zone), want.Name)
	switch {
	case errors.Is(err, jetstream.ErrConsumerNotFound), errors.Is(err, jetstream.ErrStreamNotFound):
		return []Difference{missing(where)}, nil
	case errors.Is(err, jetstream.ErrNotPullConsumer):
		return []Difference{{Where: where, Setting: "deliver_subject", Have: "set", Want: "none"}}, nil
	case err != nil:
		return nil, b.fail(where, err)
	}
	return compare(where, have.CachedInfo().Config, want, []field[consumerConfig]{
		of("filter_subject", func(c consumerConfig) string { return c.FilterSubject }),
		of("deliver_policy", func(c consumerConfig) jetstream.DeliverPolicy { return c.DeliverPolicy }),
		of("ack_policy", func(c consumerConfig) jetstream.AckPolicy { return c.AckPolicy }),
		of("max_deliver", func(c consumerConfig) int { return c.MaxDeliver }),
		of("max_ack_pending", func(c consumerConfig) int { return c.MaxAckPending }),
		of("inactive_threshold", func(c consumerConfig) any { return c.InactiveThreshold }),
		of("deliver_subject", func(c consumerConfig) string { return c.DeliverSubject }),
		of("headers_only", func(c consumerConfig) bool { return c.HeadersOnly }),
		of("paused", func(c consumerConfig) bool { return c.PauseUntil != nil }),
	}), nil
}
