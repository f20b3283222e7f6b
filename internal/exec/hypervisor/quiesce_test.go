package hypervisor

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"libvirt.org/go/libvirt"

	"github.com/nasfleet/nasfleet/messages"
)

// script plays a guest's agent and the watchdog: it notes what it is asked and fails as told.
type script struct {
	calls []string
	// frozenBefore says that somebody else has frozen the guest; mute, that the agent never answers.
	frozenBefore, mute bool
	// noHostname says that the agent was told not to tell its host's name.
	noHostname          bool
	freezeErr, thawErr  error
	guardErr            error
	thawFails           int // how many thaws fail
	firedWhileBeginning bool
}

func (s *script) note(call string) { s.calls = append(s.calls, call) }

func (s *script) AgentSetResponseTimeout(seconds int, _ uint32) error {
	switch seconds {
	case lookTimeout:
		s.note("look")
	case freezeTimeout:
		s.note("timeout")
	case int(libvirt.DOMAIN_AGENT_RESPONSE_TIMEOUT_BLOCK):
		s.note("reset")
	}
	return nil
}

func (s *script) GetHostname(libvirt.DomainGetHostnameFlags) (string, error) {
	if s.frozenBefore || s.mute || s.noHostname {
		return "", libvirt.Error{Code: libvirt.ERR_NO_HOSTNAME, Message: "no hostname"}
	}
	return "guest", nil
}

func (s *script) QemuAgentCommand(command string, _ libvirt.DomainQemuAgentCommandTimeout, _ uint32) (string, error) {
	switch {
	case !strings.Contains(command, "guest-fsfreeze-status"):
		return "", errors.New("no such command")
	case s.mute:
		return "", libvirt.Error{Code: libvirt.ERR_AGENT_UNRESPONSIVE, Message: "the agent is mute"}
	case s.frozenBefore:
		return `{"return":"frozen"}`, nil
	}
	return `{"return":"thawed"}`, nil
}

func (s *script) FSFreeze([]string, uint32) error {
	s.note("freeze")
	return s.freezeErr
}

func (s *script) FSThaw([]string, uint32) error {
	s.note("thaw")
	if s.thawFails > 0 {
		s.thawFails--
		return s.thawErr
	}
	return nil
}

func (s *script) frozen()     { s.note("frozen") }
func (s *script) fired() bool { return s.firedWhileBeginning }
func (s *script) done()       { s.note("done") }
func (s *script) takeOver()   { s.note("takeover") }

func TestQuiesce(t *testing.T) {
	hung := libvirt.Error{Code: libvirt.ERR_AGENT_UNRESPONSIVE, Message: "the agent is late"}
	no := libvirt.Error{Code: libvirt.ERR_INTERNAL_ERROR, Message: "the agent says no"}
	refused := errors.New("no backup today")
	const frozen, best, required = "look guard timeout freeze frozen begin thaw reset done", messages.QuiesceBestEffort, messages.QuiesceRequired
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
		"off":              {wish: messages.QuiesceOff, state: Running, calls: "begin"},
		"not said":         {state: Running, calls: "begin"},
		"frozen":           {wish: required, state: Running, calls: frozen, quiesced: true},
		"no name, no harm": {agent: script{noHostname: true}, wish: required, state: Running, calls: frozen, quiesced: true},
		"paused":           {wish: best, state: Paused, calls: "begin", note: "paused"},
		"paused, required": {wish: required, state: Paused, err: "paused", code: messages.CodeFreezeFailed},

		// What somebody else has frozen is left frozen.
		"frozen by others":         {agent: script{frozenBefore: true}, wish: best, state: Running, calls: "look reset begin", note: "somebody else"},
		"frozen by others, needed": {agent: script{frozenBefore: true}, wish: required, state: Running, calls: "look reset", err: "somebody else", code: messages.CodeFreezeFailed},
		"mute":                     {agent: script{mute: true}, wish: best, state: Running, calls: "look reset begin", note: "mute"},
		"no watchdog":              {agent: script{guardErr: errors.New("no watchdog")}, wish: best, state: Running, calls: "look guard reset begin", note: "no watchdog"},

		// An agent that has not answered may freeze the guest yet: the watchdog stays.
		"no freeze":         {agent: script{freezeErr: hung}, wish: best, state: Running, calls: "look guard timeout freeze reset takeover begin", note: "late"},
		"no freeze, needed": {agent: script{freezeErr: hung}, wish: required, state: Running, calls: "look guard timeout freeze reset takeover", err: "late", code: messages.CodeFreezeFailed},
		"refused":           {agent: script{freezeErr: no}, wish: best, state: Running, calls: "look guard timeout freeze reset done begin", note: "says no"},

		"begin fails": {wish: required, state: Running, beginErr: refused,
			calls: frozen, quiesced: true, err: "no backup today", code: messages.CodeInternal},
		"ended while freezing": {wish: required, state: Running, ended: true,
			calls: "look guard timeout freeze frozen thaw reset done", quiesced: true, err: "given up", code: messages.CodeInternal},
		"thaw works later": {agent: script{thawErr: hung, thawFails: 2}, wish: best, state: Running,
			calls: "look guard timeout freeze frozen begin thaw thaw thaw reset done", quiesced: true},
		"thaw does not work": {agent: script{thawErr: hung, thawFails: 9}, wish: best, state: Running,
			calls: "look guard timeout freeze frozen begin thaw thaw thaw reset takeover", quiesced: true, note: "may still be frozen"},
		"thawed too early": {agent: script{firedWhileBeginning: true}, wish: best, state: Running, calls: frozen, note: "watchdog"},
		"thawed too early, needed": {agent: script{firedWhileBeginning: true}, wish: required, state: Running,
			calls: frozen, err: "watchdog", code: messages.CodeFreezeFailed},
	} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithCancelCause(t.Context())
			defer cancel(nil)
			if c.ended {
				cancel(errGiveUp)
			}
			const beginning = 20 * time.Millisecond
			f := freezer{agent: &c.agent, log: zerolog.Nop(), guard: func(context.Context) (guard, error) {
				c.agent.note("guard")
				return &c.agent, c.agent.guardErr
			}}
			called := time.Now()
			begun, err := f.around(ctx, c.wish, c.state, func() error {
				c.agent.note("begin")
				time.Sleep(beginning)
				return c.beginErr
			})
			took := time.Since(called)
			if !slices.Equal(c.agent.calls, strings.Fields(c.calls)) {
				t.Errorf("the calls were %q, not %q", c.agent.calls, c.calls)
			}
			if begun.Quiesced != c.quiesced || c.quiesced != (begun.Frozen > 0) {
				t.Errorf("quiesced %v, frozen %v", begun.Quiesced, begun.Frozen)
			}
			if c.quiesced && !c.ended && begun.Frozen < beginning || begun.Frozen > took {
				t.Errorf("frozen for %v; the backup took %v to begin and everything %v", begun.Frozen, beginning, took)
			}
			if begun.At.After(called.Add(took-beginning)) && !c.ended && c.err == "" {
				t.Errorf("the moment %v is after the backup had begun", begun.At)
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
