package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/nasfleet/nasfleet/internal/access"
	"github.com/nasfleet/nasfleet/internal/bus"
	"github.com/nasfleet/nasfleet/internal/fleet"
	"github.com/nasfleet/nasfleet/internal/secret"
)

type initCmd struct {
	Zone      []string      `help:"Zone to set up; repeatable. All that have hosts or streams if left out." sep:"none" placeholder:"ZONE"`
	JobsAge   time.Duration `help:"How long commands are kept." default:"720h"`
	EventsAge time.Duration `help:"How long events are kept." default:"2160h"`
	Check     bool          `help:"Change nothing: compare what is there with what it should be, and say what differs."`
	JSON      bool          `name:"json" help:"With --check: print a JSON array of objects with where, setting, have and want."`

	Server     string   `help:"Write the configuration of a nats-server into this folder, ready to run, and end." placeholder:"DIR"`
	ServerName []string `help:"Name or address that clients reach the server by; repeatable. This machine's name and loopback if left out." sep:"none" placeholder:"NAME"`
	Listen     string   `help:"Where the server listens." default:"0.0.0.0:4222" placeholder:"ADDR"`
	Users      string   `help:"How the server knows its users: ${enum}." enum:"jwt,nkey" default:"jwt"`
}

func (c *initCmd) Run(ctx context.Context, a *app) error {
	if c.Server != "" {
		return c.server(a)
	}
	cfg, err := a.busConfig()
	if err != nil {
		return err
	}
	cfg.Layout.JobsAge, cfg.Layout.EventsAge = c.JobsAge, c.EventsAge
	return a.withBus(ctx, cfg, func(b *bus.Bus) error {
		m := fleet.New(b, secret.NewFolder(a.Keys), a.log)
		if c.Check {
			return c.check(ctx, a, m)
		}
		zones, err := m.Setup(ctx, c.Zone)
		if err != nil {
			return err
		}
		for _, zone := range zones {
			if _, err := fmt.Fprintf(a.stdout, "zone %s is set up\n", zone); err != nil {
				return err
			}
		}
		return nil
	})
}

// server writes the folder of a nats-server.
func (c *initCmd) server(a *app) error {
	dir, err := filepath.Abs(c.Server)
	if err == nil {
		_, _, err = net.SplitHostPort(c.Listen)
	}
	if err != nil {
		return &fleet.Error{Class: fleet.Usage, Err: err}
	}
	name, err := os.Hostname()
	if err != nil {
		name = "localhost"
	}
	s := access.Server{Dir: dir, Name: name, Listen: c.Listen, Names: c.ServerName, Kind: access.Kind(c.Users)}
	if len(s.Names) == 0 {
		s.Names = []string{name, "localhost", "127.0.0.1", "::1"}
	}
	folder := secret.NewFolder(a.Keys)
	if _, err := secret.LoadOrCreateSigner(folder); err != nil {
		return &fleet.Error{Class: fleet.Usage, Err: err}
	}
	err = s.Write(folder, time.Now())
	if errors.Is(err, fs.ErrExist) {
		return &fleet.Error{Class: fleet.Usage, Err: err, Hint: "It is not written over. Name another folder, or move that one away."}
	}
	if err != nil {
		return &fleet.Error{Class: fleet.Usage, Err: err}
	}
	user := "--creds " + folder.Path(access.PublisherCreds)
	if s.Kind == access.NKey {
		user = "--nkey " + folder.Path(access.PublisherNKey)
	}
	_, err = fmt.Fprintf(a.stdout, `nats-server --config %s
publisher init --nats tls://%s --ca %s %s --zone ZONE
`, filepath.Join(dir, access.ConfFile), s.Names[0], filepath.Join(dir, access.CAFile), user)
	return err
}

// check prints what differs.
func (c *initCmd) check(ctx context.Context, a *app, m *fleet.Manager) error {
	found, err := m.Check(ctx, c.Zone)
	if err != nil {
		return err
	}
	servers, err := a.servers(ctx)
	if err != nil {
		return err
	}
	for _, s := range servers {
		if !s.SyncAlways {
			found = append(found, bus.Difference{Where: "server " + s.Name, Setting: "sync_interval", Have: "not always", Want: "always"})
		}
	}
	if c.JSON {
		err = printJSON(a.stdout, found)
	} else if len(found) > 0 {
		t := newTable(a.stdout, "WHERE", "SETTING", "HAVE", "WANT")
		for _, d := range found {
			t.row(d.Where, d.Setting, d.Have, d.Want)
		}
		err = t.flush()
	} else {
		_, err = fmt.Fprintln(a.stdout, "all is as it should be")
	}
	if err == nil && len(found) > 0 {
		return &fleet.Error{
			Class: fleet.Failed, Err: fmt.Errorf("not all is what it should be (%d)", len(found)),
			Hint: "publisher init makes what is missing; the nats CLI changes what differs (stream edit, consumer edit).",
		}
	}
	return err
}

// servers asks the servers about themselves, with the credentials of the system account. Without
// those nobody can tell how they write to their disks.
func (a *app) servers(ctx context.Context) ([]bus.ServerInfo, error) {
	cfg, err := a.systemConfig()
	if errors.Is(err, fs.ErrNotExist) {
		a.log.Warn().Msg("the servers are not asked how they write to their disks: that needs credentials of their system account, which init --server makes")
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var servers []bus.ServerInfo
	err = a.withBus(ctx, cfg, func(b *bus.Bus) (err error) {
		servers, err = b.Servers(ctx)
		return err
	})
	return servers, err
}

// systemConfig connects to the system account with the credentials of the key folder, or is
// fs.ErrNotExist where there are none.
func (a *app) systemConfig() (bus.Config, error) {
	cfg, err := a.busConfig()
	if err != nil {
		return cfg, err
	}
	folder := secret.NewFolder(a.Keys)
	cfg.Creds, cfg.NKey = folder.Path(access.SystemCreds), ""
	if _, err := os.Stat(cfg.Creds); errors.Is(err, fs.ErrNotExist) {
		cfg.Creds, cfg.NKey = "", folder.Path(access.SystemNKey)
		_, err = os.Stat(cfg.NKey)
		return cfg, err
	}
	return cfg, nil
}
