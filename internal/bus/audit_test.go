package bus

import (
	"slices"
	"testing"
	"time"

	"github.com/nasfleet/nasfleet/messages"
	"github.com/nats-io/nats.go/jetstream"
)

// What EnsureZone and EnsureQueues make is what Audit wants; each change to it is told.
func TestAudit(t *testing.T) {
	t.Parallel()
	b, ctx := newBus(t, Config{}), t.Context()
	audit := func() []string {
		t.Helper()
		found, err := b.Audit(ctx, testZone, []string{"host-1", "host-2"})
		if err != nil {
			t.Fatal(err)
		}
		var list []string
		for _, d := range found {
			list = append(list, d.Where+" "+d.Setting+": "+d.Have+", not "+d.Want)
		}
		return list
	}
	if got := audit(); !slices.Equal(got, []string{"queue of zone-a/host-1 : not there, not there", "queue of zone-a/host-2 : not there, not there"}) {
		t.Errorf("%q", got)
	}
	if err := b.EnsureQueues(ctx, testZone, []string{"host-1", "host-2"}); err != nil {
		t.Fatal(err)
	}
	if got := audit(); got != nil {
		t.Errorf("just made: %q", got)
	}
	for _, tt := range []struct {
		stream string
		change func(*jetstream.StreamConfig)
		want   []string
	}{
		{"KV_" + messages.CatalogBucket, func(c *jetstream.StreamConfig) { c.AllowRollup, c.DenyPurge = true, false }, nil},
		{"KV_" + messages.HostBucket, func(c *jetstream.StreamConfig) { c.MaxAge = time.Hour },
			[]string{"stream KV_BACKUP_HOSTS max_age: 1h0m0s, not 45s"}},
		{messages.EventStream, func(c *jetstream.StreamConfig) {
			c.RePublish = &jetstream.RePublish{Source: ">", Destination: "copy.>"}
		},
			[]string{"stream BACKUP_EVENTS republish: true, not false"}},
		{messages.JobStream(testZone), func(c *jetstream.StreamConfig) { c.MaxBytes, c.DiscardNewPerSubject = 1<<20, false },
			[]string{"stream BACKUP_JOBS_zone-a discard_new_per_subject: false, not true", "stream BACKUP_JOBS_zone-a max_bytes: 1048576, not -1"}},
	} {
		s, err := b.js.Stream(ctx, tt.stream)
		if err != nil {
			t.Fatal(err)
		}
		before := s.CachedInfo().Config
		changed := before
		tt.change(&changed)
		if _, err := b.js.UpdateStream(ctx, changed); err != nil {
			if tt.want == nil {
				t.Logf("%s: the server itself refuses: %v", tt.stream, err)
				continue
			}
			t.Fatalf("%s: %v", tt.stream, err)
		}
		if got := audit(); tt.want != nil && !slices.Equal(got, tt.want) {
			t.Errorf("%s: %q, want %q", tt.stream, got, tt.want)
		}
		if _, err := b.js.UpdateStream(ctx, before); err != nil {
			t.Fatal(err)
		}
	}
	// A stream that somebody made otherwise, and a queue that pushes.
	if err := b.js.DeleteStream(ctx, messages.JobStream(testZone)); err != nil {
		t.Fatal(err)
	}
	if got := audit(); len(got) != 3 || got[0] != "stream BACKUP_JOBS_zone-a : not there, not there" {
		t.Errorf("%q", got)
	}
	_, err := b.js.CreateStream(ctx, jetstream.StreamConfig{
		Name: messages.JobStream(testZone), Subjects: []string{messages.JobSubject(testZone, "*", "*")}, AllowRollup: true, AllowDirect: true,
		AllowMsgSchedules: true, AllowAtomicPublish: true, MaxAge: 30 * 24 * time.Hour, Duplicates: 2 * time.Minute, MaxConsumers: 50_000,
	})
	if err != nil {
		t.Fatal(err)
	}
	push := queueConfig(testZone, "host-1", b.cfg.AckWait)
	push.DeliverSubject = "elsewhere"
	if _, err := b.js.CreatePushConsumer(ctx, messages.JobStream(testZone), push); err != nil {
		t.Fatal(err)
	}
	other := queueConfig(testZone, "host-2", b.cfg.AckWait)
	other.FilterSubject, other.InactiveThreshold = messages.JobSubject(testZone, "host-1", "*"), time.Hour
	if _, err := b.js.CreateConsumer(ctx, messages.JobStream(testZone), other); err != nil {
		t.Fatal(err)
	}
	want := []string{
		"stream BACKUP_JOBS_zone-a discard: DiscardOld, not DiscardNew",
		"stream BACKUP_JOBS_zone-a discard_new_per_subject: false, not true",
		"stream BACKUP_JOBS_zone-a max_msgs_per_subject: -1, not 1",
		"stream BACKUP_JOBS_zone-a allow_rollup_hdrs: true, not false",
		"stream BACKUP_JOBS_zone-a allow_msg_schedules: true, not false",
		"stream BACKUP_JOBS_zone-a allow_atomic: true, not false",
		"queue of zone-a/host-1 deliver_subject: set, not none",
		"queue of zone-a/host-2 filter_subject: backup.jobs.zone-a.host-1.*, not backup.jobs.zone-a.host-2.*",
		"queue of zone-a/host-2 inactive_threshold: 1h0m0s, not 0s",
	}
	got := audit()
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("%q\nwant %q", got, want)
	}
}
