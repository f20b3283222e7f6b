package main

import (
	"context"
	"fmt"
	"io"

	"github.com/nasfleet/nasfleet/internal/fleet"
	"github.com/nasfleet/nasfleet/messages"
)

// runFleet publishes many jobs, follows them if asked, and prints what became of each.
func (a *app) runFleet(ctx context.Context, m *fleet.Manager, jobs []*fleet.Job, f jobFlags) error {
	do := m.Send
	if f.Wait {
		do = m.Run
	}
	return a.showFleet(f, func(o fleet.Observer) ([]fleet.Result, error) { return do(ctx, jobs, o) })
}

// showFleet shows what do tells of many jobs, and prints what became of each.
func (a *app) showFleet(f jobFlags, do func(fleet.Observer) ([]fleet.Result, error)) error {
	v := &fleetView{drawer: newFleetDrawer(a.stderr), stdout: a.stdout, flags: f}
	results, err := do(v)
	v.drawer.close(v.tally)
	bad := 0
	for _, r := range results {
		if r.Failure() != nil {
			bad++
		}
	}
	switch {
	case fleet.ClassOf(err) == fleet.Interrupted:
		return &fleet.Error{
			Class: fleet.Interrupted, Err: fmt.Errorf("interrupted; the jobs that were published go on (%s)", tally(v.tally)),
			Hint: "Follow them with publisher watch.",
		}
	case err != nil:
		return err
	case bad > 0:
		return fmt.Errorf("%d of %d jobs did not succeed: %s", bad, len(results), tally(v.tally))
	}
	return v.err
}

// fleetView shows a fleet: a line or bar of counts that moves, and each failure as it comes.
// Standard output gets one line a job: where it was published, or how it ended.
type fleetView struct {
	drawer fleetDrawer
	stdout io.Writer
	flags  jobFlags
	tally  fleet.Tally
	err    error // of writing to stdout
}

// Sent implements fleet.Observer.
func (v *fleetView) Sent(r fleet.Result, t fleet.Tally) {
	v.tally = t
	switch {
	case r.Err != nil:
		v.drawer.say(fmt.Sprintf("%s: refused: %s", jobName(r.Job), r.Err))
	case r.Duplicate:
		v.drawer.say(fmt.Sprintf("%s: %s", jobName(r.Job), duplicate(r.Job)))
	}
	switch {
	case v.flags.JSON && (r.Err != nil || !v.flags.Wait):
		v.keep(printJSONLine(v.stdout, newSent(r)))
	case !v.flags.Wait && r.Err == nil:
		_, err := fmt.Fprintln(v.stdout, printable(fmt.Sprintf("%s %s/%s %s", r.Job.ID(), r.Job.Zone, r.Job.Host, r.Job.Command.Target())))
		v.keep(err)
	}
	v.drawer.draw(t)
}

// Event implements fleet.Observer.
func (v *fleetView) Event(j *fleet.Job, e messages.Event, t fleet.Tally) {
	v.tally = t
	switch {
	case e.Kind == messages.KindRetrying:
		v.drawer.say(jobName(j) + ": " + describe(e))
	case e.Kind.Final():
		if e.Kind != messages.KindSucceeded {
			v.drawer.say(fmt.Sprintf("%s: %s, job %s", jobName(j), describe(e), e.JobID))
		}
		if v.flags.JSON {
			v.keep(printJSONLine(v.stdout, e))
		}
	}
	v.drawer.draw(t)
}

// Progress implements fleet.Observer.
func (v *fleetView) Progress(*fleet.Job, messages.Progress) {}

func (v *fleetView) keep(err error) {
	if v.err == nil {
		v.err = err
	}
}

func jobName(j *fleet.Job) string {
	return fmt.Sprintf("%s/%s %s", j.Zone, j.Host, j.Command.Target())
}

func tally(t fleet.Tally) string {
	s := fmt.Sprintf("%d queued, %d running, %d succeeded, %d failed", t.Queued, t.Running, t.Succeeded, t.Failed)
	if t.Refused > 0 {
		s += fmt.Sprintf(", %d refused", t.Refused)
	}
	return s
}
