package integration

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/oklog/ulid/v2"

	"github.com/nasfleet/nasfleet/internal/bus"
	"github.com/nasfleet/nasfleet/messages"
)

// connect returns a connection of the test's own to the world's NATS.
func (w *world) connect(t *testing.T) *bus.Bus {
	t.Helper()
	b, err := bus.Connect(t.Context(), bus.Config{URL: w.url, Name: "test"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.Close)
	return b
}

// events returns the stored events of a job.
func (w *world) events(t *testing.T, job string) []messages.Event {
	t.Helper()
	evs, err := w.connect(t).JobEvents(t.Context(), zone, host, job)
	if err != nil {
		t.Fatal(err)
	}
	return evs
}

// publishRaw puts bytes on a job's subject as any NATS client can, and returns the job's final event.
func (w *world) publishRaw(t *testing.T, job string, data []byte) messages.Event {
	t.Helper()
	b := w.connect(t)
	watch, err := b.Watch(t.Context(), bus.Filter{Zone: zone, Host: host, Job: job})
	if err != nil {
		t.Fatal(err)
	}
	defer watch.Stop()
	nc, err := nats.Connect(w.url)
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	if _, err := nc.Request(messages.JobSubject(zone, host, job), data, 5*time.Second); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for {
		u, err := watch.Next(ctx)
		if err != nil {
			t.Fatalf("no final event of job %s: %v\n%s", job, err, w.log.Tail(20))
		}
		if u.Event != nil && u.Event.Kind.Final() {
			return *u.Event
		}
	}
}

// awaitFinal waits for the event that ends a job, however long ago.
func (w *world) awaitFinal(t *testing.T, job string) messages.Event {
	t.Helper()
	watch, err := w.connect(t).Watch(t.Context(), bus.Filter{Zone: zone, Host: host, Job: job, History: true})
	if err != nil {
		t.Fatal(err)
	}
	defer watch.Stop()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for {
		u, err := watch.Next(ctx)
		if err != nil {
			t.Fatalf("no final event of job %s: %v\n%s", job, err, w.log.Tail(20))
		}
		if u.Event != nil && u.Event.Kind.Final() {
			return *u.Event
		}
	}
}

// newJobID returns the id of a new job.
func newJobID() string { return ulid.Make().String() }

// awaitPhase waits until a job is in a phase.
func (w *world) awaitPhase(t *testing.T, job string, phase messages.Phase) {
	t.Helper()
	await(t, fmt.Sprintf("job %s in phase %s", job, phase), w.watchPhase(t, job, phase))
}

// watchPhase returns a channel that is closed when a job, which may be still to be published, is in a phase.
func (w *world) watchPhase(t *testing.T, job string, phase messages.Phase) <-chan struct{} {
	t.Helper()
	watch, err := w.connect(t).Watch(t.Context(), bus.Filter{Zone: zone, Host: host, Job: job})
	if err != nil {
		t.Fatal(err)
	}
	reached := make(chan struct{})
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			u, err := watch.Next(t.Context())
			if err != nil {
				return
			}
			if u.Progress != nil && u.Progress.Phase == phase {
				close(reached)
				return
			}
			if u.Event != nil && u.Event.Kind.Final() {
				t.Errorf("job %s ended before %s: %s", job, phase, asJSON(u.Event))
				return
			}
		}
	}()
	t.Cleanup(func() { watch.Stop(); <-done })
	return reached
}

// rawStream reads a stream from its first message to its last with a client of NATS's own.
func rawStream(t *testing.T, url, stream string) ([][]byte, error) {
	t.Helper()
	nc, err := nats.Connect(url)
	if err != nil {
		return nil, err
	}
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		return nil, err
	}
	s, err := js.Stream(t.Context(), stream)
	if err != nil {
		return nil, err
	}
	state := s.CachedInfo().State
	var all [][]byte
	for seq := state.FirstSeq; seq <= state.LastSeq && state.Msgs > 0; seq++ {
		m, err := s.GetMsg(t.Context(), seq)
		if errors.Is(err, jetstream.ErrMsgNotFound) {
			continue // replaced by a newer one on its subject
		}
		if err != nil {
			return nil, err
		}
		all = append(all, fmt.Appendf(nil, "%s %v %s", m.Subject, m.Header, m.Data))
	}
	return all, nil
}
