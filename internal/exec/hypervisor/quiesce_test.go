package hypervisor

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"

	"github.com/rs/zerolog"
	"libvirt.org/go/libvirt"

	"github.com/nasfleet/nasfleet/messages"
)

// script plays a guest's agent: it notes what it is asked and fails as told.
type script struct {
	calls              []string
	freezeErr, thawErr error
	// thawFails is how many thaws fail.
	thawFails int
}

func (s *script) AgentSetResponseTimeout(seconds int, _ uint32) error {
	if seconds == agentTimeout {
		s.calls = append(s.calls, "timeout")
	} else if seconds == int(libvirt.DOMAIN_AGENT_RESPONSE_TIMEOUT_BLOCK) {
		s.calls = append(s.calls, "reset")
	}
	return nil
}

func (s *script) FSFreeze([]string, uint32) error {
	s.calls = append(s.calls, "freeze")
	return s.freezeErr
}

func (s *script) FSThaw([]string, uint32) error {
	s.calls = append(s.calls, "thaw")
	if s.thawFails > 0 {
		s.thawFails--
		return s.thawErr
	}
	return nil
}

func TestQuiesce(t *testing.T) {
	hung := libvirt.Error{Code: libvirt.ERR_AGENT_COMMAND_TIMEOUT, Message: "the agent is late"}
	refused := errors.New("no backup today")
	for name, c := range map[string]struct {
		agent    script
		wish     messages.Quiesce
		state    State
		ended    bool
		beginErr error

		calls    string
		quiesced bool
		note     string
		err      string
		code     messages.Code
	}{
		"off":               {wish: messages.QuiesceOff, state: Running, calls: "begin"},
		"not said":          {state: Running, calls: "begin"},
		"frozen":            {wish: messages.QuiesceRequired, state: Running, calls: "timeout freeze begin thaw reset", quiesced: true},
		"paused":            {wish: messages.QuiesceBestEffort, state: Paused, calls: "begin", note: "paused"},
		"paused, required":  {wish: messages.QuiesceRequired, state: Paused, err: "paused", code: messages.CodeFreezeFailed},
		"no freeze":         {agent: script{freezeErr: hung}, wish: messages.QuiesceBestEffort, state: Running, calls: "timeout freeze thaw reset begin", note: "late"},
		"no freeze, needed": {agent: script{freezeErr: hung}, wish: messages.QuiesceRequired, state: Running, calls: "timeout freeze thaw reset", err: "late", code: messages.CodeFreezeFailed},
		"begin fails": {wish: messages.QuiesceRequired, state: Running, beginErr: refused,
			calls: "timeout freeze begin thaw reset", quiesced: true, err: "no backup today", code: messages.CodeInternal},
		"ended while freezing": {wish: messages.QuiesceRequired, state: Running, ended: true,
			calls: "timeout freeze thaw reset", quiesced: true, err: "given up", code: messages.CodeInternal},
		"thaw works later": {agent: script{thawErr: hung, thawFails: 2}, wish: messages.QuiesceBestEffort, state: Running,
			calls: "timeout freeze begin thaw thaw thaw reset", quiesced: true},
		"thaw never works": {agent: script{thawErr: hung, thawFails: 9}, wish: messages.QuiesceBestEffort, state: Running,
			calls: "timeout freeze begin thaw thaw thaw reset", quiesced: true, note: "may still be frozen"},
	} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithCancelCause(t.Context())
			defer cancel(nil)
			if c.ended {
				cancel(errGiveUp)
			}
			f := freezer{agent: &c.agent, log: zerolog.Nop()}
			begun, err := f.around(ctx, c.wish, c.state, func() error {
				c.agent.calls = append(c.agent.calls, "begin")
				return c.beginErr
			})
			if !slices.Equal(c.agent.calls, strings.Fields(c.calls)) {
				t.Errorf("the calls were %q, not %q", c.agent.calls, c.calls)
			}
			if begun.Quiesced != c.quiesced || c.quiesced != (begun.Frozen > 0) {
				t.Errorf("quiesced %v, frozen %v", begun.Quiesced, begun.Frozen)
			}
			if !strings.Contains(begun.Note, c.note) || c.note == "" && begun.Note != "" {
				t.Errorf("the note is %q", begun.Note)
			}
			if (err == nil) != (c.err == "") || err != nil && !strings.Contains(err.Error(), c.err) {
				t.Errorf("the error is %v", err)
			}
			wantCode(t, err, c.code)
		})
	}
}
