package hypervisor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/rs/zerolog"
	"libvirt.org/go/libvirt"

	"github.com/nasfleet/nasfleet/messages"
)

// How long the guest agent has to answer (seconds). libvirt's default is to wait without end, and
// five seconds once the agent has failed to answer.
const (
	lookTimeout   = 10
	freezeTimeout = 15
)

// thawAttempts is how often a thaw is tried before the job goes on and leaves it to the watchdog.
const thawAttempts = 3

// errTooLate says that the backup is not of a frozen guest after all.
var errTooLate = errors.New("the backup took so long to begin that the watchdog had thawed them by then")

// agent is what a domain offers of its guest's agent.
type agent interface {
	AgentSetResponseTimeout(seconds int, flags uint32) error
	GetHostname(libvirt.DomainGetHostnameFlags) (string, error)
	QemuAgentCommand(command string, timeout libvirt.DomainQemuAgentCommandTimeout, flags uint32) (string, error)
	FSFreeze(mounts []string, flags uint32) error
	FSThaw(mounts []string, flags uint32) error
}

// guard thaws the guest when the worker cannot: see Watchdog.
type guard interface {
	// frozen tells it that the freeze succeeded.
	frozen()
	// fired says whether it has begun to thaw.
	fired() bool
	// done ends it: the guest is not frozen any more.
	done()
	// takeOver leaves the thaw to it.
	takeOver()
}

// freezer holds a guest's file systems still.
type freezer struct {
	agent agent
	// guard starts one; it is not nil.
	guard func(context.Context) (guard, error)
	log   zerolog.Logger
}

// around runs begin, with the guest's file systems frozen if that is wished and possible. They are
// thawed when it returns, whatever has happened, or the guard is at it. begin is left out when ctx
// has ended. After an error begin may have succeeded.
func (f freezer) around(ctx context.Context, wish messages.Quiesce, state State, begin func() error) (Begun, error) {
	if wish != messages.QuiesceBestEffort && wish != messages.QuiesceRequired {
		return f.unfrozen(ctx, "", begin)
	}
	refuse := func(err error) (Begun, error) {
		if wish == messages.QuiesceRequired {
			return Begun{}, messages.Errorf(messages.CodeFreezeFailed, "freeze the guest's file systems: %w", err)
		}
		return f.unfrozen(ctx, "the guest's file systems were not frozen: "+err.Error(), begin)
	}
	if state != Running {
		return refuse(errors.New("the VM is paused"))
	}
	if err := f.checkThawed(); err != nil {
		return refuse(err)
	}
	g, err := f.guard(ctx)
	if err != nil {
		f.resetTimeout()
		return refuse(err)
	}
	started, err := f.freeze(g)
	if err != nil {
		return refuse(err)
	}
	begun, err := f.frozen(ctx, g, started, begin)
	if err != nil || begun.Quiesced {
		return begun, err
	}
	if wish == messages.QuiesceRequired {
		return Begun{}, messages.Errorf(messages.CodeFreezeFailed, "keep the guest's file systems frozen: %w", errTooLate)
	}
	begun.Frozen, begun.Note = 0, "the guest's file systems were not frozen: "+errTooLate.Error()
	return begun, nil
}

// frozen runs begin in a guest that has been frozen since started, and thaws it.
func (f freezer) frozen(ctx context.Context, g guard, started time.Time, begin func() error) (Begun, error) {
	froze := time.Since(started)
	begun, err := f.unfrozen(ctx, "", begin)
	begun.Quiesced = !g.fired()
	began := time.Since(started)
	thawErr := f.thaw()
	begun.Frozen = time.Since(started)
	f.log.Debug().Dur("freeze_ms", froze).Dur("begin_ms", began-froze).Dur("thaw_ms", begun.Frozen-began).Msg("the guest was frozen")
	f.resetTimeout()
	if thawErr == nil {
		g.done()
		return begun, err
	}
	g.takeOver()
	f.log.Error().Err(thawErr).Msg("the guest's file systems may still be frozen; the watchdog goes on trying")
	begun.Note = "the guest's file systems may still be frozen: " + thawErr.Error()
	return begun, err
}

// unfrozen runs begin unless ctx has ended.
func (f freezer) unfrozen(ctx context.Context, note string, begin func() error) (Begun, error) {
	if ctx.Err() != nil {
		return Begun{}, context.Cause(ctx)
	}
	begun := Begun{At: time.Now(), Note: note}
	return begun, begin()
}

// checkThawed makes sure that the agent answers, and that nobody has frozen the guest: a freeze that
// is found later is then ours to undo.
func (f freezer) checkThawed() error {
	if err := f.agent.AgentSetResponseTimeout(lookTimeout, 0); err != nil {
		return plain(err)
	}
	// In a frozen guest the agent answers nothing but a few commands, and its host's name is not one
	// of them. Its status is asked only if need be, because libvirt notes down for good that the VM
	// was sent a command of somebody's own (it is "tainted").
	if _, err := f.agent.GetHostname(libvirt.DOMAIN_GET_HOSTNAME_AGENT); err == nil {
		return nil
	}
	frozen, err := isFrozen(f.agent)
	if err == nil && frozen {
		err = errors.New("they are frozen already, by somebody else")
	}
	if err != nil {
		f.resetTimeout()
	}
	return plain(err)
}

// isFrozen asks the agent whether file systems are frozen. It does so in bounded time.
func isFrozen(a agent) (bool, error) {
	answer, err := a.QemuAgentCommand(`{"execute":"guest-fsfreeze-status"}`, lookTimeout, 0)
	if err != nil {
		return false, err
	}
	var status struct {
		Return string `json:"return"`
	}
	if err := json.Unmarshal([]byte(answer), &status); err != nil {
		return false, fmt.Errorf("read the agent's answer: %w", err)
	}
	switch status.Return {
	case "frozen":
		return true, nil
	case "thawed":
		return false, nil
	}
	return false, fmt.Errorf("the agent says %q of its file systems", status.Return)
}

// freeze freezes the guest's file systems, and says since when they may be. When it fails the guard
// is at work or has ended.
func (f freezer) freeze(g guard) (time.Time, error) {
	err := f.agent.AgentSetResponseTimeout(freezeTimeout, 0)
	if err != nil {
		g.done()
		return time.Time{}, plain(err)
	}
	started := time.Now()
	if err = f.agent.FSFreeze(nil, 0); err == nil {
		g.frozen()
		return started, nil
	}
	f.resetTimeout()
	if is(err, libvirt.ERR_INTERNAL_ERROR, libvirt.ERR_AGENT_COMMAND_FAILED) {
		// The agent refused, and has thawed what it may have frozen by then.
		g.done()
	} else {
		// Nobody has answered: the agent may freeze the guest yet.
		g.takeOver()
	}
	return time.Time{}, plain(err)
}

func (f freezer) thaw() error {
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
