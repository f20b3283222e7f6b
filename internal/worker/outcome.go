package worker

import (
	"math/rand/v2"
	"time"

	"github.com/rs/zerolog"

	"github.com/nasfleet/nasfleet/messages"
)

// maxRetryDelay bounds the wait between two attempts.
const maxRetryDelay = 10 * time.Minute

// ending is what becomes of a command after an attempt.
type ending int

const (
	// done: acknowledged, never delivered again.
	done ending = iota
	// drop: terminated, never delivered again.
	drop
	// tryAgain: delivered again after a delay.
	tryAgain
	// giveBack: delivered again at once, here or to the next worker; no attempt is spent.
	giveBack
)

// decision is what an attempt's end means: the event to store, and the command's ending.
type decision struct {
	kind  messages.Kind
	ends  ending
	delay time.Duration
}

// decide is the one place that turns an error into an outcome.
func decide(err error, attempt, attempts int, firstDelay time.Duration) decision {
	code := messages.CodeOf(err)
	switch {
	case err == nil:
		return decision{kind: messages.KindSucceeded, ends: done}
	case code == messages.CodeShuttingDown:
		return decision{ends: giveBack}
	case code == messages.CodeCancelled:
		return decision{kind: messages.KindCancelled, ends: done}
	case code.Retryable() && attempt < attempts:
		return decision{kind: messages.KindRetrying, ends: tryAgain, delay: retryDelay(attempt, firstDelay)}
	}
	return decision{kind: messages.KindFailed, ends: drop}
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
