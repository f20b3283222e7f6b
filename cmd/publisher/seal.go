package main

import (
	"context"
	"fmt"

	"github.com/nasfleet/nasfleet/internal/fleet"
)

type sealCmd struct {
	Zone string `help:"Zone of the host." placeholder:"ZONE" required:""`
	Host string `help:"Host that may open it." placeholder:"HOST" required:""`
}

func (c *sealCmd) Run(ctx context.Context, a *app) error {
	passphrases := fleet.NewPassphrases(a.stdin)
	defer passphrases.Wipe()
	return a.with(ctx, func(m *fleet.Manager) error {
		sealed, err := m.Seal(ctx, c.Zone, c.Host, passphrases, "-")
		if err != nil {
			return err
		}
		_, err = fmt.Fprintln(a.stdout, sealed)
		return err
	})
}
