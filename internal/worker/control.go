package worker

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nasfleet/nasfleet/internal/exec"
	"github.com/nasfleet/nasfleet/messages"
)

// Request is a request to change a job, as it came.
type Request struct {
	messages.ControlRequest
	Subject, Signature string
	Data               []byte
}

// Control answers a request to change one of the host's jobs. A job that waits is changed in the
// journal and told so by an event; one that is at work is changed as it runs. ctx bounds the answer.
func (w *Worker) Control(ctx context.Context, req Request) messages.ControlReply {
	var reply messages.Reply
	err := w.verifyRequest(req)
	switch {
	case err != nil:
	case req.Action == messages.ActionCancel:
		reply, err = w.cancel(ctx, req.JobID)
	default:
		reply, err = w.throttle(ctx, req.JobID, *req.BandwidthLimit)
	}
	log := w.cfg.Log.Info()
	if err != nil {
		log, reply = w.cfg.Log.Warn().Err(err), messages.ReplyRefused
	}
	log.Str("job", req.JobID).Str("action", string(req.Action)).Str("reply", string(reply)).Msg("control request")
	return messages.ControlReply{Version: messages.Version, JobID: req.JobID, Reply: reply, Error: messages.FailureOf(err)}
}

// requestAge is how long a signed request is good for. Unlike a command it waits for nobody, and who
// has overheard one must not be able to send it again when it is no longer meant.
const requestAge = 10 * time.Minute

// verifyRequest holds a request against the publisher's key, as a command is.
func (w *Worker) verifyRequest(req Request) error {
	if w.cfg.Authority == nil {
		return nil
	}
	if err := w.cfg.Authority.Verify(req.Subject, req.Signature, req.Data); err != nil {
		return err
	}
	now := time.Now()
	if age := now.Sub(req.IssuedAt); age > requestAge {
		return messages.Errorf(messages.CodeCommandExpired, "the request was made %v ago, and is good for %v", age.Round(time.Second), requestAge)
	}
	return w.cfg.Authority.VerifyTime(req.IssuedAt, now)
}

// errCancelled is why a cancelled job ends.
func errCancelled() error {
	return messages.Errorf(messages.CodeCancelled, "it was cancelled on request")
}

func (w *Worker) cancel(ctx context.Context, id string) (messages.Reply, error) {
	return w.change(ctx, id, (*job).tell, func(j *job) (messages.Reply, error) {
		if err := w.out.PublishEvent(ctx, j.cancelled(errCancelled())); err != nil {
			return "", notStored(err)
		}
		if !j.rec.untidy() { // else what was left is still to be ended, when the command comes back
			w.journal.end(id)
		}
		return messages.ReplyCancelled, nil
	})
}

func (w *Worker) throttle(ctx context.Context, id string, mib int) (messages.Reply, error) {
	return w.change(ctx, id, func(j *job) (messages.Reply, error) { return j.throttle(ctx, mib) },
		func(j *job) (messages.Reply, error) {
			if err := j.throttleable(); err != nil {
				return "", err
			}
			if err := w.journal.limit(id, mib); err != nil {
				return "", fmt.Errorf("write the journal: %w", err)
			}
			if err := w.out.PublishEvent(ctx, j.throttled(j.limit, mib)); err != nil {
				return "", notStored(err)
			}
			return messages.ReplyNoted, nil
		})
}

func notStored(err error) error {
	return messages.Errorf(messages.CodeTimeout, "nobody knows whether the event was stored: %w", err).
		WithHint("Ask again: what is done already is not done twice.")
}

// errEnding says that a job's attempt is over, and what becomes of the job not known yet.
var errEnding = errors.New("the attempt is over")

// change changes a job: with running where it is at work, with waiting where it is not. What its
// attempt has come to is waited for where that is just being told.
func (w *Worker) change(ctx context.Context, id string, running, waiting func(*job) (messages.Reply, error)) (messages.Reply, error) {
	for {
		j, release, err := w.jobs.seize(ctx, id)
		if err != nil {
			return "", late(err)
		}
		if j == nil {
			defer release()
			if j, err = w.waiting(ctx, id); err != nil {
				return "", err
			}
			return waiting(j)
		}
		reply, err := running(j)
		if !errors.Is(err, errEnding) {
			return reply, err
		}
		select {
		case <-j.left:
		case <-ctx.Done():
			return "", late(context.Cause(ctx))
		}
		if j.final != "" { // not looked up: another server of a cluster may not know it yet
			return "", over(id, j.final)
		}
	}
}

func late(err error) error {
	return messages.Errorf(messages.CodeTimeout, "the job is about to end or to be changed: %w", err).WithHint("Ask again in a moment.")
}

// waiting looks a job up that is not at work: one that is over, or unknown, is an error.
func (w *Worker) waiting(ctx context.Context, id string) (*job, error) {
	data, err := w.out.Command(ctx, w.cfg.Zone, w.cfg.Host, id)
	if err != nil {
		return nil, fmt.Errorf("look up the command: %w", err)
	}
	if data == nil {
		return nil, messages.Errorf(messages.CodeJobNotFound, "host %s/%s has no command of job %s", w.cfg.Zone, w.cfg.Host, id)
	}
	j := w.newJob(ctx, ctx, id, nil)
	j.stop(nil)
	if _, err := j.read(data); err != nil {
		return nil, err
	}
	final, err := w.out.FinalEvent(ctx, w.cfg.Zone, w.cfg.Host, id)
	if err != nil {
		return nil, fmt.Errorf("look up the job's last event: %w", err)
	}
	if final != nil {
		return nil, over(id, final.Kind)
	}
	rec, err := w.journal.read(id)
	if err != nil {
		return nil, fmt.Errorf("read the journal: %w", err)
	}
	if rec.Done != nil {
		return nil, over(id, messages.KindSucceeded)
	}
	j.begin(rec)
	return j, nil
}

func over(id string, kind messages.Kind) error {
	return messages.Errorf(messages.CodeJobOver, "job %s is over: %s", id, kind)
}

// tell tells a job at work to end. The journal knows it first: whatever becomes of the worker, the
// job is not begun again.
func (j *job) tell() (messages.Reply, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.ending {
		return "", errEnding
	}
	if err := j.w.journal.cancel(j.id); err != nil {
		j.log.Error().Err(err).Msg("write the journal")
	}
	j.told = true
	j.stop(errCancelled())
	return messages.ReplyCancelling, nil
}

// throttle changes the limit of a job at work.
func (j *job) throttle(ctx context.Context, mib int) (messages.Reply, error) {
	if err := j.throttleable(); err != nil {
		return "", err
	}
	select {
	case <-j.begun:
	case <-j.left:
		return "", errEnding
	case <-ctx.Done():
		return "", late(context.Cause(ctx))
	}
	ev, err := j.setLimit(mib)
	if err != nil {
		return "", err
	}
	if err := j.w.out.PublishEvent(ctx, ev); err != nil {
		return "", notStored(err)
	}
	return messages.ReplyThrottled, nil
}

func (j *job) setLimit(mib int) (messages.Event, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	if j.ending {
		return messages.Event{}, errEnding
	}
	if err := j.w.journal.limit(j.id, mib); err != nil {
		return messages.Event{}, fmt.Errorf("write the journal: %w", err)
	}
	ev := j.throttled(j.limit, mib)
	j.limit = mib
	j.limiter.SetLimit(mib)
	return ev, nil
}

// throttleable refuses a job that copies nothing.
func (j *job) throttleable() error {
	if exec.Copies(j.cmd) {
		return nil
	}
	return messages.Errorf(messages.CodeInvalidDetail, "a %s copies no data and has no bandwidth limit", j.cmd.Head().Type).
		WithHint("Cancel it if it has to stop (publisher cancel).")
}

// end closes a job to requests that change it, and returns what its attempt has come to. Whatever
// failed in a job that was told to end did so because of that, or would be tried again.
func (j *job) end(err error) error {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.ending = true
	if err != nil && j.told {
		return errCancelled()
	}
	return err
}
