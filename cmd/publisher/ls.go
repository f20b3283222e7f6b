package main

import (
	"context"
	"fmt"
	"io"

	"github.com/nasfleet/nasfleet/internal/fleet"
	"github.com/nasfleet/nasfleet/messages"
)

type lsCmd struct {
	fleet.CatalogFilter
	Refresh bool `help:"First have the host (--zone, --host) read a repository (--repo …) and rebuild its part of the catalog."`
	fleet.RepositorySettings
	JSON bool `name:"json" help:"Print a JSON array."`
}

func (c *lsCmd) Run(ctx context.Context, a *app) error {
	return a.with(ctx, func(m *fleet.Manager) error {
		if c.Refresh {
			job, err := fleet.RefreshJob(fleet.RefreshSettings{
				RepositorySettings: c.RepositorySettings, Zone: c.Zone, Host: c.Host, VM: c.VM,
			})
			if err != nil {
				return err
			}
			if _, err := a.follow(ctx, m, job); err != nil {
				return err
			}
		}
		list, err := m.Backups(ctx, c.CatalogFilter)
		if err != nil {
			return err
		}
		if c.JSON {
			return printJSON(a.stdout, list)
		}
		return printBackups(a.stdout, list)
	})
}

func printBackups(w io.Writer, list []messages.CatalogEntry) error {
	t := newTable(w, "ID", "ZONE", "HOST", "VM", "CREATED", "MODE", "PARENT", "DISKS", "SIZE", "STORED", "FEATURES")
	for _, e := range list {
		t.row(e.ID, e.Zone, e.Host, e.VM, stamp(e.CreatedAt), string(e.Mode), orDash(e.Parent), fmt.Sprint(len(e.Disks)),
			size(e.VirtualBytes), size(e.StoredBytes), features(e))
	}
	return t.flush()
}
