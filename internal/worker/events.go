package worker

import (
	"fmt"
	"strings"
	"time"

	"github.com/nasfleet/nasfleet/internal/exec"
	"github.com/nasfleet/nasfleet/messages"
)

// Each kind of event is made by one function of this file; the cancelled one, which the management
// side can make too, by messages.Cancelled.

func (j *job) accepted() messages.Event { return j.event(messages.KindAccepted) }

func (j *job) verified(backupID string, v messages.Verification) messages.Event {
	ev := j.event(messages.KindVerified)
	ev.BackupID, ev.Verified = backupID, &v
	return ev
}

func (j *job) throttled(from, to int) messages.Event {
	ev := j.event(messages.KindThrottled)
	ev.Throttled = &messages.Throttle{From: from, To: to}
	return ev
}

func (j *job) succeeded(out exec.Outcome) messages.Event {
	ev := j.event(messages.KindSucceeded)
	ev.BackupID, ev.Backup, ev.Restored, ev.Notes = out.BackupID, out.Backup, out.Restored, bounded(out.Notes)
	if out.Listed != nil {
		n := len(out.Listed)
		ev.Backups = &n
	}
	return ev
}

// The bounds of an event's notes: they may quote what lies on a repository, and an event must not grow larger than
// a message may be.
const (
	maxNotes     = 256
	maxNoteBytes = 1024
)

// bounded cuts notes to their bounds, and says so.
func bounded(notes []string) []string {
	var kept []string
	for _, n := range notes[:min(len(notes), maxNotes)] {
		if len(n) > maxNoteBytes {
			n = n[:maxNoteBytes] + "…"
		}
		kept = append(kept, strings.ToValidUTF8(n, ""))
	}
	if more := len(notes) - maxNotes; more > 0 {
		kept = append(kept, fmt.Sprintf("and %d more", more))
	}
	return kept
}

func (j *job) failed(err error) messages.Event {
	ev := j.event(messages.KindFailed)
	ev.Error = messages.FailureOf(err)
	return ev
}

func (j *job) retrying(err error, delay time.Duration) messages.Event {
	ev := j.event(messages.KindRetrying)
	ev.Error = messages.FailureOf(err)
	next := ev.Time.Add(delay)
	ev.Error.NextAttempt = &next
	return ev
}

func (j *job) cancelled(err error) messages.Event {
	return messages.Cancelled(j.w.cfg.Zone, j.w.cfg.Host, j.cmd, j.attempt, err)
}

// outcome is the event that a decision asks for.
func (j *job) outcome(d decision, out exec.Outcome) messages.Event {
	var ev messages.Event
	switch d.kind {
	case messages.KindSucceeded:
		ev = j.succeeded(out)
	case messages.KindCancelled:
		ev = j.cancelled(d.err)
	case messages.KindRetrying:
		ev = j.retrying(d.err, d.delay)
	default:
		ev = j.failed(d.err)
	}
	ev.Seconds = time.Since(j.started).Seconds()
	return ev
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

// report stores the verify result, the catalog's part of an attempt, and its event. One that failed may have
// deleted backups: the next does not find them any more.
func (j *job) report(d decision, res result) error {
	if res.Verified != nil {
		if err := j.publish(*res.Verified); err != nil {
			return fmt.Errorf("the verify result: %w", err)
		}
	}
	if d.kind == messages.KindSucceeded || len(res.Outcome.Deleted) > 0 {
		if err := j.updateCatalog(&res.Outcome); err != nil {
			return fmt.Errorf("the catalog: %w", err)
		}
	}
	return j.publish(j.outcome(d, res.Outcome))
}

func (j *job) publish(ev messages.Event) error { return j.w.out.PublishEvent(j.words, ev) }
