package main

import (
	"context"

	"github.com/nasfleet/nasfleet/internal/fleet"
)

type verifyCmd struct {
	fleet.BackupSettings
	fleet.ReadSettings
	jobFlags
}

func (c *verifyCmd) Run(ctx context.Context, a *app) error {
	passphrases := fleet.NewPassphrases(a.stdin)
	defer passphrases.Wipe()
	return a.with(ctx, func(m *fleet.Manager) error {
		job, err := m.VerifyJob(ctx, c.BackupSettings, c.ReadSettings, passphrases)
		if err != nil {
			return err
		}
		return a.runJob(ctx, m, job, c.jobFlags)
	})
}
