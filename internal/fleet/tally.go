package fleet

import "github.com/nasfleet/nasfleet/messages"

// Tally counts the jobs of a run by where they are.
type Tally struct {
	Jobs      int
	Queued    int
	Running   int
	Succeeded int
	// Failed counts the cancelled ones too.
	Failed int
	// Refused are those that were not published.
	Refused int
}

// Left is how many jobs have not ended yet.
func (t Tally) Left() int { return t.Jobs - t.Succeeded - t.Failed - t.Refused }

type state int

const (
	unsent state = iota
	queued
	running
	succeeded
	failed
	rejected
)

func (s state) over() bool { return s >= succeeded }

// after is where an event leaves a job. One that waits for its next attempt is queued again.
func (s state) after(k messages.Kind) state {
	switch k {
	case messages.KindThrottled:
		return s // it may wait or run
	case messages.KindSucceeded:
		return succeeded
	case messages.KindFailed, messages.KindCancelled:
		return failed
	case messages.KindRetrying:
		return queued
	}
	return running
}

// move takes a job from one state to the next.
func (t *Tally) move(from, to state) {
	if n := t.count(from); n != nil {
		*n--
	}
	if n := t.count(to); n != nil {
		*n++
	}
}

func (t *Tally) count(s state) *int {
	switch s {
	case queued:
		return &t.Queued
	case running:
		return &t.Running
	case succeeded:
		return &t.Succeeded
	case failed:
		return &t.Failed
	case rejected:
		return &t.Refused
	}
	return nil
}
