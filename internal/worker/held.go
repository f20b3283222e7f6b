package worker

import (
	"context"
	"sync"
	"time"
)

// held is the latest delivery of a command.
type held struct {
	mu sync.Mutex
	d  Delivery
}

func newHeld(d Delivery) *held { return &held{d: d} }

func (h *held) latest() Delivery {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.d
}

func (h *held) replace(by *held) {
	d := by.latest()
	h.mu.Lock()
	defer h.mu.Unlock()
	h.d = d
}

func (h *held) extend() error                 { return h.latest().Extend() }
func (h *held) ack(ctx context.Context) error { return h.latest().Ack(ctx) }
func (h *held) retry(d time.Duration) error   { return h.latest().Retry(d) }
func (h *held) giveBack() error               { return h.latest().Return() }
func (h *held) term(reason string) error      { return h.latest().Term(reason) }
