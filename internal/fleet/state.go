package fleet

import (
	"time"

	"github.com/nasfleet/nasfleet/messages"
)

// JobState says where a job is.
type JobState string

// The states of a job. The last three are final.
const (
	JobQueued    JobState = "queued"
	JobRunning   JobState = "running"
	JobRetrying  JobState = "retrying"
	JobSucceeded JobState = "succeeded"
	JobFailed    JobState = "failed"
	JobCancelled JobState = "cancelled"
)

// Over says whether the job has ended.
func (s JobState) Over() bool { return s == JobSucceeded || s == JobFailed || s == JobCancelled }

// Status is what a job's stored events tell of it.
type Status struct {
	State JobState `json:"state"`
	// Attempt counts from 1; 0 for a job that waits for its first.
	Attempt int `json:"attempt"`
	// Code is why the last attempt failed.
	Code messages.Code `json:"code,omitempty"`
	// NextAttempt is when a retrying job is tried again.
	NextAttempt *time.Time `json:"next_attempt,omitempty"`
}

// StatusOf returns where a job's events, in the order they were stored, leave it. Without any it
// is queued; the first final event settles it, whatever follows.
func StatusOf(events ...messages.Event) Status {
	s := Status{State: JobQueued}
	for _, e := range events {
		s = s.after(e)
	}
	return s
}

// after is where one more event leaves the job. A kind that is not known here changes nothing.
func (s Status) after(e messages.Event) Status {
	if s.State.Over() {
		return s
	}
	next := Status{Attempt: e.Attempt}
	switch e.Kind {
	case messages.KindAccepted, messages.KindVerified:
		next.State = JobRunning
	case messages.KindRetrying:
		next.State = JobRetrying
	case messages.KindSucceeded:
		next.State = JobSucceeded
	case messages.KindFailed:
		next.State = JobFailed
	case messages.KindCancelled:
		next.State = JobCancelled
	default:
		return s
	}
	if e.Error != nil {
		next.Code, next.NextAttempt = e.Error.Code, e.Error.NextAttempt
	}
	return next
}
