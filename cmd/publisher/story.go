package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"

	"github.com/nasfleet/nasfleet/internal/fleet"
	"github.com/nasfleet/nasfleet/messages"
)

type storyCmd struct {
	ID   string `arg:"" name:"id" help:"The job's id, as jobs prints it."`
	Zone string `help:"Zone of the job, where several have one of that id." placeholder:"ZONE"`
	Host string `help:"Host of the job, where several have one of that id." placeholder:"HOST"`
	JSON bool   `name:"json" help:"Print a JSON object."`
}

func (c *storyCmd) Run(ctx context.Context, a *app) error {
	return a.with(ctx, func(m *fleet.Manager) error {
		s, err := m.Job(ctx, c.ID, c.Zone, c.Host)
		if err != nil {
			return err
		}
		if c.JSON {
			return printJSON(a.stdout, s)
		}
		return printStory(a.stdout, s)
	})
}

func printStory(w io.Writer, s fleet.Story) error {
	t := newTable(w)
	t.row("job", s.JobID)
	t.row("host", s.Zone+"/"+s.Host)
	t.row("vm", orDash(s.VM))
	t.row("type", jobType(s.JobInfo))
	t.row("state", state(s.Status))
	t.row("published", fmt.Sprintf("%s (%s ago)", stamp(s.PublishedAt), jobAge(s.AgeSeconds)))
	if s.Replays != "" {
		t.row("replays", s.Replays)
	}
	if s.ReplayedAs != "" {
		t.row("replayed as", s.ReplayedAs)
	}
	if s.CommandError != "" {
		t.row("command", s.CommandError)
	}
	if s.Command != nil {
		data, err := json.Marshal(s.Command)
		if err != nil {
			return err
		}
		t.row("command", string(data))
	}
	if err := t.flush(); err != nil || len(s.Events) == 0 {
		return err
	}
	_, _ = fmt.Fprintln(w)
	for _, e := range s.Events {
		if err := printEvent(w, e); err != nil {
			return err
		}
	}
	return nil
}

// printEvent prints an event in a line, and what it adds in lines below.
func printEvent(w io.Writer, e messages.Event) error {
	line := stamp(e.Time) + "  "
	if e.Kind != messages.KindAccepted && e.Kind != messages.KindRetrying { // they tell it themselves
		line += fmt.Sprintf("(attempt %d) ", e.Attempt)
	}
	lines := []string{line + describe(e)}
	if e.Error != nil && e.Error.Hint != "" {
		lines = append(lines, "    hint: "+e.Error.Hint)
	}
	for _, note := range e.Notes {
		lines = append(lines, "    note: "+note)
	}
	for _, l := range lines {
		if _, err := fmt.Fprintln(w, printable(l)); err != nil {
			return err
		}
	}
	return nil
}

// state tells a status in a line.
func state(s fleet.Status) string {
	text := string(s.State)
	if s.Attempt > 0 {
		text += fmt.Sprintf(", attempt %d", s.Attempt)
	}
	if s.Code != "" {
		text += ", " + string(s.Code)
	}
	if s.NextAttempt != nil {
		text += ", the next at " + stamp(*s.NextAttempt)
	}
	return text
}
