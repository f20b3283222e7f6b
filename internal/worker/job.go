package worker

import (
	"context"
	"fmt"
	"time"

	"github.com/rs/zerolog"

	"github.com/nasfleet/nasfleet/internal/exec"
	"github.com/nasfleet/nasfleet/messages"
)

// job is one attempt at one command.
type job struct {
	w       *Worker
	d       *held
	id      string
	cmd     messages.Command
	attempt int
	started time.Time
	log     zerolog.Logger
	// words outlives the job's own context: with it the job says how it ended.
	words context.Context
}

// handle sees one delivery to its end.
func (w *Worker) handle(jobs, words context.Context, d Delivery) {
	j := &job{w: w, d: newHeld(d), id: d.Job(), started: time.Now(), words: words}
	j.log = w.cfg.Log.With().Str("job", j.id).Logger()
	if err := w.verify(d); err != nil {
		j.refuseOnce(messages.Header{}, err)
		return
	}
	cmd, head, err := messages.Decode(d.Data())
	if err == nil && head.JobID != j.id {
		err = messages.Errorf(messages.CodeInvalidMessage, "job_id %s is not that of its subject", head.JobID)
	}
	if err != nil {
		j.refuse(head, err)
		return
	}
	j.cmd = cmd
	if !w.jobs.enter(j) {
		return
	}
	defer w.jobs.leave(j)
	if j.over() || j.expired(head) {
		return
	}
	rec, err := w.journal.begin(j.id)
	if err != nil {
		j.log.Error().Err(err).Msg("write the journal")
		j.settle(j.d.retry(w.cfg.RetryDelay))
		return
	}
	j.attempt = rec.Attempts
	j.run(jobs, rec.Done)
}

// verify holds a command against the publisher's key, before a byte of it is read.
func (w *Worker) verify(d Delivery) error {
	if w.cfg.Authority == nil {
		return nil
	}
	return w.cfg.Authority.Verify(d.Subject(), d.Signature(), d.Data())
}

// expired refuses a command that is too old to be begun. One that was begun in time is seen through.
func (j *job) expired(head messages.Header) bool {
	if j.w.cfg.Authority == nil || j.w.journal.begun(j.id) {
		return false
	}
	err := j.w.cfg.Authority.VerifyTime(head.IssuedAt, time.Now())
	if err != nil {
		j.refuse(head, err)
	}
	return err != nil
}

// refuseOnce refuses a command that may bear the name of a job that has ended, whose end it must
// not contradict.
func (j *job) refuseOnce(head messages.Header, err error) {
	if !j.over() {
		j.refuse(head, err)
	}
}

// over says whether the job has ended before, and acknowledges its command if so: it was
// delivered again because its worker died, or lost its connection, between the event and the ack.
func (j *job) over() bool {
	final, err := j.w.out.FinalEvent(j.words, j.w.cfg.Zone, j.w.cfg.Host, j.id)
	if err != nil {
		// Not to know is no reason to do a job twice, and none to drop it.
		j.log.Warn().Err(err).Msg("look up the job's last event")
		j.settle(j.d.retry(j.w.cfg.RetryDelay))
		return true
	}
	if final == nil {
		return false
	}
	j.log.Info().Str("kind", string(final.Kind)).Msg("the job has ended before")
	j.settle(j.d.ack(j.words))
	j.w.journal.end(j.id)
	return true
}

// run makes an attempt. What an earlier one has done and could not report is reported.
func (j *job) run(jobs context.Context, done *result) {
	j.log = j.log.With().Int("attempt", j.attempt).Str("type", string(j.cmd.Head().Type)).Str("vm", j.cmd.Target()).Logger()
	ctx, stop := context.WithCancel(jobs)
	alive := j.keepAlive(ctx)
	defer func() { stop(); <-alive }()
	if done != nil {
		j.log.Info().Msg("was done by an earlier worker")
		j.finish(*done, nil)
		return
	}
	j.log.Info().Msg("accepted")
	err := j.publish(j.event(messages.KindAccepted))
	if err != nil && j.words.Err() != nil {
		// The worker stops and nothing was begun: no attempt is spent, and the command comes back.
		j.w.journal.giveBack(j.id)
		return
	}
	var res result
	if err == nil {
		res, err = j.try(ctx)
	}
	j.finish(res, err)
}

// try does the job, or cleans up where all attempts are spent.
func (j *job) try(ctx context.Context) (result, error) {
	if j.attempt > j.cmd.Head().MaxAttempts() {
		if err := j.w.exec.CleanUp(ctx, j.cmd); err != nil {
			j.log.Warn().Err(err).Msg("clean up after killed attempts")
		}
		return result{}, messages.Errorf(messages.CodeInternal, "none of %d attempts came to an end: the worker died", j.attempt-1)
	}
	p := newProgress(j)
	p.start(ctx)
	out, err := j.w.exec.Run(ctx, j.cmd, p)
	res := result{Outcome: out, Verified: p.stop()}
	if err != nil {
		return res, err
	}
	// Not every job can be done twice: what was deleted is not found, what was restored exists.
	if jerr := j.w.journal.done(j.id, j.attempt, res); jerr != nil {
		j.log.Error().Err(jerr).Msg("write the journal")
	}
	return res, nil
}

// finish stores what the attempt's end means and then lets go of the command, in this order: a
// crash in between makes the job report again, never go missing.
func (j *job) finish(res result, err error) {
	d := decide(err, j.attempt, j.cmd.Head().MaxAttempts(), j.w.cfg.RetryDelay)
	j.w.cfg.Metrics.observe(j, d, err, res.Outcome)
	if d.ends == giveBack {
		j.log.Info().Msg("given back")
		j.w.journal.giveBack(j.id)
		j.w.jobs.leave(j)
		j.settle(j.d.giveBack())
		return
	}
	j.log.WithLevel(d.level()).Err(err).Str("kind", string(d.kind)).Dur("took", time.Since(j.started)).Msg("ended")
	if perr := j.report(d, res, err); perr != nil {
		// The command stays unacknowledged and comes back; the journal knows the attempt.
		j.log.Error().Err(perr).Msg("the job's end was not stored")
		return
	}
	// Before the command is let go: one that comes back from now on finds the job over.
	j.w.jobs.leave(j)
	switch d.ends {
	case tryAgain:
		j.settle(j.d.retry(d.delay))
	case drop:
		j.settle(j.d.term(string(messages.CodeOf(err))))
		j.w.journal.end(j.id)
	default:
		j.settle(j.d.ack(j.words))
		j.w.journal.end(j.id)
	}
}

// report stores the verify result, the catalog's part of an attempt that succeeded, and its event.
func (j *job) report(d decision, res result, err error) error {
	if res.Verified != nil {
		if perr := j.publish(*res.Verified); perr != nil {
			return fmt.Errorf("the verify result: %w", perr)
		}
	}
	if err == nil {
		if perr := j.updateCatalog(res.Outcome); perr != nil {
			return fmt.Errorf("the catalog: %w", perr)
		}
	}
	return j.publish(j.outcomeEvent(d, res.Outcome, err))
}

// refuse answers a command that cannot be read. It is never delivered again.
func (j *job) refuse(head messages.Header, err error) {
	j.log.Warn().Err(err).Msg("refused")
	j.w.cfg.Metrics.refused()
	ev := j.event(messages.KindFailed)
	ev.Type, ev.Error = head.Type, messages.FailureOf(err)
	if perr := j.publish(ev); perr != nil {
		j.log.Error().Err(perr).Msg("the refusal was not stored")
		return
	}
	j.settle(j.d.term(string(messages.CodeOf(err))))
}

func (j *job) updateCatalog(out exec.Outcome) error {
	if out.Backup != nil {
		return j.w.out.PutBackup(j.words, *out.Backup)
	}
	if d := out.Deleted; d != nil {
		return j.w.out.RemoveBackup(j.words, d.Zone, d.Host, out.BackupID)
	}
	for _, entry := range out.Listed {
		if err := j.w.out.PutBackup(j.words, entry); err != nil {
			return err
		}
	}
	return nil
}

func (j *job) event(kind messages.Kind) messages.Event {
	ev := messages.Event{
		Version: messages.Version, Kind: kind, JobID: j.id, Zone: j.w.cfg.Zone, Host: j.w.cfg.Host,
		Time: time.Now().UTC(), Attempt: j.attempt,
	}
	if j.cmd != nil {
		ev.Type, ev.VM = j.cmd.Head().Type, j.cmd.Target()
	}
	return ev
}

func (j *job) outcomeEvent(d decision, out exec.Outcome, err error) messages.Event {
	ev := j.event(d.kind)
	ev.Seconds = time.Since(j.started).Seconds()
	ev.BackupID, ev.Backup, ev.Restored, ev.Notes = out.BackupID, out.Backup, out.Restored, out.Notes
	if out.Listed != nil {
		n := len(out.Listed)
		ev.Backups = &n
	}
	if ev.Error = messages.FailureOf(err); ev.Error != nil && d.ends == tryAgain {
		next := ev.Time.Add(d.delay)
		ev.Error.NextAttempt = &next
	}
	return ev
}

func (j *job) publish(ev messages.Event) error { return j.w.out.PublishEvent(j.words, ev) }

// settle notes that an end did not reach the server; the command then comes back by itself.
func (j *job) settle(err error) {
	if err != nil {
		j.log.Warn().Err(err).Msg("the command was not let go; it comes back")
	}
}

// keepAlive extends the command until ctx ends. The channel closes when it has stopped.
func (j *job) keepAlive(ctx context.Context) <-chan struct{} {
	done := make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(j.w.cfg.AckWait / 3)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				if err := j.d.extend(); err != nil {
					j.log.Debug().Err(err).Msg("extend the command")
				}
			case <-ctx.Done():
				return
			}
		}
	}()
	return done
}
