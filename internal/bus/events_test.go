package bus

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/nasfleet/nasfleet/messages"
	"github.com/nats-io/nats.go/jetstream"
	"github.com/oklog/ulid/v2"
)

func TestJobEvents(t *testing.T) {
	t.Parallel()
	b, ctx := newBus(t, Config{}), t.Context()
	job := ulid.Make().String()
	story := []messages.Event{
		newEvent(job, messages.KindAccepted, 1),
		newEvent(job, messages.KindRetrying, 1),
		newEvent(job, messages.KindAccepted, 2),
		newEvent(job, messages.KindVerified, 2),
		newEvent(job, messages.KindSucceeded, 2),
	}
	if events, err := b.JobEvents(ctx, testZone, testHost, job); err != nil || len(events) != 0 {
		t.Fatal(events, err)
	}
	if _, err := b.FinalEvent(ctx, testZone, testHost, job); !errors.Is(err, ErrNotFound) {
		t.Fatal(err)
	}
	for _, e := range story {
		mustEvent(t, b, e)
		mustEvent(t, b, newEvent(ulid.Make().String(), messages.KindFailed, 1))
		mustEvent(t, b, e) // once more
	}
	// A worker that finds the job committed reports it again, in another attempt.
	mustEvent(t, b, newEvent(job, messages.KindSucceeded, 3))
	events, err := b.JobEvents(ctx, testZone, testHost, job)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(story, events); diff != "" {
		t.Error(diff)
	}
	final, err := b.FinalEvent(ctx, testZone, testHost, job)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(&story[4], final); diff != "" {
		t.Error(diff)
	}
	for _, kind := range []messages.Kind{messages.KindFailed, messages.KindCancelled} {
		job := ulid.Make().String()
		mustEvent(t, b, newEvent(job, kind, 1))
		if e, err := b.FinalEvent(ctx, testZone, testHost, job); err != nil || e.Kind != kind {
			t.Error(e, err)
		}
	}
}

// A host may write on its own subjects what it likes: not in another's name.
func TestForgedEvent(t *testing.T) {
	t.Parallel()
	b, ctx := newBus(t, Config{}), t.Context()
	job := ulid.Make().String()
	subject := messages.EventSubject(testZone, testHost, job, messages.KindSucceeded)
	forged := `{"version":1,"kind":"succeeded","job_id":"` + job + `","zone":"zone-a","host":"host-2","time":"2026-01-01T00:00:00Z","attempt":1}`
	if _, err := b.js.Publish(ctx, subject, []byte(forged)); err != nil {
		t.Fatal(err)
	}
	if _, err := b.js.Publish(ctx, messages.EventSubject(testZone, testHost, job, messages.KindFailed), []byte("no event")); err != nil {
		t.Fatal(err)
	}
	if events, err := b.JobEvents(ctx, testZone, testHost, job); err != nil || len(events) != 0 {
		t.Error(events, err)
	}
	if e, err := b.FinalEvent(ctx, testZone, testHost, job); messages.CodeOf(err) != messages.CodeInvalidMessage {
		t.Error(e, err)
	}
}

func TestWatch(t *testing.T) {
	t.Parallel()
	b, ctx := newBus(t, Config{}), t.Context()
	old := newEvent(ulid.Make().String(), messages.KindSucceeded, 1)
	mustEvent(t, b, old)
	w, err := b.Watch(ctx, Filter{Zone: testZone})
	if err != nil {
		t.Fatal(err)
	}
	defer w.Stop()

	job := ulid.Make().String()
	story := []messages.Event{
		newEvent(job, messages.KindAccepted, 1), newEvent(job, messages.KindVerified, 1), newEvent(job, messages.KindSucceeded, 1),
	}
	progress := messages.Progress{JobID: job, Zone: testZone, Host: testHost, Phase: messages.PhaseCopying,
		Disks: []messages.DiskProgress{{Name: "vda", Done: 1, Total: 2}}}
	forged := progress
	forged.Host = "host-2"
	if err := b.nc.Publish(messages.ProgressSubject(testZone, testHost, job), mustJSON(t, forged)); err != nil {
		t.Fatal(err)
	}
	for _, e := range story {
		mustEvent(t, b, e)
	}
	if err := b.PublishProgress(progress); err != nil {
		t.Fatal(err)
	}
	var events []messages.Event
	var seen []messages.Progress
	for range len(story) + 1 {
		u := mustUpdate(t, w)
		if u.Event != nil {
			events = append(events, *u.Event)
		}
		if u.Progress != nil {
			seen = append(seen, *u.Progress)
		}
	}
	if diff := cmp.Diff(story, events); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]messages.Progress{progress}, seen); diff != "" {
		t.Error(diff)
	}
	w.Stop()
	if u, err := w.Next(ctx); !errors.Is(err, ErrStopped) {
		t.Errorf("%+v, %v", u, err)
	}

	for name, tt := range map[string]struct {
		filter Filter
		first  messages.Event
	}{
		"history":          {Filter{History: true}, old},
		"since":            {Filter{Since: time.Now().Add(-time.Hour)}, old},
		"history of a job": {Filter{Job: job, History: true}, story[0]},
	} {
		t.Run(name, func(t *testing.T) {
			enough := errors.New("enough")
			err := b.Follow(ctx, tt.filter, func(u Update) error {
				if u.Event == nil || !cmp.Equal(*u.Event, tt.first) {
					t.Errorf("%+v", u)
				}
				return enough
			})
			if !errors.Is(err, enough) {
				t.Error(err)
			}
		})
	}
	t.Run("of another host", func(t *testing.T) {
		ctx, cancel := context.WithTimeout(ctx, 200*time.Millisecond)
		defer cancel()
		err := b.Follow(ctx, Filter{Host: "host-2", History: true}, func(u Update) error {
			t.Errorf("%+v", u)
			return nil
		})
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
	})
}

// A watcher of what is new, and one who has seen much, both see each event once, in order, over
// a restart of the server during which events are being published.
func TestWatchThroughRestart(t *testing.T) {
	t.Parallel()
	const count = 400
	dir := memoryDir(t)
	s := startServer(t, dir, "127.0.0.1:0")
	addr := s.ns.Addr().String()
	b := connect(t, Config{URL: s.ClientURL(), Persist: true, Timeout: time.Second})
	early, err := b.Watch(t.Context(), Filter{})
	if err != nil {
		t.Fatal(err)
	}
	defer early.Stop()
	idle, err := b.Watch(t.Context(), Filter{Job: "last"})
	if err != nil {
		t.Fatal(err)
	}
	defer idle.Stop()

	published := make(chan error, 1)
	half := make(chan struct{})
	go func() {
		defer close(published)
		for i := range count {
			if i == count/2 {
				close(half)
			}
			if err := b.PublishEvent(t.Context(), newEvent("job", messages.KindAccepted, i)); err != nil {
				published <- err
				return
			}
		}
		if err := b.PublishEvent(t.Context(), newEvent("last", messages.KindSucceeded, 1)); err != nil {
			published <- err
		}
	}()
	<-half
	s.Stop()
	startServer(t, dir, addr)
	if err := <-published; err != nil {
		t.Fatal(err)
	}
	for i := range count {
		if u := mustUpdate(t, early); u.Event == nil || u.Event.Attempt != i {
			t.Fatalf("at %d: %+v", i, u)
		}
	}
	for _, w := range []*Watch{early, idle} {
		if u := mustUpdate(t, w); u.Event == nil || u.Event.JobID != "last" {
			t.Errorf("%+v", u)
		}
	}
	if n := countStored(t, b, messages.EventStream, ">"); n != count+1 {
		t.Errorf("%d stored", n)
	}
}

// What a watcher fetched and lost is fetched again.
func TestWatchGap(t *testing.T) {
	t.Parallel()
	b, ctx := newBus(t, Config{}), t.Context()
	f := &follower{bus: b, stream: messages.EventStream, start: Filter{History: true}}
	defer f.close()
	for i := range 5 {
		mustEvent(t, b, newEvent("job", messages.KindAccepted, i))
	}
	if err := f.open(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := f.iter.Next(); err != nil { // lost: the follower never sees it
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var attempts []int
	err := f.run(ctx, func(e messages.Event) {
		if attempts = append(attempts, e.Attempt); len(attempts) == 5 {
			cancel()
		}
	})
	if !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if diff := cmp.Diff([]int{0, 1, 2, 3, 4}, attempts); diff != "" {
		t.Error(diff)
	}
}

func TestPublishEventGivesUp(t *testing.T) {
	t.Parallel()
	s := startServer(t, memoryDir(t), "127.0.0.1:0")
	b := connect(t, Config{URL: s.ClientURL(), Timeout: time.Second})
	s.Stop()
	ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	err := b.PublishEvent(ctx, newEvent("job", messages.KindAccepted, 1))
	if !errors.Is(err, context.DeadlineExceeded) || !errors.Is(err, ErrUnreachable) {
		t.Error(err)
	}
}

func TestEventWindow(t *testing.T) {
	t.Parallel()
	b, ctx := newBus(t, Config{Layout: Layout{EventWindow: 100 * time.Millisecond}}), t.Context()
	final := newEvent("job", messages.KindSucceeded, 1)
	mustEvent(t, b, final)
	eventually(t, func() bool { // the window is over
		ack, err := b.js.Publish(ctx, messages.EventSubject(testZone, testHost, "other", "x"), nil, jetstream.WithMsgID(final.MsgID()))
		return err == nil && !ack.Duplicate
	})
	mustEvent(t, b, final)
	if n := countStored(t, b, messages.EventStream, messages.EventSubject(testZone, testHost, "job", "*")); n != 1 {
		t.Errorf("stored %d times", n)
	}
}

func mustUpdate(t testing.TB, w *Watch) Update {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	u, err := w.Next(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return u
}
