package worker

import (
	"context"
	"time"

	"github.com/nasfleet/nasfleet/messages"
)

// A command's way to the attempt: what is refused, what waits its turn, and what is over.

// handle sees one delivery to its end.
func (w *Worker) handle(jobs, words context.Context, d Delivery) {
	j := w.newJob(jobs, words, d.Job(), d)
	defer j.stop(nil)
	if err := w.verify(d); err != nil {
		j.refuseOnce(messages.Header{}, err)
		return
	}
	head, err := j.read(d.Data())
	if err != nil {
		j.refuseOnce(head, err)
		return
	}
	rec, err := w.journal.read(j.id)
	if err != nil {
		j.hindered(err, "read the journal")
		return
	}
	ok, delay := w.jobs.enter(j, rec.dangerous(j.attempts()))
	if delay > 0 {
		j.putBack(delay)
	}
	if !ok {
		return
	}
	defer w.jobs.leave(j)
	if !j.over() && !j.expired(head, rec) {
		j.run()
	}
}

// verify holds a command against the publisher's key, before a byte of it is read.
func (w *Worker) verify(d Delivery) error {
	if w.cfg.Authority == nil {
		return nil
	}
	return w.cfg.Authority.Verify(d.Subject(), d.Signature(), d.Data())
}

// refuseOnce refuses a command that may bear the name of another job, whose end it must not contradict:
// one that has ended, or one that is at work, whose own command was not refused.
func (j *job) refuseOnce(head messages.Header, err error) {
	at, release, stopped := j.w.jobs.seize(j.words, j.id)
	if stopped != nil {
		return // the command comes back
	}
	defer release()
	switch {
	case at != nil:
		j.log.Warn().Err(err).Msg("refused: it bears the name of a job at work")
		j.settle(j.d.term(string(messages.CodeOf(err))))
	case !j.over():
		j.refuse(head, err)
	}
}

// read decodes the command.
func (j *job) read(data []byte) (messages.Header, error) {
	cmd, head, err := messages.Decode(data)
	if err == nil && head.JobID != j.id {
		err = messages.Errorf(messages.CodeInvalidMessage, "job_id %s is not that of its subject", head.JobID)
	}
	if err == nil {
		j.cmd = cmd
	}
	return head, err
}

func (j *job) attempts() int { return j.cmd.Head().MaxAttempts() }

// over says whether the job has ended before, and acknowledges its command if so: it was cancelled
// while it waited, or its worker died, or lost its connection, between the event and the ack.
func (j *job) over() bool {
	final, err := j.w.out.FinalEvent(j.words, j.w.cfg.Zone, j.w.cfg.Host, j.id)
	if err != nil {
		// Not to know is no reason to do a job twice, and none to drop it.
		j.hindered(err, "look up the job's last event")
		return true
	}
	if final == nil {
		return false
	}
	_ = j.end(nil) // whoever asks from now on is told so
	j.final = final.Kind
	j.w.jobs.unhindered(j.id)
	j.log.Info().Str("kind", string(final.Kind)).Msg("the job has ended before")
	if j.cmd == nil { // it bears the job's name, and is not its command
		j.settle(j.d.ack(j.words))
		return true
	}
	if rec, err := j.w.journal.read(j.id); err == nil && rec.untidy() {
		if done := j.cleanUp(); done != nil && final.Kind != messages.KindSucceeded {
			j.log.Warn().Str("backup", done.BackupID).Msg("a killed attempt had committed a backup; ls --refresh lists it")
		}
	}
	j.w.journal.end(j.id)
	j.settle(j.d.ack(j.words))
	return true
}

// expired refuses a command that is too old to be begun. One that was begun in time is seen through.
func (j *job) expired(head messages.Header, rec record) bool {
	if j.w.cfg.Authority == nil || rec.begun() {
		return false
	}
	err := j.w.cfg.Authority.VerifyTime(head.IssuedAt, time.Now())
	if err != nil {
		_ = j.end(nil)        // whoever asks from now on is told that the job is over
		j.w.journal.end(j.id) // a limit, perhaps
		j.refuse(head, err)
	}
	return err != nil
}

// refuse answers a command that cannot be read. It is never delivered again.
func (j *job) refuse(head messages.Header, err error) {
	j.log.Warn().Err(err).Msg("refused")
	j.w.cfg.Metrics.refused()
	ev := j.failed(err)
	ev.Type = head.Type
	if perr := j.publish(ev); perr != nil {
		j.log.Error().Err(perr).Msg("the refusal was not stored")
		return
	}
	j.final = messages.KindFailed
	j.settle(j.d.term(string(messages.CodeOf(err))))
}

// hindered puts a command back that cannot be begun, for a reason of the host's own.
func (j *job) hindered(err error, what string) {
	j.log.Error().Err(err).Msg(what)
	j.putBack(j.w.jobs.hindered(j.id, j.w.cfg.RetryDelay))
}
