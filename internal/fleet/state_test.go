package fleet

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/nasfleet/nasfleet/messages"
)

func TestStatusOf(t *testing.T) {
	next := time.Date(2026, 2, 3, 4, 5, 6, 0, time.UTC)
	event := func(kind messages.Kind, attempt int, code messages.Code) messages.Event {
		e := messages.Event{Kind: kind, Attempt: attempt}
		if code != "" {
			e.Error = &messages.Failure{Code: code}
		}
		return e
	}
	accepted := event(messages.KindAccepted, 1, "")
	retrying := event(messages.KindRetrying, 1, messages.CodeMountFailed)
	retrying.Error.NextAttempt = &next
	again := event(messages.KindAccepted, 2, "")
	verified := event(messages.KindVerified, 2, "")
	succeeded := event(messages.KindSucceeded, 2, "")
	failed := event(messages.KindFailed, 2, messages.CodeTargetFull)
	cancelled := event(messages.KindCancelled, 0, messages.CodeCancelled)
	for name, c := range map[string]struct {
		events []messages.Event
		want   Status
	}{
		"nothing yet":                 {nil, Status{State: JobQueued}},
		"begun":                       {[]messages.Event{accepted}, Status{State: JobRunning, Attempt: 1}},
		"to be tried again":           {[]messages.Event{accepted, retrying}, Status{State: JobRetrying, Attempt: 1, Code: messages.CodeMountFailed, NextAttempt: &next}},
		"tried again":                 {[]messages.Event{accepted, retrying, again}, Status{State: JobRunning, Attempt: 2}},
		"read back":                   {[]messages.Event{again, verified}, Status{State: JobRunning, Attempt: 2}},
		"done":                        {[]messages.Event{accepted, retrying, again, verified, succeeded}, Status{State: JobSucceeded, Attempt: 2}},
		"failed":                      {[]messages.Event{accepted, retrying, again, failed}, Status{State: JobFailed, Attempt: 2, Code: messages.CodeTargetFull}},
		"retrying says no time":       {[]messages.Event{event(messages.KindRetrying, 1, "")}, Status{State: JobRetrying, Attempt: 1}},
		"refused unread":              {[]messages.Event{event(messages.KindFailed, 0, messages.CodeInvalidMessage)}, Status{State: JobFailed, Code: messages.CodeInvalidMessage}},
		"cancelled before it began":   {[]messages.Event{cancelled}, Status{State: JobCancelled, Code: messages.CodeCancelled}},
		"a late event":                {[]messages.Event{failed, again, succeeded}, Status{State: JobFailed, Attempt: 2, Code: messages.CodeTargetFull}},
		"a kind of the future":        {[]messages.Event{accepted, event("moved", 7, "")}, Status{State: JobRunning, Attempt: 1}},
		"only a kind of the future":   {[]messages.Event{event("moved", 7, "")}, Status{State: JobQueued}},
		"its beginning was cut off":   {[]messages.Event{succeeded}, Status{State: JobSucceeded, Attempt: 2}},
		"cancelled while it retried":  {[]messages.Event{accepted, retrying, cancelled}, Status{State: JobCancelled, Code: messages.CodeCancelled}},
		"given up without an attempt": {[]messages.Event{retrying, failed}, Status{State: JobFailed, Attempt: 2, Code: messages.CodeTargetFull}},
	} {
		if diff := cmp.Diff(c.want, StatusOf(c.events...)); diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
	for state, over := range map[JobState]bool{JobQueued: false, JobRunning: false, JobRetrying: false, JobSucceeded: true, JobFailed: true, JobCancelled: true} {
		if state.Over() != over {
			t.Error(state)
		}
	}
}
