package main

import (
	"context"
	"fmt"
	"io"

	"github.com/nasfleet/nasfleet/internal/fleet"
	"github.com/nasfleet/nasfleet/messages"
)

type replayCmd struct {
	fleet.ReplaySettings
	DryRun bool `help:"Show what would be replayed, and publish nothing."`
	jobFlags
}

// planned is a line of replay --dry-run --json, and of a job that is left out.
type planned struct {
	// JobID is the job that replays, or would; "" where the old one is left out.
	JobID    string         `json:"job_id,omitempty"`
	Replays  string         `json:"replays"`
	Zone     string         `json:"zone"`
	Host     string         `json:"host"`
	VM       string         `json:"vm"`
	Type     messages.Type  `json:"type"`
	State    fleet.JobState `json:"state"`
	Code     messages.Code  `json:"code,omitempty"`
	Replayed bool           `json:"already_replayed,omitempty"`
	LeftOut  string         `json:"left_out,omitempty"`
}

func (c *replayCmd) Run(ctx context.Context, a *app) error {
	return a.with(ctx, func(m *fleet.Manager) error {
		plan, err := m.PlanReplay(ctx, c.ReplaySettings)
		if err != nil {
			return err
		}
		if c.DryRun {
			return c.show(a.stdout, plan)
		}
		var jobs []*fleet.Job
		for _, r := range plan {
			if r.Job != nil {
				jobs = append(jobs, r.Job)
			} else {
				a.note(fmt.Sprintf("job %s of %s/%s %s is left out: %s", r.Old.JobID, r.Old.Zone, r.Old.Host, orDash(r.Old.VM), r.LeftOut))
			}
		}
		switch {
		case len(jobs) == 0:
			a.note("there is no job to replay")
			return nil
		case len(c.Jobs) > 0 && len(jobs) == 1:
			return a.runJob(ctx, m, jobs[0], c.jobFlags)
		}
		return a.runFleet(ctx, m, jobs, c.jobFlags)
	})
}

// show prints what would be done.
func (c *replayCmd) show(w io.Writer, plan []fleet.Replay) error {
	if c.JSON {
		for _, r := range plan {
			if err := printJSONLine(w, newPlanned(r)); err != nil {
				return err
			}
		}
		return nil
	}
	t := newTable(w, "JOB", "ZONE", "HOST", "VM", "TYPE", "STATE", "CODE", "REPLAY")
	for _, r := range plan {
		p := newPlanned(r)
		what := p.JobID
		switch {
		case r.Job == nil:
			what = "left out: " + r.LeftOut
		case p.Replayed:
			what = "already replayed as " + p.JobID
		}
		t.row(p.Replays, p.Zone, p.Host, orDash(p.VM), jobType(r.Old), string(p.State), orDash(string(p.Code)), what)
	}
	return t.flush()
}

func newPlanned(r fleet.Replay) planned {
	p := planned{
		Replays: r.Old.JobID, Zone: r.Old.Zone, Host: r.Old.Host, VM: r.Old.VM, Type: r.Old.Type, State: r.Old.State, Code: r.Old.Code,
		Replayed: r.Old.ReplayedAs != "", LeftOut: r.LeftOut,
	}
	if r.Job != nil {
		p.JobID = r.Job.ID()
	}
	return p
}
