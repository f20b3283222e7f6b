package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"strconv"
	"time"

	"github.com/nasfleet/nasfleet/internal/fleet"
)

type jobsCmd struct {
	fleet.JobFilter
	State string `help:"Only jobs in this state: queued, running, retrying, succeeded, failed or cancelled." enum:",queued,running,retrying,succeeded,failed,cancelled" default:"" placeholder:"STATE"`
	Limit int    `help:"Only the newest N; 0 is all." placeholder:"N"`
	JSON  bool   `name:"json" help:"Print a JSON array."`
}

func (c *jobsCmd) Run(ctx context.Context, a *app) error {
	return a.with(ctx, func(m *fleet.Manager) error {
		list, err := m.Jobs(ctx, c.JobFilter, fleet.JobState(c.State), c.Limit)
		if err != nil {
			return err
		}
		if c.JSON {
			return printJSON(a.stdout, list)
		}
		return printJobs(a.stdout, list)
	})
}

func printJobs(w io.Writer, list []fleet.JobInfo) error {
	t := newTable(w, "ID", "ZONE", "HOST", "VM", "TYPE", "STATE", "ATTEMPT", "AGE", "CODE")
	for _, j := range list {
		t.row(j.JobID, j.Zone, j.Host, orDash(j.VM), jobType(j), string(j.State), strconv.Itoa(j.Attempt),
			jobAge(j.AgeSeconds), orDash(string(j.Code)))
	}
	return t.flush()
}

// jobType is what the job is to do, as far as that can be told.
func jobType(j fleet.JobInfo) string {
	if j.CommandError != "" && j.Type == "" {
		return "(unreadable)"
	}
	return string(j.Type)
}

func orDash(s string) string { return cmp.Or(s, "-") }

// jobAge is an age for people, in its largest unit.
func jobAge(s int64) string {
	d := time.Duration(s) * time.Second
	switch {
	case d < time.Minute:
		return fmt.Sprintf("%ds", s)
	case d < time.Hour:
		return fmt.Sprintf("%dm", s/60)
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh", s/3600)
	}
	return fmt.Sprintf("%dd", s/86400)
}
