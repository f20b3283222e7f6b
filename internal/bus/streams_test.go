package bus

import (
	"errors"
	"testing"
	"time"

	"github.com/nasfleet/nasfleet/messages"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

func TestEnsureZone(t *testing.T) {
	t.Parallel()
	b, ctx := newBus(t, Config{}), t.Context()
	if err := b.CheckZone(ctx, testZone); err != nil {
		t.Fatal(err)
	}
	if err := b.CheckZone(ctx, "zone-b"); !errors.Is(err, ErrNoStream) {
		t.Error(err)
	}
	config := func(name string) jetstream.StreamConfig {
		t.Helper()
		s, err := b.js.Stream(ctx, name)
		if err != nil {
			t.Fatal(err)
		}
		return s.CachedInfo().Config
	}
	jobs := config(messages.JobStream(testZone))
	if jobs.Retention != jetstream.LimitsPolicy || jobs.MaxAge != 30*24*time.Hour || jobs.Storage != jetstream.FileStorage ||
		jobs.Duplicates != 2*time.Minute || jobs.MaxConsumers != maxConsumers {
		t.Errorf("%+v", jobs)
	}
	if events := config(messages.EventStream); events.MaxAge != 90*24*time.Hour {
		t.Errorf("%+v", events)
	}

	// What an operator changed stays.
	jobs.MaxAge, jobs.Description = time.Hour, "mine"
	if _, err := b.js.UpdateStream(ctx, jobs); err != nil {
		t.Fatal(err)
	}
	for _, zone := range []string{testZone, "zone-b"} {
		if err := b.EnsureZone(ctx, zone); err != nil {
			t.Fatal(err)
		}
	}
	if now := config(messages.JobStream(testZone)); now.MaxAge != time.Hour || now.Description != "mine" {
		t.Errorf("changed: %+v", now)
	}
	if err := b.CheckZone(ctx, "zone-b"); err != nil {
		t.Error(err)
	}
}

// Whatever a host puts into a header or asks the API for, what is stored stays.
func TestHostsCannotRemove(t *testing.T) {
	t.Parallel()
	b, ctx := newBus(t, Config{}), t.Context()
	mustEvent(t, b, newEvent("job", messages.KindAccepted, 1))
	entry := newEntry(testHost, "vm")
	if err := b.PutBackup(ctx, entry); err != nil {
		t.Fatal(err)
	}
	subjects := map[string]string{
		messages.EventStream:                 messages.EventSubject(testZone, "evil", "job", messages.KindAccepted),
		bucketStream(messages.HostBucket):    BucketSubject(messages.HostBucket, "zone-a.evil"),
		bucketStream(messages.CatalogBucket): BucketSubject(messages.CatalogBucket, "zone-a.evil.x"),
	}
	for stream, subject := range subjects {
		for header, value := range map[string]string{
			jetstream.MsgRollup:      jetstream.MsgRollupAll,
			jetstream.ScheduleHeader: "@every 1s",
		} {
			m := nats.NewMsg(subject)
			m.Header.Set(header, value)
			m.Header.Set(jetstream.ScheduleTargetHeader, subject+".target")
			if _, err := b.js.PublishMsg(ctx, m); err == nil {
				t.Errorf("%s took a message with %s", stream, header)
			}
		}
		s, err := b.js.Stream(ctx, stream)
		if err != nil {
			t.Fatal(err)
		}
		if err := s.Purge(ctx); err == nil {
			t.Errorf("%s was purged", stream)
		}
		if err := s.DeleteMsg(ctx, 1); err == nil {
			t.Errorf("a message of %s was deleted", stream)
		}
	}
	if events, err := b.JobEvents(ctx, testZone, testHost, "job"); err != nil || len(events) != 1 {
		t.Error(events, err)
	}
	if _, err := b.Backup(ctx, entry.ID); err != nil {
		t.Error(err)
	}
}

// JetStream's own limit is 1,000.
func TestManyConsumers(t *testing.T) {
	b, ctx := newBus(t, Config{}), t.Context()
	stream := messages.JobStream(testZone)
	for i := range 1100 {
		c := queue(t, b, hostName(i))
		cfg := c.config()
		cfg.MemoryStorage = true // a file each costs the test's time, and counts the same
		if _, err := b.js.CreateConsumer(ctx, stream, cfg); err != nil {
			t.Fatal(i, err)
		}
	}
	job := publish(t, b, testHost)
	if d := next(t, queue(t, b, testHost)); d.JobID != job {
		t.Errorf("%+v", d)
	}
}
