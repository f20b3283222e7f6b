package main

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"

	"github.com/nasfleet/nasfleet/internal/bus"
)

const (
	// tryTimeout bounds one try to reach what the worker waits for. NATS does not answer a
	// request that it denies; bus can tell that from other silence for ten seconds.
	tryTimeout = 5 * time.Second
	// tryPause lies between two tries.
	tryPause = time.Second
)

// startup waits for what the worker cannot work without: hosts, NATS and libvirt boot in any order.
type startup struct {
	log     zerolog.Logger
	systemd *supervisor
	state   atomic.Value // string: why the worker does not work yet; "" when it does
}

func newStartup(systemd *supervisor, log zerolog.Logger) *startup {
	s := &startup{log: log, systemd: systemd}
	s.state.Store("starting")
	return s
}

func (s *startup) done() { s.state.Store("") }

// health returns a function that says why the worker cannot work right now, or "".
func (s *startup) health(b *bus.Bus) func() string {
	return func() string {
		if state, _ := s.state.Load().(string); state != "" {
			return state
		}
		if !b.Connected() {
			return "no connection to NATS"
		}
		return ""
	}
}

// await tries until it succeeds, fails for another reason than that what it tries to reach is
// absent, or ctx ends; then the error is ctx's.
func (s *startup) await(ctx context.Context, what string, absent func(error) bool, try func(context.Context) error) error {
	warned := ""
	for {
		err := s.try(ctx, try)
		if ctx.Err() != nil {
			return fmt.Errorf("stopped while waiting for %s: %w", what, ctx.Err())
		}
		if err == nil && warned != "" {
			s.log.Info().Msg(what + " is there")
		}
		if err == nil || !absent(err) {
			return err
		}
		s.state.Store("waits for " + what)
		s.systemd.waits(what)
		if text := err.Error(); text != warned { // each reason once
			warned = text
			s.log.Warn().Err(err).Str("hint", hint(err)).Msg("waits for " + what)
		}
		select {
		case <-time.After(tryPause):
		case <-ctx.Done():
		}
	}
}

func (s *startup) try(ctx context.Context, try func(context.Context) error) error {
	ctx, cancel := context.WithTimeoutCause(ctx, tryTimeout, errors.New("no answer in time"))
	defer cancel()
	return try(ctx)
}
