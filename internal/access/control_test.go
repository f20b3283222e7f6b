package access_test

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/oklog/ulid/v2"

	"github.com/nasfleet/nasfleet/internal/bus"
	"github.com/nasfleet/nasfleet/messages"
)

// TestControl: with nothing but a host's rights its worker hears the publisher, looks its own command
// up, stores what it did and answers. A host that nobody serves is told as absent, or is silent.
func TestControl(t *testing.T) {
	forBoth(t, func(t *testing.T, f *testFleet) {
		ctx, b := t.Context(), f.worker("a")
		cmd := &messages.TakeBackup{
			Header:     messages.Header{Version: messages.Version, Type: messages.TypeTake, JobID: ulid.Make().String(), IssuedAt: time.Now()},
			VM:         "web",
			Repository: messages.Repository{Type: messages.RepositoryDir, Address: "/srv"},
		}
		if _, err := f.publish.Publish(ctx, zone, "a", cmd); err != nil {
			t.Fatal(err)
		}
		stop, err := b.ServeControl(zone, "a", func(ctx context.Context, m bus.ControlMessage) messages.ControlReply {
			reply := messages.ControlReply{Version: messages.Version, JobID: m.JobID, Reply: messages.ReplyCancelled}
			if data, err := b.Command(ctx, zone, "a", m.JobID); err != nil || len(data) == 0 {
				t.Errorf("its own command: %v", err)
			}
			if err := b.PublishEvent(ctx, messages.Cancelled(zone, "a", cmd, 0, messages.Errorf(messages.CodeCancelled, "asked"))); err != nil {
				t.Error(err)
			}
			return reply
		})
		if err != nil {
			t.Fatal(err)
		}
		defer stop()
		// The server hears of the subscription in its own time.
		var got messages.ControlReply
		for err = bus.ErrAbsent; errors.Is(err, bus.ErrAbsent) && ctx.Err() == nil; {
			got, err = f.publish.Control(ctx, zone, "a", messages.NewControlRequest(messages.ActionCancel, cmd.JobID))
		}
		if err != nil || got.Reply != messages.ReplyCancelled {
			t.Errorf("%+v, %v", got, err)
		}
		if final, err := f.publish.FinalEvent(ctx, zone, "a", cmd.JobID); err != nil || final.Kind != messages.KindCancelled {
			t.Errorf("%+v, %v", final, err)
		}
		short, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		_, err = f.publish.Control(short, zone, "b", messages.NewControlRequest(messages.ActionCancel, cmd.JobID))
		if !errors.Is(err, bus.ErrAbsent) && !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("nobody serves b: %v", err)
		}
		t.Logf("nobody serves b: %v", err)
	})
}
