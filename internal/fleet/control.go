package fleet

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nasfleet/nasfleet/internal/bus"
	"github.com/nasfleet/nasfleet/messages"
)

// endPatience is how long the end of a job is waited for that was told to end. It is to take
// seconds; a repository that hangs is waited for until it is given up.
const endPatience = time.Minute

// absentPatience is how long a host is asked that is not announced.
const absentPatience = 3 * time.Second

// JobAddress names a job to change.
type JobAddress struct {
	ID string `arg:"" name:"job" help:"The job's id, as jobs prints it."`
	// Zone and Host are only needed where several have a job of that id; "" is any.
	Zone string `help:"Zone of the job, where several have one of that id." placeholder:"ZONE"`
	Host string `help:"Host of the job, where several have one of that id." placeholder:"HOST"`
}

// Cancel ends a job, whether it waits or runs, and returns its cancelled event when that is stored.
// A job that is over, that ended otherwise before it could be stopped, or that had begun on a host
// that is not connected is an error of class Failed; one that nobody knows of class NotFound.
func (m *Manager) Cancel(ctx context.Context, a JobAddress) (messages.Event, error) {
	r, err := m.jobToChange(ctx, a)
	if err != nil {
		return messages.Event{}, err
	}
	_, err = m.ask(ctx, r, messages.NewControlRequest(messages.ActionCancel, r.JobID))
	if errors.Is(err, bus.ErrAbsent) {
		return m.cancelUnaccepted(ctx, r)
	}
	if err != nil {
		return messages.Event{}, err
	}
	final, err := m.awaitEnd(ctx, r)
	if err == nil && final.Kind != messages.KindCancelled {
		err = &Error{
			Class: Failed, Err: fmt.Errorf("job %s came to an end before it could be cancelled: %s", r.JobID, final.Kind),
			Hint: "See it with publisher job " + r.JobID + ".",
		}
	}
	return final, err
}

// Throttle gives a job another bandwidth limit, in MiB/s; 0 is none. The reply is ReplyThrottled
// where it runs, and ReplyNoted where it waits and will run under the new limit.
func (m *Manager) Throttle(ctx context.Context, a JobAddress, mib int) (JobInfo, messages.Reply, error) {
	req := messages.NewControlRequest(messages.ActionThrottle, a.ID)
	req.BandwidthLimit = &mib
	if err := req.Validate(); err != nil {
		return JobInfo{}, "", refused(err)
	}
	r, err := m.jobToChange(ctx, a)
	if err != nil {
		return JobInfo{}, "", err
	}
	reply, err := m.ask(ctx, r, req)
	if errors.Is(err, bus.ErrAbsent) {
		err = &Error{
			Class: Failed, Err: fmt.Errorf("job %s keeps its limit: the worker of %s/%s is not connected", r.JobID, r.Zone, r.Host),
			Hint: "Only the host can change it: start its hostworker and ask again, or cancel the job and publish another.",
		}
	}
	return r.JobInfo, reply.Reply, err
}

// jobToChange looks up a job that has not ended.
func (m *Manager) jobToChange(ctx context.Context, a JobAddress) (*record, error) {
	if err := messages.CheckID("job id", a.ID); err != nil {
		return nil, refused(err)
	}
	h, err := m.readJobs(ctx, []string{a.ID}, a.Zone, a.Host)
	if err != nil {
		return nil, err
	}
	r, err := h.one(a.ID)
	if err != nil {
		return nil, err
	}
	switch {
	case r.State.Over():
		return nil, &Error{
			Class: Failed, Err: fmt.Errorf("job %s is over: %s at %s", r.JobID, r.State, r.endedAt.UTC().Format(time.RFC3339)),
			Hint: messages.CodeJobOver.Hint(),
		}
	case r.gone():
		return nil, &Error{Class: NotFound, Err: fmt.Errorf("job %s cannot be changed: %s", r.JobID, r.CommandError)}
	case r.cmd == nil:
		return nil, &Error{
			Class: Usage, Err: fmt.Errorf("job %s cannot be changed, its command is not readable: %s", r.JobID, r.CommandError),
			Hint: "Its host refuses the command, and does nothing.",
		}
	}
	return r, nil
}

// ask asks the job's host. bus.ErrAbsent says that nobody is there to ask: the server says so, or,
// where it stands between the accounts of a fleet and cannot, the host is not announced and silent.
func (m *Manager) ask(ctx context.Context, r *record, req messages.ControlRequest) (messages.ControlReply, error) {
	_, err := m.bus.Host(ctx, r.Zone, r.Host)
	announced := !errors.Is(err, bus.ErrNotFound)
	if announced && err != nil {
		return messages.ControlReply{}, err
	}
	limited := ctx
	if !announced {
		var cancel context.CancelFunc
		limited, cancel = context.WithTimeout(ctx, absentPatience)
		defer cancel()
	}
	reply, err := m.bus.Control(limited, r.Zone, r.Host, req)
	switch {
	case errors.Is(err, context.DeadlineExceeded) && !announced && ctx.Err() == nil && m.bus.Connected():
		return reply, fmt.Errorf("%s/%s is not announced and does not answer: %w", r.Zone, r.Host, bus.ErrAbsent)
	case errors.Is(err, context.DeadlineExceeded) && m.bus.Connected():
		return reply, &Error{
			Class: Failed, Err: fmt.Errorf("%s/%s does not answer, and nobody knows whether job %s was changed", r.Zone, r.Host, r.JobID),
			Hint: "Look at the host's hostworker; ask again: what is done already is not done twice.",
		}
	case err != nil:
		return reply, err
	case reply.Error != nil:
		class := Failed
		if reply.Error.Code == messages.CodeJobNotFound {
			class = NotFound
		}
		return reply, &Error{Class: class, Hint: reply.Error.Hint, Err: fmt.Errorf("%s/%s refuses: %s", r.Zone, r.Host, reply.Error.Message)}
	}
	return reply, nil
}

// cancelUnaccepted ends a job whose host is not connected, if it never began: when the host comes
// back it finds the job over.
func (m *Manager) cancelUnaccepted(ctx context.Context, r *record) (messages.Event, error) {
	e := messages.Cancelled(r.Zone, r.Host, r.cmd, 0, messages.Errorf(messages.CodeCancelled, "it was cancelled on request, before its host had begun"))
	err := m.bus.PublishUnaccepted(ctx, e)
	if !errors.Is(err, bus.ErrAccepted) {
		return e, err
	}
	return messages.Event{}, &Error{
		Class: Failed, Err: fmt.Errorf("job %s has begun on %s/%s, whose worker is not connected", r.JobID, r.Zone, r.Host),
		Hint: "Only the host can end it and clean up: start its hostworker and ask again.",
	}
}

// awaitEnd waits for the job's final event.
func (m *Manager) awaitEnd(ctx context.Context, r *record) (messages.Event, error) {
	errLate := &Error{
		Class: Failed, Err: fmt.Errorf("job %s was told to end, and has not ended in %s", r.JobID, endPatience),
		Hint: "Follow it with publisher watch --job " + r.JobID + ".",
	}
	ctx, cancel := context.WithTimeoutCause(ctx, endPatience, errLate)
	defer cancel()
	var final messages.Event
	err := m.bus.Follow(ctx, bus.Filter{Zone: r.Zone, Host: r.Host, Job: r.JobID, History: true}, func(u bus.Update) error {
		if u.Event == nil || !u.Event.Kind.Final() {
			return nil
		}
		final = *u.Event
		return errOver
	})
	switch {
	case errors.Is(err, errOver):
		return final, nil
	case errors.Is(context.Cause(ctx), errLate):
		return final, errLate
	}
	return final, err
}
