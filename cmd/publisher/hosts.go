package main

import (
	"context"
	"fmt"
	"io"

	"github.com/dustin/go-humanize"

	"github.com/nasfleet/nasfleet/internal/fleet"
	"github.com/nasfleet/nasfleet/messages"
)

type hostsCmd struct {
	JSON bool `name:"json" help:"Print a JSON array."`
}

func (c *hostsCmd) Run(ctx context.Context, a *app) error {
	return a.with(ctx, func(m *fleet.Manager) error {
		hosts, err := m.Hosts(ctx)
		if err != nil {
			return err
		}
		if c.JSON {
			return printJSON(a.stdout, hosts)
		}
		return printHosts(a.stdout, hosts)
	})
}

func printHosts(w io.Writer, hosts []messages.HostInfo) error {
	t := newTable(w, "ZONE", "HOST", "VERSION", "JOBS", "SEEN")
	for _, h := range hosts {
		t.row(h.Zone, h.Host, h.Version, fmt.Sprintf("%d/%d", len(h.Running), h.Slots), humanize.Time(h.SeenAt))
	}
	return t.flush()
}
