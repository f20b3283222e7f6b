package worker

import (
	"context"
	"sync"
	"time"

	"github.com/rs/zerolog"

	"github.com/nasfleet/nasfleet/internal/exec"
	"github.com/nasfleet/nasfleet/internal/exec/copier"
	"github.com/nasfleet/nasfleet/messages"
)

// cleanUpTime bounds the cleaning up after attempts that were cut off.
const cleanUpTime = time.Minute

// job is one delivery of a command, and the attempt it makes.
type job struct {
	w       *Worker
	d       *held
	id      string
	cmd     messages.Command
	attempt int
	started time.Time
	log     zerolog.Logger
	// forbidden says that entries of other hosts cannot be written.
	forbidden bool
	// ctx ends when the job is to stop; its cause says why.
	ctx  context.Context
	stop context.CancelCauseFunc
	// words outlives ctx: with it the job says how it ended.
	words context.Context
	// left is closed when the job is no longer at work. From then on final tells how it ended, "" where it
	// has not.
	left  chan struct{}
	final messages.Kind

	// mu decides between the attempt's end and a request to change the job.
	mu  sync.Mutex
	rec record
	// limiter is set once it is known what the job was told before; limit is its value in MiB/s.
	limiter *copier.Limiter
	limit   int
	begun   chan struct{}
	// told says that the job was told to end, ending that its attempt is over.
	told, ending bool

	// tried says that this delivery has begun an attempt.
	tried bool
}

func (w *Worker) newJob(jobs, words context.Context, id string, d Delivery) *job {
	j := &job{
		w: w, d: newHeld(d), id: id, started: time.Now(), words: words,
		left: make(chan struct{}), begun: make(chan struct{}),
		log: w.cfg.Log.With().Str("job", id).Logger(),
	}
	j.ctx, j.stop = context.WithCancelCause(jobs)
	return j
}

// run makes an attempt, where there may be one. What an earlier one has done and could not report is
// reported.
func (j *job) run() {
	// Read again: until the job was at work, it could be told something.
	rec, err := j.w.journal.read(j.id)
	if err != nil {
		j.hindered(err, "read the journal")
		return
	}
	b := j.begin(rec)
	ctx, cancel := context.WithCancel(j.ctx)
	if b.timeout > 0 {
		ctx, cancel = context.WithDeadlineCause(j.ctx, b.deadline, b.expired())
	}
	defer cancel()
	// The command is kept until the job has cleaned up, and not only until it is told to stop.
	working, rest := context.WithCancel(context.WithoutCancel(ctx))
	alive := j.keepAlive(working)
	defer func() { rest(); <-alive }()
	switch {
	case rec.Done != nil:
		j.log.Info().Msg("was done by an earlier worker")
		j.finish(*rec.Done, nil, b)
	case rec.Cancelled:
		j.finish(result{}, errCancelled(), b)
	case rec.Attempts >= b.attempts:
		j.finish(result{}, messages.Errorf(messages.CodeInternal, "none of %d attempts came to an end: the worker died", rec.Attempts), b)
	case ctx.Err() != nil:
		j.finish(result{}, context.Cause(ctx), b)
	default:
		j.try(ctx, b)
	}
}

// begin takes over what the journal knows of the job, and opens it to requests that change it.
func (j *job) begin(rec record) bounds {
	h := j.cmd.Head()
	b := bounds{attempts: j.attempts(), firstDelay: j.w.cfg.RetryDelay, timeout: j.w.cfg.JobTimeout}
	if h.Timeout > 0 {
		b.timeout = time.Duration(h.Timeout) * time.Second
	}
	if rec.Since.IsZero() {
		rec.Since = time.Now()
	}
	b.deadline = rec.Since.Add(b.timeout)

	j.mu.Lock()
	defer j.mu.Unlock()
	j.rec, j.attempt, j.limit = rec, rec.Attempts, exec.BandwidthLimit(j.cmd)
	if rec.Limit != nil {
		j.limit = *rec.Limit
	}
	j.limiter = copier.NewLimiter(j.limit)
	close(j.begun)
	return b
}

// try makes an attempt.
func (j *job) try(ctx context.Context, b bounds) {
	rec, err := j.w.journal.begin(j.id)
	if err != nil {
		j.hindered(err, "write the journal")
		return
	}
	j.w.jobs.unhindered(j.id)
	j.mu.Lock()
	j.rec, j.attempt, j.tried = rec, rec.Attempts, true
	j.log = j.log.With().Int("attempt", j.attempt).Str("type", string(j.cmd.Head().Type)).Str("vm", j.cmd.Target()).Logger()
	j.mu.Unlock()
	j.log.Info().Msg("accepted")
	accepted, err := j.w.out.PublishAccepted(j.words, j.accepted())
	if err != nil && j.words.Err() != nil || err == nil && !accepted {
		// The worker stops, or the job was cancelled by others before it began: no attempt is spent.
		// The command comes back; it is looked up then how the job ended.
		j.w.journal.giveBack(j.id)
		if err == nil {
			j.log.Info().Msg("cancelled before it began")
			j.putBack(j.w.cfg.BusyDelay)
		}
		return
	}
	var res result
	if err == nil {
		res, err = j.work(ctx)
	}
	j.finish(res, err, b)
}

// work does the job.
func (j *job) work(ctx context.Context) (result, error) {
	p := newProgress(j)
	p.start(ctx)
	out, err := j.w.exec.Run(ctx, j.cmd, j.limiter, p)
	res := result{Outcome: out, Verified: p.stop()}
	if err != nil {
		return res, err
	}
	if jerr := j.w.journal.ended(j.id); jerr != nil {
		j.log.Error().Err(jerr).Msg("write the journal")
	}
	return res, nil
}

// finish stores what the attempt's end means, forgets the job where that is its last word, and then
// lets go of the command, in this order: a crash in between makes the command come back, and neither
// the job nor its record go missing.
func (j *job) finish(res result, err error, b bounds) {
	d := decide(j.end(err), j.attempt, b)
	if d.ends != returned {
		d, res = j.conclude(d, res)
	}
	j.w.cfg.Metrics.observe(j, d, res.Outcome)
	if d.ends == returned {
		j.log.Info().Msg("given back")
		if j.tried {
			j.w.journal.giveBack(j.id)
		}
		j.w.jobs.leave(j)
		j.settle(j.d.giveBack())
		return
	}
	j.log.WithLevel(d.level()).Err(d.err).Str("kind", string(d.kind)).Dur("took", time.Since(j.started)).Msg("ended")
	if err := j.report(d, res); err != nil {
		// The command stays unacknowledged and comes back; the journal knows the attempt.
		j.log.Error().Err(err).Str("command", string(kept)).Msg("the job's end was not stored")
		return
	}
	if d.kind.Final() {
		j.final = d.kind
		j.w.journal.end(j.id)
	}
	// Before the command is let go: one that comes back from now on finds the job over.
	j.w.jobs.leave(j)
	switch d.ends {
	case delayed:
		j.putBack(d.delay)
		return
	case terminated:
		j.settle(j.d.term(string(messages.CodeOf(d.err))))
	default:
		j.settle(j.d.ack(j.words))
	}
}

// conclude notes that the attempt came to an end. Where there is to be no other, what those before
// it may have left is ended: also where one had done the job and was cut off while it cleaned up.
// One that had done it and could not even note that makes the job a success.
func (j *job) conclude(d decision, res result) (decision, result) {
	cutOff := j.rec.Open && !j.tried
	if d.kind.Final() && (d.err != nil && j.rec.Left || cutOff) {
		if done := j.cleanUp(); done != nil && d.err != nil {
			j.log.Info().AnErr("instead_of", d.err).Msg("was done by an earlier worker")
			d, res = toSucceeded(), result{Outcome: *done}
		}
	}
	if d.kind == messages.KindSucceeded {
		return d, res
	}
	if err := j.w.journal.ended(j.id); err != nil {
		j.log.Error().Err(err).Msg("write the journal")
	}
	return d, res
}

// cleanUp ends what attempts that were cut off have left, and returns what one had done.
func (j *job) cleanUp() *exec.Outcome {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(j.words), cleanUpTime)
	defer cancel()
	done, err := j.w.exec.CleanUp(ctx, j.cmd)
	if err != nil {
		j.log.Warn().Err(err).Msg("clean up after killed attempts")
	}
	return done
}

// putBack has the command delivered again later. Before that it is no longer at work: the job must not
// take over a delivery when it has let its own go.
func (j *job) putBack(delay time.Duration) {
	j.w.jobs.leave(j)
	j.settle(j.d.retry(delay))
}

// settle notes that an end did not reach the server; the command then comes back by itself.
func (j *job) settle(err error) {
	if err != nil {
		j.log.Warn().Err(err).Msg("the command was not let go; it comes back")
	}
}

// keepAlive extends the command until ctx ends. The channel closes when it has stopped.
func (j *job) keepAlive(ctx context.Context) <-chan struct{} {
	done, log := make(chan struct{}), j.log // the attempt gets another log
	go func() {
		defer close(done)
		tick := time.NewTicker(j.w.cfg.AckWait / 3)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				if err := j.d.extend(); err != nil {
					log.Debug().Err(err).Msg("extend the command")
				}
			case <-ctx.Done():
				return
			}
		}
	}()
	return done
}
