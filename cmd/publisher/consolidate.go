package main

import (
	"context"

	"github.com/nasfleet/nasfleet/internal/fleet"
)

type consolidateCmd struct {
	fleet.ConsolidateSettings
	DryRun bool `help:"Print the command as it would be sent, passphrases left out, and publish nothing."`
	jobFlags
}

func (c *consolidateCmd) Run(ctx context.Context, a *app) error {
	passphrases := fleet.NewPassphrases(a.stdin)
	defer passphrases.Wipe()
	return a.with(ctx, func(m *fleet.Manager) error {
		job, err := m.ConsolidateJob(ctx, c.ConsolidateSettings, passphrases)
		if err != nil {
			return err
		}
		if !c.DryRun {
			return a.runJob(ctx, m, job, c.jobFlags)
		}
		if err := m.Fill(ctx, []*fleet.Job{job}); err != nil {
			return err
		}
		return printJSON(a.stdout, job.Redacted())
	})
}
