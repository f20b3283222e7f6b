package worker

import (
	"math/rand/v2"
	"time"

	"github.com/rs/zerolog"

	"github.com/nasfleet/nasfleet/messages"
)

// maxRetryDelay bounds the wait between two attempts.
const maxRetryDelay = 10 * time.Minute

// ending is what becomes of a command. docs/job-states.md has a line for each.
type ending string

const (
	// acked: acknowledged, never delivered again.
	acked ending = "acknowledged"
	// terminated: never delivered again either; the server tells others that it was given up.
	terminated ending = "terminated"
	// delayed: delivered again after a delay.
	delayed ending = "delivered again later"
	// returned: delivered again at once, here or to the next worker; no attempt is spent.
	returned ending = "given back"
	// kept: not let go. It comes back after the queue's AckWait.
	kept ending = "kept"
)

// endings lists them all.
func endings() []ending { return []ending{acked, terminated, delayed, returned, kept} }

// decision is what an attempt's end means: the event to store, "" for none, and the command's
// ending. Each is made by one of the functions below.
type decision struct {
	kind messages.Kind
	ends ending
	// err is what the event tells.
	err error
	// delay is until the next attempt.
	delay time.Duration
}

func toSucceeded() decision { return decision{kind: messages.KindSucceeded, ends: acked} }

func toCancelled(err error) decision {
	return decision{kind: messages.KindCancelled, ends: acked, err: err}
}

func toFailed(err error) decision {
	return decision{kind: messages.KindFailed, ends: terminated, err: err}
}

func toRetrying(err error, delay time.Duration) decision {
	return decision{kind: messages.KindRetrying, ends: delayed, err: err, delay: delay}
}

func toGivenBack(err error) decision { return decision{ends: returned, err: err} }

// bounds are how far a job may go.
type bounds struct {
	attempts   int
	firstDelay time.Duration
	// timeout is the job's time as a whole, 0 for none; deadline is when it is over.
	timeout  time.Duration
	deadline time.Time
}

// expired is what ends a job whose time is over.
func (b bounds) expired() *messages.Error {
	return messages.Errorf(messages.CodeJobTimeout, "the job was not done in %s", b.timeout)
}

// decide is the one place that turns an error into an outcome.
func decide(err error, attempt int, b bounds) decision {
	code := messages.CodeOf(err)
	switch {
	case err == nil:
		return toSucceeded()
	case code == messages.CodeShuttingDown:
		return toGivenBack(err)
	case code == messages.CodeCancelled:
		return toCancelled(err)
	case !code.Retryable() || attempt >= b.attempts:
		return toFailed(err)
	}
	delay := retryDelay(attempt, b.firstDelay)
	if b.timeout > 0 && time.Now().Add(delay).After(b.deadline) {
		// What would be waited for is the end of the job's time.
		return toFailed(messages.Errorf(messages.CodeJobTimeout, "%w; the last attempt: %w", b.expired().Err, err))
	}
	return toRetrying(err, delay)
}

// retryDelay doubles with each attempt. The jitter of a quarter either way keeps a fleet whose
// NAS came back from knocking at the same second.
func retryDelay(attempt int, first time.Duration) time.Duration {
	d := first
	for i := 1; i < attempt && d < maxRetryDelay; i++ {
		d *= 2
	}
	d = min(d, maxRetryDelay)
	return d*3/4 + rand.N(d/2+1)
}

func (d decision) level() zerolog.Level {
	switch d.kind {
	case messages.KindFailed:
		return zerolog.ErrorLevel
	case messages.KindRetrying:
		return zerolog.WarnLevel
	}
	return zerolog.InfoLevel
}
