package bus

import (
	"bytes"
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/nasfleet/nasfleet/messages"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/oklog/ulid/v2"
)

func TestPublishOnce(t *testing.T) {
	t.Parallel()
	// 100 ms is the shortest window that the server takes.
	for name, window := range map[string]time.Duration{"within the window": time.Minute, "after the window": 100 * time.Millisecond} {
		t.Run(name, func(t *testing.T) {
			b, ctx := newBus(t, Config{Layout: Layout{DedupWindow: window}}), t.Context()
			cmd := newTake()
			if p, err := b.Publish(ctx, testZone, testHost, cmd); err != nil || p.Duplicate {
				t.Fatal(p, err)
			}
			if window < time.Second {
				// Over once the server takes the same message id again, elsewhere.
				eventually(t, func() bool {
					ack, err := b.js.Publish(ctx, messages.JobSubject(testZone, "other", ulid.Make().String()), nil,
						jetstream.WithMsgID(cmd.JobID))
					return err == nil && !ack.Duplicate
				})
				m, err := b.commandMsg(Outgoing{testZone, testHost, cmd})
				if err != nil {
					t.Fatal(err)
				}
				m.Header.Del(jetstream.MsgIDHeader)
				if err := b.storeOnce(ctx, m); !isCode(err, jetstream.JSErrCodeStreamWrongLastSequence) {
					t.Fatalf("not refused by its sequence: %v", err)
				}
			}
			if p, err := b.Publish(ctx, testZone, testHost, cmd); err != nil || !p.Duplicate {
				t.Fatal(p, err)
			}
			var refused error
			b.PublishAll(ctx, []Outgoing{{testZone, testHost, cmd}}, func(_ int, _ Published, err error) { refused = err })
			if refused != nil {
				t.Error("duplicate in PublishAll:", refused)
			}
			// Nor does another message get there that asks for nothing.
			if _, err := b.js.Publish(ctx, messages.JobSubject(testZone, testHost, cmd.JobID), []byte("{}")); err == nil {
				t.Error("a second message on the job's subject was taken")
			}
			if n := countStored(t, b, messages.JobStream(testZone), messages.JobSubject(testZone, testHost, cmd.JobID)); n != 1 {
				t.Errorf("stored %d times", n)
			}
		})
	}
}

// A job id that another host has is no duplicate but a mistake: nothing was stored for this host.
func TestPublishJobIDTaken(t *testing.T) {
	t.Parallel()
	b, ctx := newBus(t, Config{}), t.Context()
	cmd := newTake()
	if _, err := b.Publish(ctx, testZone, "host-1", cmd); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Publish(ctx, testZone, "host-2", cmd); !errors.Is(err, ErrConflict) {
		t.Fatal(err)
	}
}

func TestCommand(t *testing.T) {
	t.Parallel()
	b, ctx := newBus(t, Config{}), t.Context()
	cmd := newTake()
	want, err := messages.Encode(cmd)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := b.Publish(ctx, testZone, testHost, cmd); err != nil {
		t.Fatal(err)
	}
	if got, err := b.Command(ctx, testZone, testHost, cmd.JobID); err != nil || !bytes.Equal(got, want) {
		t.Errorf("%s, %v", got, err)
	}
	if _, err := b.Command(ctx, testZone, testHost, ulid.Make().String()); !errors.Is(err, ErrNotFound) {
		t.Error(err)
	}
}

func TestPublishAll(t *testing.T) {
	t.Parallel()
	const count, hosts = 6000, 1500
	b := newBus(t, Config{})
	out := make([]Outgoing, count)
	for i := range out {
		out[i] = Outgoing{Zone: testZone, Host: hostName(i % hosts), Command: newTake()}
	}
	invalid := newTake()
	invalid.VM = ""
	out[7].Command = invalid
	out[4099].Host = "no host"
	out[5998].Zone = "zone-unknown"
	out[5999] = out[0]
	want := []int{7, 4099, 5998}

	var refused, seen []int
	b.PublishAll(t.Context(), out, func(i int, _ Published, err error) {
		seen = append(seen, i)
		if err != nil {
			refused = append(refused, i)
		}
	})
	slices.Sort(seen)
	slices.Sort(refused)
	if len(seen) != count || len(slices.Compact(seen)) != count {
		t.Errorf("%d reports", len(seen))
	}
	if !slices.Equal(refused, want) {
		t.Errorf("refused %v, want %v", refused, want)
	}
	info, err := b.js.Stream(t.Context(), messages.JobStream(testZone))
	if err != nil {
		t.Fatal(err)
	}
	if n := info.CachedInfo().State.Msgs; n != count-4 { // the refused and the duplicate
		t.Errorf("%d stored", n)
	}
	if n := info.CachedInfo().State.NumSubjects; n != count-4 {
		t.Errorf("%d subjects", n)
	}
}

func TestPublishAllCancelled(t *testing.T) {
	t.Parallel()
	b := newBus(t, Config{})
	ctx, cancel := context.WithCancel(t.Context())
	out := make([]Outgoing, 2000)
	for i := range out {
		out[i] = Outgoing{Zone: testZone, Host: testHost, Command: newTake()}
	}
	var done, cancelled int
	b.PublishAll(ctx, out, func(_ int, _ Published, err error) {
		cancel()
		if done++; errors.Is(err, context.Canceled) {
			cancelled++
		}
	})
	if done != len(out) || cancelled == 0 {
		t.Errorf("%d reports, %d cancelled", done, cancelled)
	}
}

// Publishes whose server goes away are published again, and stored once.
func TestPublishAllThroughRestart(t *testing.T) {
	t.Parallel()
	dir := memoryDir(t)
	s := startServer(t, dir, "127.0.0.1:0")
	addr := s.ns.Addr().String()
	b := connect(t, Config{URL: s.ClientURL()})
	out := make([]Outgoing, 3000)
	for i := range out {
		out[i] = Outgoing{Zone: testZone, Host: hostName(i), Command: newTake()}
	}
	var lost int
	b.PublishAll(t.Context(), out, func(i int, _ Published, err error) {
		if i == 100 {
			reconnected := b.untilReconnect()
			s.Stop()
			startServer(t, dir, addr)
			<-reconnected.Done()
		}
		if err != nil {
			lost++
			t.Log(err)
		}
	})
	if lost > 0 {
		t.Errorf("%d lost", lost)
	}
	if n := countStored(t, b, messages.JobStream(testZone), ">"); n != uint64(len(out)) {
		t.Errorf("%d stored", n)
	}
}

// countStored counts the messages of a stream on a subject.
func countStored(t *testing.T, b *Bus, stream, subject string) (n uint64) {
	t.Helper()
	s, err := b.js.Stream(t.Context(), stream)
	if err != nil {
		t.Fatal(err)
	}
	info, err := s.Info(t.Context(), jetstream.WithSubjectFilter(subject))
	if err != nil {
		t.Fatal(err)
	}
	for _, count := range info.State.Subjects {
		n += count
	}
	return n
}
