package main

import (
	"context"
	"fmt"
	"io"

	"github.com/nasfleet/nasfleet/internal/fleet"
)

type zonePassphraseCmd struct {
	Rotate   passphraseRotateCmd   `cmd:"" help:"Keep a new passphrase for a zone; those before it stay, for the backups they open."`
	Ls       passphraseLsCmd       `cmd:"" help:"List what passphrases a zone keeps. None of them is shown."`
	Recovery passphraseRecoveryCmd `cmd:"" help:"Keep a recovery passphrase, which opens every backup of the zone as well."`
	Restore  passphraseRestoreCmd  `cmd:"" help:"Put a passphrase back under its revision, after the publisher's key was lost."`
}

// passphraseFlag says where a passphrase is read.
type passphraseFlag struct {
	PassphraseFile string `help:"File that holds the passphrase, - for standard input." placeholder:"FILE" default:"-"`
}

// newKeyFlag is of the commands that keep a new passphrase.
type newKeyFlag struct {
	NewKey bool `help:"Keep it with the key in the folder of --keys, made if there is none, although the zone's passphrases are kept with another: that one is lost."`
}

type passphraseRotateCmd struct {
	zoneFlag
	passphraseFlag
	newKeyFlag
}

func (c *passphraseRotateCmd) Run(ctx context.Context, a *app) error {
	return a.keep(ctx, c.Zone, c.PassphraseFile, fleet.Rotation{NewKey: c.NewKey})
}

type passphraseRecoveryCmd struct {
	zoneFlag
	passphraseFlag
	newKeyFlag
	Off bool `help:"Take no recovery passphrase from now on. Backups that have one keep it."`
}

func (c *passphraseRecoveryCmd) Run(ctx context.Context, a *app) error {
	if c.Off {
		return a.with(ctx, func(m *fleet.Manager) error { return m.DropRecovery(ctx, c.Zone) })
	}
	return a.keep(ctx, c.Zone, c.PassphraseFile, fleet.Rotation{Recovery: true, NewKey: c.NewKey})
}

// keep reads a passphrase, keeps it for a zone and prints its revision.
func (a *app) keep(ctx context.Context, zone, file string, r fleet.Rotation) error {
	passphrases := fleet.NewPassphrases(a.stdin)
	defer passphrases.Wipe()
	askTwice(a.stdin)
	p, err := passphrases.Read(file)
	if err != nil {
		return err
	}
	return a.with(ctx, func(m *fleet.Manager) error {
		revision, err := m.RotatePassphrase(ctx, zone, p, r)
		if err != nil {
			return err
		}
		_, err = fmt.Fprintln(a.stdout, revision)
		return err
	})
}

type passphraseRestoreCmd struct {
	zoneFlag
	passphraseFlag
	Revision string `help:"The revision, as ls and show print it." placeholder:"ULID" required:""`
}

func (c *passphraseRestoreCmd) Run(ctx context.Context, a *app) error {
	passphrases := fleet.NewPassphrases(a.stdin)
	defer passphrases.Wipe()
	p, err := passphrases.Read(c.PassphraseFile)
	if err != nil {
		return err
	}
	return a.with(ctx, func(m *fleet.Manager) error { return m.RestorePassphrase(ctx, c.Zone, c.Revision, p) })
}

type passphraseLsCmd struct {
	zoneFlag
	JSON bool `name:"json" help:"Print a JSON array."`
}

func (c *passphraseLsCmd) Run(ctx context.Context, a *app) error {
	return a.with(ctx, func(m *fleet.Manager) error {
		list, err := m.ZonePassphrases(ctx, c.Zone)
		if err != nil {
			return err
		}
		if c.JSON {
			return printJSON(a.stdout, list)
		}
		return printPassphrases(a.stdout, list)
	})
}

func printPassphrases(w io.Writer, list []fleet.PassphraseInfo) error {
	t := newTable(w, "REVISION", "KIND", "SET", "IN USE", "OPENS", "BACKUPS")
	for _, p := range list {
		kind := "passphrase"
		if p.Recovery {
			kind = "recovery"
		}
		t.row(p.Revision, kind, stamp(p.CreatedAt), yesNo(p.Current), yesNo(p.Opens), fmt.Sprint(p.Backups))
	}
	return t.flush()
}

func yesNo(b bool) string {
	if b {
		return "yes"
	}
	return "no"
}
