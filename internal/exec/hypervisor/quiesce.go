package hypervisor

import (
	"context"
	"errors"
	"time"

	"github.com/rs/zerolog"
	"libvirt.org/go/libvirt"

	"github.com/nasfleet/nasfleet/messages"
)

// agentTimeout bounds each answer of the guest agent (seconds). libvirt's default is to wait without end.
const agentTimeout = 15

// thawAttempts is how often a thaw is tried.
const thawAttempts = 3

// agent is what a domain offers of its guest's agent.
type agent interface {
	AgentSetResponseTimeout(seconds int, flags uint32) error
	FSFreeze(mounts []string, flags uint32) error
	FSThaw(mounts []string, flags uint32) error
}

// freezer holds a guest's file systems still.
type freezer struct {
	agent agent
	log   zerolog.Logger
}

// around runs begin, with the guest's file systems frozen if that is wished and possible. They are
// thawed when it returns, whatever has happened, and begin is left out when ctx has ended.
func (f freezer) around(ctx context.Context, wish messages.Quiesce, state State, begin func() error) (Begun, error) {
	unlessEnded := func() error {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		return begin()
	}
	if wish != messages.QuiesceBestEffort && wish != messages.QuiesceRequired {
		return Begun{}, unlessEnded()
	}
	started := time.Now()
	if err := f.freeze(state); err != nil {
		if wish == messages.QuiesceRequired {
			return Begun{}, messages.Errorf(messages.CodeFreezeFailed, "freeze the guest's file systems: %w", err)
		}
		return Begun{Note: "the guest's file systems were not frozen: " + err.Error()}, unlessEnded()
	}
	err := unlessEnded()
	begun := Begun{Quiesced: true}
	if thawErr := f.thaw(); thawErr != nil {
		f.log.Error().Err(thawErr).Msg("the guest's file systems may still be frozen")
		begun.Note = "the guest's file systems may still be frozen (virsh domfsthaw): " + thawErr.Error()
	}
	begun.Frozen = time.Since(started)
	return begun, err
}

// freeze freezes the guest's file systems, or leaves them thawed and says why.
func (f freezer) freeze(state State) error {
	if state != Running {
		return errors.New("the VM is paused")
	}
	if err := f.agent.AgentSetResponseTimeout(agentTimeout, 0); err != nil {
		return plain(err)
	}
	err := f.agent.FSFreeze(nil, 0)
	if err == nil {
		return nil
	}
	// The answer may be what failed, and the freeze not. Without an agent this fails at once.
	if thawErr := f.agent.FSThaw(nil, 0); thawErr != nil {
		f.log.Debug().Err(plain(thawErr)).Msg("thaw after a failed freeze")
	}
	f.resetTimeout()
	return plain(err)
}

func (f freezer) thaw() error {
	defer f.resetTimeout()
	var err error
	for range thawAttempts {
		if err = f.agent.FSThaw(nil, 0); err == nil {
			return nil
		}
	}
	return plain(err)
}

// resetTimeout gives the agent's timeout libvirt's default again: it lasts as long as the domain,
// and others use the agent too.
func (f freezer) resetTimeout() {
	if err := f.agent.AgentSetResponseTimeout(int(libvirt.DOMAIN_AGENT_RESPONSE_TIMEOUT_BLOCK), 0); err != nil {
		f.log.Debug().Err(plain(err)).Msg("reset the agent's timeout")
	}
}
