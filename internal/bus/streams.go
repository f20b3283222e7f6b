package bus

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nasfleet/nasfleet/messages"
	"github.com/nats-io/nats.go/jetstream"
)

// maxConsumers lifts JetStream's own limit of 1,000 consumers a stream: each host has one.
const maxConsumers = 20_000

// MaxReplicas is the most that JetStream keeps of a stream.
const MaxReplicas = 5

// Layout shapes the streams and buckets when they are created. One that exists is never changed:
// its settings are the operator's.
type Layout struct {
	// Replicas in a cluster, 1 to MaxReplicas; 0 means 1.
	Replicas int
	// JobsAge is how long commands are kept for replay; 0 means 30 days.
	JobsAge time.Duration
	// EventsAge is how long lasting events are kept; 0 means 90 days.
	EventsAge time.Duration
	// HostTTL is how long a host counts as alive after its last announcement; 0 means 45 s.
	HostTTL time.Duration
	// DedupWindow is how long JetStream remembers a command's Nats-Msg-Id; 0 means 2 minutes.
	// A duplicate is refused afterwards too, by the sequence its subject must have.
	DedupWindow time.Duration
	// EventWindow is how long JetStream remembers an event's Nats-Msg-Id: the longest outage after
	// which a repeated event is still stored once; 0 means an hour.
	EventWindow time.Duration
}

func (l Layout) withDefaults() Layout {
	const day = 24 * time.Hour
	set := func(d *time.Duration, def time.Duration) {
		if *d == 0 {
			*d = def
		}
	}
	l.Replicas = max(l.Replicas, 1)
	set(&l.JobsAge, 30*day)
	set(&l.EventsAge, 90*day)
	set(&l.HostTTL, 45*time.Second)
	set(&l.DedupWindow, 2*time.Minute)
	set(&l.EventWindow, time.Hour)
	return l
}

// EnsureZone creates the zone's stream of commands, and the stream and the buckets that all zones
// share, where they are missing. It changes nothing that exists, and may be called again.
func (b *Bus) EnsureZone(ctx context.Context, zone string) error {
	if err := messages.CheckLabel("zone", zone); err != nil {
		return err
	}
	for _, cfg := range b.streams(zone) {
		if err := b.ensure(ctx, cfg); err != nil {
			return err
		}
	}
	return nil
}

// CheckZone returns ErrNoStream with the name of the first stream or bucket of the zone that is missing.
func (b *Bus) CheckZone(ctx context.Context, zone string) error {
	if err := messages.CheckLabel("zone", zone); err != nil {
		return err
	}
	for _, cfg := range b.streams(zone) {
		if _, err := b.js.Stream(ctx, cfg.Name); err != nil {
			return b.fail("stream "+cfg.Name, err)
		}
	}
	return nil
}

func (b *Bus) ensure(ctx context.Context, cfg jetstream.StreamConfig) error {
	_, err := b.js.Stream(ctx, cfg.Name)
	if errors.Is(err, jetstream.ErrStreamNotFound) {
		_, err = b.js.CreateStream(ctx, cfg)
		if errors.Is(err, jetstream.ErrStreamNameAlreadyInUse) {
			return nil // somebody was faster
		}
	}
	if err != nil {
		return b.fail(fmt.Sprintf("stream %s", cfg.Name), err)
	}
	return nil
}

func (b *Bus) streams(zone string) []jetstream.StreamConfig {
	l := b.cfg.Layout
	return []jetstream.StreamConfig{
		{
			Name:         messages.JobStream(zone),
			Description:  "nasfleet: commands of zone " + zone,
			Subjects:     []string{messages.JobSubject(zone, "*", "*")},
			Retention:    jetstream.LimitsPolicy, // an acked command stays, so that it can be replayed
			MaxAge:       l.JobsAge,
			Duplicates:   min(l.DedupWindow, l.JobsAge),
			Storage:      jetstream.FileStorage,
			Replicas:     l.Replicas,
			MaxConsumers: maxConsumers,
			AllowDirect:  true,
			// A job's subject takes one message ever, also from those that do not ask for that.
			MaxMsgsPerSubject:    1,
			Discard:              jetstream.DiscardNew,
			DiscardNewPerSubject: true,
		},
		hostsWrite(jetstream.StreamConfig{
			Name:         messages.EventStream,
			Description:  "nasfleet: what happened to jobs",
			Subjects:     []string{messages.EventSubject("*", "*", "*", "*")},
			MaxAge:       l.EventsAge,
			Duplicates:   min(l.EventWindow, l.EventsAge),
			Replicas:     l.Replicas,
			MaxConsumers: maxConsumers,
		}),
		hostsWrite(jetstream.StreamConfig{
			Name:              bucketStream(messages.HostBucket),
			Description:       "nasfleet: hosts that are alive",
			Subjects:          []string{BucketSubject(messages.HostBucket, ">")},
			MaxAge:            l.HostTTL,
			Duplicates:        min(l.DedupWindow, l.HostTTL),
			Replicas:          l.Replicas,
			MaxMsgsPerSubject: 1,
			Discard:           jetstream.DiscardNew,
		}),
		hostsWrite(jetstream.StreamConfig{
			Name:              bucketStream(messages.CatalogBucket),
			Description:       "nasfleet: backups that exist",
			Subjects:          []string{BucketSubject(messages.CatalogBucket, ">")},
			Duplicates:        l.DedupWindow,
			Replicas:          l.Replicas,
			MaxMsgsPerSubject: 1,
			Discard:           jetstream.DiscardNew,
			AllowMsgTTL:       true, // the marker of a removed backup goes away by itself
		}),
	}
}

// hostsWrite completes the settings of a stream that hosts write to. Whatever a host puts into
// the headers, it can remove nothing that is stored: no rollup (which KV buckets otherwise
// allow), no purge, no delete, no schedules. Reads are direct gets, which a server can permit
// subject by subject.
func hostsWrite(cfg jetstream.StreamConfig) jetstream.StreamConfig {
	cfg.Retention = jetstream.LimitsPolicy
	cfg.Storage = jetstream.FileStorage
	cfg.AllowDirect = true
	cfg.DenyDelete = true
	cfg.DenyPurge = true
	cfg.AllowRollup = false
	cfg.AllowMsgSchedules = false
	return cfg
}
