package main

import (
	"context"
	"fmt"

	"github.com/nasfleet/nasfleet/internal/fleet"
)

type cancelCmd struct {
	fleet.JobAddress
	JSON bool `name:"json" help:"Print the job's cancelled event as JSON."`
}

func (c *cancelCmd) Run(ctx context.Context, a *app) error {
	return a.with(ctx, func(m *fleet.Manager) error {
		e, err := m.Cancel(ctx, c.JobAddress)
		if err != nil {
			return err
		}
		if c.JSON {
			return printJSON(a.stdout, e)
		}
		_, err = fmt.Fprintln(a.stdout, printable(fmt.Sprintf("job %s of %s on %s/%s is cancelled", e.JobID, e.VM, e.Zone, e.Host)))
		return err
	})
}
