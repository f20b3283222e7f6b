package main

import (
	"context"

	"github.com/nasfleet/nasfleet/internal/fleet"
)

type restoreCmd struct {
	fleet.RestoreSettings
	jobFlags
}

func (c *restoreCmd) Run(ctx context.Context, a *app) error {
	passphrases := fleet.NewPassphrases(a.stdin)
	defer passphrases.Wipe()
	return a.with(ctx, func(m *fleet.Manager) error {
		job, err := m.RestoreJob(ctx, c.RestoreSettings, passphrases)
		if err != nil {
			return err
		}
		return a.runJob(ctx, m, job, c.jobFlags)
	})
}
