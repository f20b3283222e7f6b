package main

import (
	"context"

	"github.com/nasfleet/nasfleet/internal/fleet"
)

type rekeyCmd struct {
	fleet.RekeySettings
	jobFlags
}

func (c *rekeyCmd) Run(ctx context.Context, a *app) error {
	passphrases := fleet.NewPassphrases(a.stdin)
	defer passphrases.Wipe()
	return a.with(ctx, func(m *fleet.Manager) error {
		job, err := m.RekeyJob(ctx, c.RekeySettings, passphrases)
		if err != nil {
			return err
		}
		return a.runJob(ctx, m, job, c.jobFlags)
	})
}
