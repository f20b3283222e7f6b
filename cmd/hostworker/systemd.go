package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/rs/zerolog"
)

// statusEvery is how often systemd is told what the worker does, where no watchdog asks for more.
const statusEvery = 5 * time.Second

// supervisor tells systemd how the worker is (sd_notify(3)): that it is ready, what it does, that it
// lives, that it stops. Where NOTIFY_SOCKET is not set it tells nobody. A nil one tells nobody either.
type supervisor struct {
	log zerolog.Logger
	// watchdog is how often systemd wants a sign of life; 0 for never.
	watchdog time.Duration
	slots    int

	mu       sync.Mutex
	ready    bool
	stopping bool
}

func newSupervisor(slots int, log zerolog.Logger) *supervisor {
	watchdog, err := daemon.SdWatchdogEnabled(false)
	if err != nil {
		log.Warn().Err(err).Msg("systemd's watchdog is not served")
	}
	return &supervisor{log: log, watchdog: watchdog, slots: slots}
}

// waits says that the worker is up and waits for something. For systemd it is ready then: a boot
// must not wait for NATS, and no restart brings it.
func (s *supervisor) waits(what string) {
	if s != nil {
		s.tell("waits for "+what, true)
	}
}

// tell sends a status, and with it that the worker is ready, once, and that it lives.
func (s *supervisor) tell(status string, alive bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	lines := []string{"STATUS=" + status}
	if !s.ready && alive {
		s.ready = true
		lines = append(lines, daemon.SdNotifyReady)
	}
	if alive && s.watchdog > 0 {
		lines = append(lines, daemon.SdNotifyWatchdog)
	}
	s.send(lines...)
}

// stop says that the worker stops. It may be called again.
func (s *supervisor) stop() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.stopping {
		s.stopping = true
		s.send(daemon.SdNotifyStopping, "STATUS=stops")
	}
}

func (s *supervisor) send(lines ...string) {
	if _, err := daemon.SdNotify(false, strings.Join(lines, "\n")); err != nil {
		s.log.Warn().Err(err).Msg("tell systemd")
	}
}

// follow tells what the worker does until the function that it returns is called, and from ctx's
// end on that it stops. pulse returns the jobs at work by way of the worker's main loop: systemd
// hears a sign of life only where that answers.
func (s *supervisor) follow(ctx context.Context, pulse func(context.Context) ([]string, error)) (end func()) {
	every := statusEvery
	if s.watchdog > 0 {
		every = min(every, s.watchdog/4)
	}
	following, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() {
		tick := time.NewTicker(every)
		defer tick.Stop()
		stopped := ctx.Done()
		for {
			s.look(following, ctx.Err() != nil, every, pulse)
			select {
			case <-tick.C:
			case <-stopped:
				stopped = nil
				s.stop()
			case <-following.Done():
				return
			}
		}
	})
	return func() { s.stop(); cancel(); wg.Wait() }
}

func (s *supervisor) look(ctx context.Context, stopping bool, patience time.Duration, pulse func(context.Context) ([]string, error)) {
	limited, cancel := context.WithTimeoutCause(ctx, patience, errors.New("no answer in time"))
	defer cancel()
	jobs, err := pulse(limited)
	switch {
	case ctx.Err() != nil:
	case err != nil:
		s.log.Error().Err(err).Msg("the watchdog is not told that the worker lives")
		s.tell("hangs: "+err.Error(), false)
	default:
		s.tell(s.status(stopping, jobs), true)
	}
}

// status tells in a line what the worker does.
func (s *supervisor) status(stopping bool, jobs []string) string {
	doing := "takes commands"
	if stopping {
		doing = "stops"
	}
	if len(jobs) == 0 {
		return doing + "; no job at work"
	}
	return fmt.Sprintf("%s; %d of %d jobs at work: %s", doing, len(jobs), s.slots, strings.Join(jobs, " "))
}
