package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/nasfleet/nasfleet/internal/bus"
	"github.com/nasfleet/nasfleet/internal/fleet"
	"github.com/nasfleet/nasfleet/messages"
)

type watchCmd struct {
	Zone string `help:"Only jobs of this zone." placeholder:"ZONE"`
	Host string `help:"Only jobs of hosts of this name." placeholder:"HOST"`
	Job  string `help:"Only this job: what it has done so far, then what it does, to its end; exits by its outcome." placeholder:"ULID"`
	JSON bool   `name:"json" help:"Print one JSON object a line: {\"event\": …} or {\"progress\": …}."`
}

// watched is a line of watch --json.
type watched struct {
	Event    *messages.Event    `json:"event,omitempty"`
	Progress *messages.Progress `json:"progress,omitempty"`
}

func (c *watchCmd) Run(ctx context.Context, a *app) error {
	show := c.lines(a)
	if c.JSON {
		show = func(u bus.Update) error { return printJSONLine(a.stdout, watched(u)) }
	}
	return a.with(ctx, func(m *fleet.Manager) error {
		err := m.Watch(ctx, bus.Filter{Zone: c.Zone, Host: c.Host, Job: c.Job}, show)
		if c.Job == "" && fleet.ClassOf(err) == fleet.Interrupted {
			return nil // there is no other way to end it
		}
		return err
	})
}

// lines tells each event in a line, and the progress of each job about every five seconds.
func (c *watchCmd) lines(a *app) func(bus.Update) error {
	jobs := map[string]*jobLines{}
	return func(u bus.Update) error {
		var at, text string
		switch {
		case u.Event != nil:
			e := u.Event
			at, text = stamp(e.Time)+" "+e.Zone+"/"+e.Host+" "+e.JobID+" "+e.VM, describe(*e)
			if e.Kind.Final() {
				delete(jobs, e.JobID)
			}
		case u.Progress != nil:
			p := u.Progress
			if jobs[p.JobID] == nil {
				jobs[p.JobID] = &jobLines{lines: newLines(a.stdout), meters: meters{}}
			}
			if text = jobs[p.JobID].line(*p); text == "" {
				return nil
			}
			at = stamp(jobs[p.JobID].now()) + " " + p.Zone + "/" + p.Host + " " + p.JobID + " " + p.VM
		}
		_, err := fmt.Fprintln(a.stdout, printable(strings.TrimSpace(at)+" "+text))
		return err
	}
}
