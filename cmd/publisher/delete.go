package main

import (
	"context"

	"github.com/nasfleet/nasfleet/internal/fleet"
)

type deleteCmd struct {
	fleet.BackupSettings
	Cascade bool `help:"Also delete the incrementals that need the backup; without it they are a reason to refuse."`
	jobFlags
}

func (c *deleteCmd) Run(ctx context.Context, a *app) error {
	return a.with(ctx, func(m *fleet.Manager) error {
		job, err := m.DeleteJob(ctx, c.BackupSettings, c.Cascade)
		if err != nil {
			return err
		}
		return a.runJob(ctx, m, job, c.jobFlags)
	})
}
