package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"time"

	"github.com/dustin/go-humanize"

	"github.com/nasfleet/nasfleet/internal/access"
	"github.com/nasfleet/nasfleet/internal/bus"
	"github.com/nasfleet/nasfleet/internal/fleet"
	"github.com/nasfleet/nasfleet/internal/secret"
	"github.com/nasfleet/nasfleet/messages"
)

type hostCmd struct {
	Add    hostAddCmd    `cmd:"" help:"Make the credentials of a host, with exactly the rights it needs, and pin its seal key."`
	Ls     hostLsCmd     `cmd:"" help:"List the hosts that were added."`
	Revoke hostRevokeCmd `cmd:"" help:"Have a host's credentials taken no more."`
}

// hostName is ZONE/HOST, one argument.
type hostName struct {
	Name string `arg:"" help:"The host." placeholder:"ZONE/HOST"`
}

func (n hostName) split() (zone, host string, err error) {
	zone, host, _ = strings.Cut(n.Name, "/")
	if messages.CheckLabel("zone", zone) != nil || messages.CheckLabel("host", host) != nil {
		return "", "", &fleet.Error{Class: fleet.Usage, Err: fmt.Errorf("%q is not ZONE/HOST, both of [a-z0-9-]", n.Name)}
	}
	return zone, host, nil
}

type hostAddCmd struct {
	hostName
	SealKey string `help:"The host's public key, as hostworker key prints it there (X…)." required:"" placeholder:"KEY"`
	Out     string `help:"File to write the credentials to, mode 0600." required:"" placeholder:"FILE"`
	Server  string `help:"Folder that init --server made, whose list of users is written anew; needed with --users nkey." placeholder:"DIR"`
}

// Help is printed by --help.
func (*hostAddCmd) Help() string {
	return "It asks no server: with --users jwt the credentials are good as soon as they are made."
}

func (c *hostAddCmd) Run(a *app) error {
	zone, host, err := c.split()
	if err != nil {
		return err
	}
	folder := secret.NewFolder(a.Keys)
	if err := needsServer(folder, c.Server); err != nil {
		return err
	}
	// Before the host is noted: credentials that cannot be written are nobody's.
	out, err := os.OpenFile(c.Out, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return &fleet.Error{Class: fleet.Usage, Err: err}
	}
	data, err := access.NewHosts(folder).Add(zone, host, c.SealKey, time.Now())
	if err == nil {
		_, err = out.Write(data)
		clear(data)
	}
	if err = errors.Join(err, out.Sync(), out.Close()); err != nil {
		err = errors.Join(err, os.Remove(c.Out))
		return hostError(c.Name, err)
	}
	if c.Server != "" {
		return a.writeHosts(folder, c.Server)
	}
	return nil
}

// writeHosts writes the users of a server's configuration anew, and says that it has to read them.
func (a *app) writeHosts(folder secret.Folder, dir string) error {
	if err := access.WriteHosts(folder, dir); err != nil {
		return &fleet.Error{Class: fleet.Usage, Err: err}
	}
	_, err := fmt.Fprintln(a.stdout, "nats-server --signal reload")
	return err
}

// needsServer refuses where the server's list of users has to be written and nobody said where.
func needsServer(folder secret.Folder, dir string) error {
	kind, err := access.KindOf(folder)
	if err == nil && kind == access.NKey && dir == "" {
		err = errors.New("the server knows its users from a file (--users nkey): --server has to name its folder")
	}
	if err != nil {
		return &fleet.Error{Class: fleet.Usage, Err: err, Hint: "publisher init --server makes the server's folder and, for --users jwt, the keys to add hosts with."}
	}
	return nil
}

func hostError(name string, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, access.ErrUnknownHost):
		return &fleet.Error{Class: fleet.NotFound, Err: err, Hint: "publisher host ls lists those that were added."}
	case errors.Is(err, access.ErrAdded):
		return &fleet.Error{Class: fleet.Usage, Err: err, Hint: "For new credentials revoke it first: publisher host revoke " + name + "."}
	}
	return &fleet.Error{Class: fleet.Usage, Err: err}
}

type hostLsCmd struct {
	JSON bool `name:"json" help:"Print a JSON array."`
}

func (c *hostLsCmd) Run(a *app) error {
	hosts, err := access.NewHosts(secret.NewFolder(a.Keys)).List()
	if err != nil {
		return &fleet.Error{Class: fleet.Usage, Err: err}
	}
	if c.JSON {
		return printJSON(a.stdout, hosts)
	}
	t := newTable(a.stdout, "ZONE", "HOST", "ADDED", "STATE", "SEAL KEY")
	for _, h := range hosts {
		state := "added"
		if h.RevokedAt != nil {
			state = "revoked " + humanize.Time(*h.RevokedAt)
		}
		t.row(h.Zone, h.Host, humanize.Time(h.AddedAt), state, h.SealKey)
	}
	return t.flush()
}

type hostRevokeCmd struct {
	hostName
	Server string `help:"Folder that init --server made. Its list of users, or its accounts, are written anew; needed with --users nkey." placeholder:"DIR"`
}

// Help is printed by --help.
func (*hostRevokeCmd) Help() string {
	return "With --users jwt the running servers are told; the host is disconnected at once. Until they are reached this fails, and can be tried again."
}

func (c *hostRevokeCmd) Run(ctx context.Context, a *app) error {
	zone, host, err := c.split()
	if err != nil {
		return err
	}
	folder := secret.NewFolder(a.Keys)
	if err := needsServer(folder, c.Server); err != nil {
		return err
	}
	if _, err := access.NewHosts(folder).Revoke(zone, host, time.Now()); err != nil {
		return hostError(c.Name, err)
	}
	if kind, err := access.KindOf(folder); err != nil || kind == access.NKey {
		return errors.Join(err, a.writeHosts(folder, c.Server))
	}
	if c.Server != "" {
		if err := access.WriteAccounts(folder, c.Server); err != nil {
			return &fleet.Error{Class: fleet.Usage, Err: err}
		}
	}
	return a.pushAccounts(ctx, folder)
}

// pushAccounts gives the running servers the accounts as they are now.
func (a *app) pushAccounts(ctx context.Context, folder secret.Folder) error {
	tokens, err := access.AccountJWTs(folder)
	if err != nil {
		return &fleet.Error{Class: fleet.Usage, Err: err}
	}
	cfg, err := a.systemConfig()
	if errors.Is(err, fs.ErrNotExist) {
		return &fleet.Error{Class: fleet.Usage, Err: err, Hint: "init --server made these credentials; they are needed to tell the servers."}
	}
	if err != nil {
		return err
	}
	return a.withBus(ctx, cfg, func(b *bus.Bus) error {
		for _, token := range tokens {
			if err := b.UpdateAccount(ctx, token); err != nil {
				return err
			}
		}
		return nil
	})
}
