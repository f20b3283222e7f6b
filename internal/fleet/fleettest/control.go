package fleettest

import (
	"context"
	"errors"
	"sync"

	"github.com/nasfleet/nasfleet/internal/bus"
	"github.com/nasfleet/nasfleet/messages"
)

// hanging are the jobs of a host that go on until somebody cancels them.
type hanging struct {
	mu   sync.Mutex
	byID map[string]*hung
}

type hung struct {
	cmd    messages.Command
	cancel context.CancelFunc
	limit  int
}

func (h *hanging) add(cmd messages.Command, cancel context.CancelFunc) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.byID[cmd.Head().JobID] = &hung{cmd: cmd, cancel: cancel}
}

func (h *hanging) get(id string) *hung {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.byID[id]
}

func (h *hanging) remove(id string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.byID, id)
}

// control answers a control request as a host does whose jobs all run, or are over.
func (h *answerer) control(ctx context.Context, r bus.ControlMessage) messages.ControlReply {
	reply, err := h.change(ctx, r.ControlRequest)
	if err != nil {
		reply = messages.ReplyRefused
	}
	return messages.ControlReply{Version: messages.Version, JobID: r.JobID, Reply: reply, Error: messages.FailureOf(err)}
}

func (h *answerer) change(ctx context.Context, r messages.ControlRequest) (messages.Reply, error) {
	job := h.hanging.get(r.JobID)
	if job == nil {
		final, err := h.f.Bus.FinalEvent(ctx, h.zone, h.host, r.JobID)
		if errors.Is(err, bus.ErrNotFound) {
			return "", messages.Errorf(messages.CodeJobNotFound, "no job %s", r.JobID)
		}
		if err != nil {
			return "", err
		}
		return "", messages.Errorf(messages.CodeJobOver, "job %s is over: %s", r.JobID, final.Kind)
	}
	if r.Action == messages.ActionCancel {
		job.cancel()
		return messages.ReplyCancelling, nil
	}
	change := &messages.Throttle{From: job.limit, To: *r.BandwidthLimit}
	job.limit = *r.BandwidthLimit
	return messages.ReplyThrottled, h.event(job.cmd, messages.KindThrottled, 1, func(e *messages.Event) { e.Throttled = change })
}
