package main

import (
	"context"
	"fmt"

	"github.com/nasfleet/nasfleet/internal/fleet"
	"github.com/nasfleet/nasfleet/messages"
)

type throttleCmd struct {
	fleet.JobAddress
	Limit int  `arg:"" name:"mib" help:"The new limit in MiB/s for the whole job, all its disks together; 0 is none."`
	JSON  bool `name:"json" help:"Print a JSON object."`
}

// changed is what throttle --json prints.
type changed struct {
	JobID string         `json:"job_id"`
	Zone  string         `json:"zone"`
	Host  string         `json:"host"`
	Reply messages.Reply `json:"reply"`
	Limit int            `json:"bandwidth_limit"`
}

func (c *throttleCmd) Run(ctx context.Context, a *app) error {
	return a.with(ctx, func(m *fleet.Manager) error {
		j, reply, err := m.Throttle(ctx, c.JobAddress, c.Limit)
		if err != nil {
			return err
		}
		if c.JSON {
			return printJSON(a.stdout, changed{JobID: j.JobID, Zone: j.Zone, Host: j.Host, Reply: reply, Limit: c.Limit})
		}
		when := "from now on"
		if reply == messages.ReplyNoted {
			when = "when it runs"
		}
		_, err = fmt.Fprintln(a.stdout, printable(fmt.Sprintf("job %s of %s on %s/%s: %s %s", j.JobID, j.VM, j.Zone, j.Host, limit(c.Limit), when)))
		return err
	})
}

// limit tells a bandwidth limit.
func limit(mib int) string {
	if mib == 0 {
		return "no limit"
	}
	return fmt.Sprintf("%d MiB/s", mib)
}
