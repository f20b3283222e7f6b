package main

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/nasfleet/nasfleet/internal/fleet"
)

type zoneCmd struct {
	Set        zoneSetCmd        `cmd:"" help:"Change settings of a zone: KEY=VALUE, all of them or none."`
	Get        zoneGetCmd        `cmd:"" help:"Show the settings of a zone, or the value of one."`
	Unset      zoneUnsetCmd      `cmd:"" help:"Give settings of a zone their defaults."`
	Ls         zoneLsCmd         `cmd:"" help:"List the zones with what is set for them."`
	Passphrase zonePassphraseCmd `cmd:"" help:"The passphrases that are kept for a zone."`
}

// zoneFlag is of every command on one zone.
type zoneFlag struct {
	Zone string `help:"The zone." placeholder:"ZONE" required:""`
}

type zoneSetCmd struct {
	zoneFlag
	Settings []string `arg:"" name:"key=value" help:"A setting and its value, such as nas.backup.bandwidth.limit.mbps=100."`
}

func (c *zoneSetCmd) Run(ctx context.Context, a *app) error {
	return a.with(ctx, func(m *fleet.Manager) error { return m.Set(ctx, c.Zone, c.Settings) })
}

type zoneUnsetCmd struct {
	zoneFlag
	Keys []string `arg:"" name:"key" help:"The name of a setting."`
}

func (c *zoneUnsetCmd) Run(ctx context.Context, a *app) error {
	return a.with(ctx, func(m *fleet.Manager) error { return m.Unset(ctx, c.Zone, c.Keys) })
}

type zoneGetCmd struct {
	zoneFlag
	Key  string `arg:"" optional:"" help:"The name of a setting; all if left out."`
	JSON bool   `name:"json" help:"Print a JSON object."`
}

func (c *zoneGetCmd) Run(ctx context.Context, a *app) error {
	return a.with(ctx, func(m *fleet.Manager) error {
		if c.Key != "" {
			s, err := m.Get(ctx, c.Zone, c.Key)
			if err != nil {
				return err
			}
			if c.JSON {
				return printJSON(a.stdout, s)
			}
			_, err = fmt.Fprintln(a.stdout, printable(s.Value))
			return err
		}
		z, err := m.Zone(ctx, c.Zone)
		if err != nil {
			return err
		}
		if c.JSON {
			return printJSON(a.stdout, z)
		}
		return printSettings(a.stdout, z)
	})
}

func printSettings(w io.Writer, z fleet.Zone) error {
	t := newTable(w, "SETTING", "VALUE", "TYPE", "DEFAULT", "DESCRIPTION")
	for _, s := range z.Settings {
		t.row(s.Key, orDash(s.Value), s.Type, orDash(s.Default), s.Description)
	}
	if err := t.flush(); err != nil || z.Recovery == "" {
		return err
	}
	_, err := fmt.Fprintln(w, "recovery passphrase: "+printable(z.Recovery))
	return err
}

type zoneLsCmd struct {
	JSON bool `name:"json" help:"Print a JSON array."`
}

func (c *zoneLsCmd) Run(ctx context.Context, a *app) error {
	return a.with(ctx, func(m *fleet.Manager) error {
		// What can be read is shown beside an error that names what cannot.
		zones, unreadable := m.Zones(ctx)
		if zones == nil && unreadable != nil {
			return unreadable
		}
		if c.JSON {
			return errors.Join(printJSON(a.stdout, zones), unreadable)
		}
		t := newTable(a.stdout, "ZONE", "SETTING", "VALUE", "TYPE", "DEFAULT")
		for _, z := range zones {
			for _, s := range z.Settings {
				t.row(z.Zone, s.Key, orDash(s.Value), s.Type, orDash(s.Default))
			}
		}
		return errors.Join(t.flush(), unreadable)
	})
}
