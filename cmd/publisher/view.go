package main

import (
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"golang.org/x/term"

	"github.com/nasfleet/nasfleet/internal/fleet"
	"github.com/nasfleet/nasfleet/messages"
)

// lineInterval is how often a line tells of progress where there is no terminal.
const lineInterval = 5 * time.Second

// drawer shows something that moves: bars on a terminal, a line now and then elsewhere. say
// prints a line that stays.
type drawer[T any] interface {
	say(line string)
	draw(T)
	close(last T)
}

type (
	jobDrawer   = drawer[messages.Progress]
	fleetDrawer = drawer[fleet.Tally]
)

func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

func newJobDrawer(w io.Writer) jobDrawer {
	if isTerminal(w) {
		return newJobBars(w)
	}
	return &jobLines{lines: newLines(w), meters: meters{}}
}

func newFleetDrawer(w io.Writer) fleetDrawer {
	if isTerminal(w) {
		return newFleetBar(w)
	}
	return &fleetLines{lines: newLines(w)}
}

// jobView shows one job.
type jobView struct {
	drawer jobDrawer
	last   messages.Progress
}

func newJobView(w io.Writer) *jobView { return &jobView{drawer: newJobDrawer(w)} }

func (v *jobView) close() { v.drawer.close(v.last) }

// Sent implements fleet.Observer.
func (v *jobView) Sent(r fleet.Result, _ fleet.Tally) {
	switch {
	case r.Duplicate:
		v.drawer.say(duplicate(r.Job))
	case r.Err == nil:
		v.drawer.say(fmt.Sprintf("job %s is queued for %s/%s", r.Job.ID(), r.Job.Zone, r.Job.Host))
	}
}

// Event implements fleet.Observer. The final event is told by who followed.
func (v *jobView) Event(_ *fleet.Job, e messages.Event, _ fleet.Tally) {
	if !e.Kind.Final() {
		v.drawer.say(describe(e))
	}
}

// Progress implements fleet.Observer.
func (v *jobView) Progress(_ *fleet.Job, p messages.Progress) {
	v.last = p
	v.drawer.draw(p)
}

// describe tells an event in a line.
func describe(e messages.Event) string {
	s := string(e.Kind)
	switch {
	case e.Kind == messages.KindAccepted:
		s += fmt.Sprintf(" by %s/%s (attempt %d)", e.Zone, e.Host, e.Attempt)
	case e.Verified != nil:
		s += fmt.Sprintf(": %s read and compared in %s", size(e.Verified.Bytes), seconds(e.Verified.Seconds))
	case e.Throttled != nil:
		s += fmt.Sprintf(": %s, was %s", limit(e.Throttled.To), limit(e.Throttled.From))
	case e.Kind == messages.KindRetrying && e.Error != nil && e.Error.NextAttempt != nil:
		s = fmt.Sprintf("attempt %d failed: %s; the next is at %s", e.Attempt, e.Error.Message, stamp(*e.Error.NextAttempt))
	case e.Error != nil:
		s += ": " + e.Error.Message
	case e.Kind == messages.KindSucceeded:
		s += ": " + outcome(e)
	}
	return s
}

// lines prints whole lines, and says when it is time for another one about progress.
type lines struct {
	w    io.Writer
	now  func() time.Time
	next time.Time
}

func newLines(w io.Writer) lines { return lines{w: w, now: time.Now} }

func (l *lines) say(line string) { _, _ = fmt.Fprintln(l.w, printable(line)) }

func (l *lines) due() bool {
	now := l.now()
	if now.Before(l.next) {
		return false
	}
	l.next = now.Add(lineInterval)
	return true
}

// jobLines tells of a job about every five seconds, and when its phase changes.
type jobLines struct {
	lines
	meters meters
	phase  messages.Phase
}

func (l *jobLines) draw(p messages.Progress) {
	if line := l.line(p); line != "" {
		l.say(line)
	}
}

// line returns what there is to say, "" between times.
func (l *jobLines) line(p messages.Progress) string {
	texts := l.meters.update(p, l.now())
	if p.Phase != l.phase {
		l.phase, l.next = p.Phase, time.Time{}
	}
	if !l.due() {
		return ""
	}
	return strings.Join(append([]string{string(p.Phase)}, texts...), " | ")
}

func (l *jobLines) close(messages.Progress) {}

// fleetLines tells the counts about every five seconds, as long as they change, and at the end.
type fleetLines struct{ lines }

func (l *fleetLines) draw(t fleet.Tally) {
	if l.due() {
		l.say(tally(t))
	}
}

func (l *fleetLines) close(t fleet.Tally) { l.say(tally(t)) }
