package bus

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/nasfleet/nasfleet/messages"
	"github.com/oklog/ulid/v2"
)

func cancelRequest(job string) messages.ControlRequest {
	return messages.NewControlRequest(messages.ActionCancel, job)
}

func answerWith(r messages.Reply) Answerer {
	return func(_ context.Context, req ControlMessage) messages.ControlReply {
		return messages.ControlReply{Version: messages.Version, JobID: req.JobID, Reply: r}
	}
}

// serve answers for the test's host until the test ends.
func serve(t *testing.T, b *Bus, answer Answerer) {
	t.Helper()
	stop, err := b.ServeControl(testZone, testHost, answer)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(stop)
}

func TestControl(t *testing.T) {
	t.Parallel()
	sign := func(subject string, data []byte) (string, error) { return "signed " + subject + string(data), nil }
	b, ctx, job := newBus(t, Config{Sign: sign}), t.Context(), ulid.Make().String()
	if _, err := b.Control(ctx, testZone, testHost, cancelRequest(job)); !errors.Is(err, ErrAbsent) || Hint(err) == "" {
		t.Errorf("nobody serves: %v", err)
	}
	limit := 12
	want := messages.NewControlRequest(messages.ActionThrottle, job)
	want.BandwidthLimit = &limit
	serve(t, b, func(ctx context.Context, got ControlMessage) messages.ControlReply {
		if diff := cmp.Diff(want, got.ControlRequest); diff != "" {
			t.Error(diff)
		}
		if want, _ := sign(messages.ControlSubject(testZone, testHost), got.Data); got.Signature != want || got.Subject != messages.ControlSubject(testZone, testHost) {
			t.Errorf("signature %q on %s", got.Signature, got.Subject)
		}
		if _, ok := ctx.Deadline(); !ok {
			t.Error("an answer may take forever")
		}
		return answerWith(messages.ReplyThrottled)(ctx, got)
	})
	got, err := b.Control(ctx, testZone, testHost, want)
	if err != nil || got.Reply != messages.ReplyThrottled || got.JobID != job {
		t.Errorf("%+v, %v", got, err)
	}
	if _, err := b.Control(ctx, testZone, "host-2", want); !errors.Is(err, ErrAbsent) {
		t.Errorf("another host: %v", err)
	}
	if _, err := b.Control(ctx, testZone, testHost, cancelRequest("job")); messages.CodeOf(err) != messages.CodeInvalidMessage {
		t.Errorf("a bad request was sent: %v", err)
	}
}

func TestControlRefusesWhatItCannotRead(t *testing.T) {
	t.Parallel()
	b, job := newBus(t, Config{}), ulid.Make().String()
	serve(t, b, func(context.Context, ControlMessage) messages.ControlReply {
		t.Error("it was asked")
		return messages.ControlReply{}
	})
	for _, data := range []string{"", "hello", `{"version":1,"action":"cancel"}`, `{"version":1,"action":"cancel","job_id":"` + job + `","force":true}`} {
		m, err := b.nc.Request(messages.ControlSubject(testZone, testHost), []byte(data), 10*time.Second)
		if err != nil {
			t.Fatal(err)
		}
		req := messages.ControlRequest{}
		if strings.Contains(data, job) {
			req.JobID = job
		}
		r, err := messages.DecodeControlReply(req, m.Data)
		if err != nil || r.Reply != messages.ReplyRefused || r.Error.Code != messages.CodeInvalidMessage {
			t.Errorf("%q: %s, %v", data, m.Data, err)
		}
	}
}

// TestControlStops: stop waits for the answers under way, whose context ends.
func TestControlStops(t *testing.T) {
	t.Parallel()
	b := newBus(t, Config{})
	asked, ended := make(chan struct{}), false
	stop, err := b.ServeControl(testZone, testHost, func(ctx context.Context, r ControlMessage) messages.ControlReply {
		close(asked)
		<-ctx.Done()
		ended = true
		return answerWith(messages.ReplyCancelled)(ctx, r)
	})
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() { _, _ = b.Control(t.Context(), testZone, testHost, cancelRequest(ulid.Make().String())) })
	<-asked
	stop()
	if !ended {
		t.Error("stop did not wait for the answer")
	}
	wg.Wait()
	if _, err := b.Control(t.Context(), testZone, testHost, cancelRequest(ulid.Make().String())); !errors.Is(err, ErrAbsent) {
		t.Errorf("after stop: %v", err)
	}
}

// TestAcceptedOrCancelled: of a host that begins a job and a management side that cancels it, one wins.
func TestAcceptedOrCancelled(t *testing.T) {
	t.Parallel()
	b, ctx := newBus(t, Config{}), t.Context()
	for range 50 {
		job := ulid.Make().String()
		var accepted, cancelled error
		var wg sync.WaitGroup
		wg.Go(func() { accepted = b.PublishAccepted(ctx, newEvent(job, messages.KindAccepted, 1)) })
		wg.Go(func() { cancelled = b.PublishUnaccepted(ctx, newEvent(job, messages.KindCancelled, 0)) })
		wg.Wait()
		hostWon := accepted == nil && errors.Is(cancelled, ErrAccepted)
		otherWon := cancelled == nil && errors.Is(accepted, ErrCancelled)
		if !hostWon && !otherWon {
			t.Fatalf("accepted: %v, cancelled: %v", accepted, cancelled)
		}
		if events, err := b.JobEvents(ctx, testZone, testHost, job); err != nil || len(events) != 1 {
			t.Fatalf("%v, %v", events, err)
		}
		// Whoever won may say it again, and says it once; a job that was begun has other attempts.
		if accepted == nil {
			accepted = errors.Join(b.PublishAccepted(ctx, newEvent(job, messages.KindAccepted, 1)), b.PublishAccepted(ctx, newEvent(job, messages.KindAccepted, 2)))
		} else {
			cancelled = b.PublishUnaccepted(ctx, newEvent(job, messages.KindCancelled, 0))
		}
		if accepted != nil && cancelled != nil {
			t.Fatalf("again: %v, %v", accepted, cancelled)
		}
	}
}

func TestConditionalEventsHaveTheirKind(t *testing.T) {
	t.Parallel()
	b, job := newBus(t, Config{}), ulid.Make().String()
	if err := b.PublishAccepted(t.Context(), newEvent(job, messages.KindFailed, 1)); !errors.Is(err, ErrConflict) {
		t.Error(err)
	}
	if err := b.PublishUnaccepted(t.Context(), newEvent(job, messages.KindSucceeded, 1)); !errors.Is(err, ErrConflict) {
		t.Error(err)
	}
}
