package main

import (
	"context"

	"github.com/nasfleet/nasfleet/internal/fleet"
)

type deleteCmd struct {
	fleet.BackupSettings
	jobFlags
}

func (c *deleteCmd) Run(ctx context.Context, a *app) error {
	return a.with(ctx, func(m *fleet.Manager) error {
		job, err := m.DeleteJob(ctx, c.BackupSettings)
		if err != nil {
			return err
		}
		return a.runJob(ctx, m, job, c.jobFlags)
	})
}
