package bus

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/nasfleet/nasfleet/messages"
	"github.com/oklog/ulid/v2"
)

// commandsOf returns the jobs of a range as its stream has them.
func commandsOf(t *testing.T, b *Bus, r Range) []string {
	t.Helper()
	var jobs []string
	if err := b.EachCommand(t.Context(), r, func(c StoredCommand) { jobs = append(jobs, c.Host+"/"+c.Job) }); err != nil {
		t.Fatal(err)
	}
	return jobs
}

func TestEachCommand(t *testing.T) {
	t.Parallel()
	b := newBus(t, Config{})
	if jobs := commandsOf(t, b, Range{Zone: testZone}); len(jobs) > 0 {
		t.Fatal(jobs)
	}
	var out []Outgoing
	var want []string
	for i := range 700 { // more than one batch
		cmd, host := newTake(), hostName(i%7)
		out = append(out, Outgoing{testZone, host, cmd})
		want = append(want, host+"/"+cmd.JobID)
	}
	b.PublishAll(t.Context(), out, func(_ int, p Published, err error) {
		if err != nil || p.Duplicate {
			t.Error(p, err)
		}
	})
	if got := commandsOf(t, b, Range{Zone: testZone}); !slices.Equal(got, want) {
		t.Errorf("%d commands, or not in order", len(got))
	}
	last := out[len(out)-1]
	if got := commandsOf(t, b, Range{Zone: testZone, Hosts: []string{hostName(3), hostName(3), hostName(5)}}); len(got) != 200 {
		t.Errorf("%d commands of two hosts", len(got))
	}
	ids := []string{last.Command.Head().JobID, out[0].Command.Head().JobID, ulid.Make().String()}
	if got := commandsOf(t, b, Range{Zone: testZone, Jobs: ids}); !slices.Equal(got, []string{want[0], want[699]}) {
		t.Errorf("%v of two jobs", got)
	}

	// From a time on: that of a command is the server's.
	var at time.Time
	if err := b.EachCommand(t.Context(), Range{Zone: testZone}, func(c StoredCommand) { at = c.At }); err != nil {
		t.Fatal(err)
	}
	if got := commandsOf(t, b, Range{Zone: testZone, Since: at}); len(got) == 0 || got[len(got)-1] != want[699] {
		t.Errorf("%v since the last one", got)
	}
	if got := commandsOf(t, b, Range{Zone: testZone, Since: at.Add(time.Second)}); len(got) > 0 {
		t.Errorf("%v of the future", got)
	}

	// Publishing it all again is told of each, and stores nothing.
	duplicates := 0
	b.PublishAll(t.Context(), out, func(_ int, p Published, err error) {
		if err == nil && p.Duplicate {
			duplicates++
		}
	})
	if duplicates != len(out) || len(commandsOf(t, b, Range{Zone: testZone})) != len(out) {
		t.Errorf("%d duplicates", duplicates)
	}
}

// TestEachCommandOfAnything: what lies in the stream by somebody's hand comes as it is.
func TestEachCommandOfAnything(t *testing.T) {
	t.Parallel()
	b := newBus(t, Config{})
	for _, subject := range []string{"backup.jobs." + testZone + ".H_1.x", "backup.jobs." + testZone + ".host-1.no-ulid"} {
		if _, err := b.js.Publish(t.Context(), subject, []byte("not JSON")); err != nil {
			t.Fatal(err)
		}
	}
	if got := commandsOf(t, b, Range{Zone: testZone}); !slices.Equal(got, []string{"H_1/x", "host-1/no-ulid"}) {
		t.Error(got)
	}
}

func TestEachEvent(t *testing.T) {
	t.Parallel()
	b := newBus(t, Config{})
	one, two := ulid.Make().String(), ulid.Make().String()
	for _, job := range []string{one, two} {
		mustEvent(t, b, newEvent(job, messages.KindAccepted, 1))
	}
	mustEvent(t, b, newEvent(one, messages.KindFailed, 1))
	forged := newEvent(two, messages.KindSucceeded, 1)
	subject := messages.EventSubject(testZone, testHost, one, messages.KindSucceeded)
	if _, err := b.js.Publish(t.Context(), subject, mustJSON(t, forged)); err != nil {
		t.Fatal(err)
	}
	read := func(r Range) (kinds []messages.Kind, at time.Time) {
		err := b.EachEvent(t.Context(), r, func(e StoredEvent) { kinds, at = append(kinds, e.Kind), e.At })
		if err != nil {
			t.Fatal(err)
		}
		return kinds, at
	}
	all := []messages.Kind{messages.KindAccepted, messages.KindAccepted, messages.KindFailed}
	kinds, at := read(Range{})
	if !slices.Equal(kinds, all) || time.Since(at).Abs() > time.Minute {
		t.Error(kinds, at)
	}
	if kinds, _ := read(Range{Zone: testZone, Jobs: []string{two}}); !slices.Equal(kinds, all[:1]) {
		t.Error(kinds)
	}
	if kinds, _ := read(Range{Zone: "zone-b"}); len(kinds) > 0 {
		t.Error(kinds)
	}
	if kinds, _ := read(Range{Since: at}); !slices.Contains(kinds, messages.KindFailed) {
		t.Error(kinds)
	}
}

func TestZones(t *testing.T) {
	t.Parallel()
	b := newBus(t, Config{})
	for _, zone := range []string{"b", "a"} {
		if err := b.EnsureZone(t.Context(), zone); err != nil {
			t.Fatal(err)
		}
	}
	if zones, err := b.Zones(t.Context()); err != nil || !slices.Equal(zones, []string{"a", "b", testZone}) {
		t.Error(zones, err)
	}
}

func TestRangeErrors(t *testing.T) {
	t.Parallel()
	b := newBus(t, Config{})
	none := func(StoredCommand) { t.Error("a command") }
	if err := b.EachCommand(t.Context(), Range{Zone: "nowhere"}, none); !errors.Is(err, ErrNoStream) {
		t.Error(err)
	}
	for _, r := range []Range{{}, {Zone: "*"}, {Zone: testZone, Hosts: []string{"*"}}, {Zone: testZone, Jobs: []string{"a.>"}}} {
		if err := b.EachCommand(t.Context(), r, none); messages.CodeOf(err) != messages.CodeInvalidMessage {
			t.Errorf("%+v: %v", r, err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := b.EachCommand(ctx, Range{Zone: testZone}, none); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
}

// TestEachCommandOverALostConnection: the pass goes on where it was, and no command is missed or
// seen twice.
func TestEachCommandOverALostConnection(t *testing.T) {
	t.Parallel()
	dir := memoryDir(t)
	s := startServer(t, dir, "127.0.0.1:0")
	addr := strings.TrimPrefix(s.ClientURL(), "nats://")
	b := connect(t, Config{URL: s.ClientURL()})
	var out []Outgoing
	var want, got []string
	for range 600 {
		cmd := newTake()
		out, want = append(out, Outgoing{testZone, testHost, cmd}), append(want, cmd.JobID)
	}
	b.PublishAll(t.Context(), out, func(_ int, _ Published, err error) {
		if err != nil {
			t.Error(err)
		}
	})
	err := b.EachCommand(t.Context(), Range{Zone: testZone}, func(c StoredCommand) {
		if got = append(got, c.Job); len(got) == 100 {
			s.Stop()
			s = startServer(t, dir, addr)
		}
	})
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("%d commands, %v", len(got), err)
	}
}
