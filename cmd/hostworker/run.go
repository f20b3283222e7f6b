package main

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/rs/zerolog"

	"github.com/nasfleet/nasfleet/internal/bus"
	"github.com/nasfleet/nasfleet/internal/exec"
	"github.com/nasfleet/nasfleet/internal/exec/hypervisor"
	"github.com/nasfleet/nasfleet/internal/secret"
	"github.com/nasfleet/nasfleet/internal/worker"
)

type runCmd struct {
	settings `embed:""`
}

// Help is printed by --help.
func (*runCmd) Help() string {
	return "NATS and libvirt need not be there yet: the worker waits for them, and finds them again when they were restarted. " +
		"SIGTERM and SIGINT stop it in order: running jobs have --grace to end, and are then stopped and given back. With a second signal they do not get the grace. A third kills the worker."
}

// Run works until ctx ends.
func (c *runCmd) Run(ctx context.Context, h hurry, log zerolog.Logger) error {
	log = log.With().Str("zone", c.Zone).Str("host", c.Host).Logger()
	if err := lowerPriority(c.Nice); err != nil {
		return err
	}
	if err := enterNamespace(log); err != nil {
		return err
	}
	err := c.work(ctx, h, log)
	if ctx.Err() != nil && errors.Is(err, context.Canceled) {
		err = nil // it was stopped while it waited
	}
	if err == nil {
		log.Info().Msg("stopped")
	}
	return err
}

// work wires the parts and works. What was started last is stopped first: NATS outlives all that
// has something to say.
func (c *runCmd) work(ctx context.Context, h hurry, log zerolog.Logger) (err error) {
	if err := c.makeFolders(); err != nil {
		return err
	}
	key, err := secret.LoadOrCreateKey(hostKey(c.StateDir))
	if err != nil {
		return err
	}
	authority, err := c.authority(log)
	if err != nil {
		return err
	}
	b, stopBus, err := c.bus(ctx, key, log)
	if err != nil {
		return err
	}
	defer stopBus()
	systemd := newSupervisor(c.Jobs, log)
	metrics, s := worker.NewMetrics(), newStartup(systemd, log)
	stopMetrics, err := serveMetrics(c.Metrics, metrics, s.health(b), log)
	if err != nil {
		return err
	}
	defer stopMetrics()
	hv, err := c.hypervisor(ctx, s, log)
	if err != nil {
		return err
	}
	if hv != nil {
		defer func() { err = errors.Join(err, hv.Close()) }()
	}
	executor, err := exec.New(exec.Config{
		Zone: c.Zone, Host: c.Host, Version: version,
		RunDir: c.RunDir, ScratchDir: c.Scratch, ScratchReserve: c.ScratchReserve << 20,
		StateDir: c.StateDir, AllowPaths: c.AllowPath, AllowRBD: c.AllowRBD, CephConf: c.CephConf, CephUser: c.CephUser,
		MountCredentials: c.MountCredentials, MountOptions: c.MountOption,
		MountTimeout: c.MountTimeout, StallTimeout: c.StallTimeout, LUKSIterTime: c.LUKSIterTime, Key: key, Hypervisor: hv, Log: log,
		Watchdog: watchdog(log),
	})
	if err != nil {
		return err
	}
	executor.ThawLeft(ctx)
	// Before anything is waited for: guests' scratch files may be growing.
	defer executor.Sweep(ctx)()
	w, stopCommands, err := c.worker(b, key, authority, executor, metrics, h, log)
	if err != nil {
		return err
	}
	defer stopCommands()
	if err := c.ensureZone(ctx, s, b, log); err != nil {
		return err
	}
	stopControl, err := b.ServeControl(c.Zone, c.Host, control(w))
	if err != nil {
		return err
	}
	defer stopControl()
	s.done()
	log.Info().Str("version", version).Int("jobs", c.Jobs).Msg("ready")
	defer systemd.follow(ctx, w.Pulse)()
	return w.Run(ctx)
}

// authority checks commands; nil where the host was not told whose to take.
func (c *runCmd) authority(log zerolog.Logger) (worker.Authority, error) {
	if len(c.PublisherKey) == 0 {
		log.Warn().Msg("commands are not authenticated: whoever may publish for this host commands it (--publisher-key)")
		return nil, nil
	}
	v, err := secret.NewVerifier(c.CommandAge, c.PublisherKey...)
	if err != nil {
		return nil, &usageError{err: err, command: " run"}
	}
	return v, nil
}

// makeFolders makes the worker's own folders. The scratch folder, which guests have to reach, is
// below the state folder by default.
func (c *runCmd) makeFolders() error {
	for _, dir := range []string{c.StateDir, c.RunDir} {
		if err := os.MkdirAll(dir, 0o711); err != nil {
			return fmt.Errorf("make the worker's folders: %w", err)
		}
	}
	return nil
}

// bus prepares the connection to NATS, after starting the embedded server if there is to be one.
func (c *runCmd) bus(ctx context.Context, key *secret.Key, log zerolog.Logger) (*bus.Bus, func(), error) {
	cfg := c.busConfig("hostworker")
	cfg.Persist, cfg.Log = true, log
	var err error
	if cfg.EventKey, err = key.Derive("event ids"); err != nil {
		return nil, nil, err
	}
	stop := func() {}
	if c.EmbeddedNATS != "" {
		server, err := bus.StartServer(ctx, bus.ServerConfig{Dir: c.EmbeddedNATS, Listen: c.Listen, Log: log})
		if err != nil {
			return nil, nil, err
		}
		log.Info().Str("url", server.ClientURL()).Msg("the embedded NATS server listens")
		cfg.Server, stop = server, server.Stop
	}
	b, err := bus.Connect(ctx, cfg)
	if err != nil {
		stop()
		return nil, nil, err
	}
	return b, func() { b.Close(); stop() }, nil
}

// hypervisor waits for libvirt; nil on a host that backs up images alone.
func (c *runCmd) hypervisor(ctx context.Context, s *startup, log zerolog.Logger) (hv *hypervisor.Hypervisor, err error) {
	if c.Libvirt == noLibvirt {
		return nil, nil
	}
	always := func(error) bool { return true } // Connect fails for no reason but libvirt's
	err = s.await(ctx, "libvirt", always, func(ctx context.Context) error {
		hv, err = hypervisor.Connect(ctx, c.Libvirt, log)
		return err
	})
	return hv, err
}

// worker takes the lock of the host's name, and returns the worker and what stops its queue.
func (c *runCmd) worker(b *bus.Bus, key *secret.Key, authority worker.Authority, executor *exec.Executor, m *worker.Metrics, h hurry, log zerolog.Logger) (*worker.Worker, func(), error) {
	public, err := key.Public()
	if err != nil {
		return nil, nil, err
	}
	commands, err := b.Commands(c.Zone, c.Host)
	if err != nil {
		return nil, nil, err
	}
	w, err := worker.New(worker.Config{
		Zone: c.Zone, Host: c.Host, Version: version, SealKey: public, Authority: authority, Jobs: c.Jobs, StateDir: c.StateDir,
		AckWait: c.AckWait, RetryDelay: c.RetryDelay, JobTimeout: c.JobTimeout, Grace: c.Grace, Hurry: h, Metrics: m, Log: log,
	}, queue{commands}, outbox{b}, executor)
	if err != nil {
		commands.Stop()
		return nil, nil, err
	}
	return w, commands.Stop, nil
}

// ensureZone waits for NATS and makes the zone's streams where they are missing. A user without
// the right to look at streams is a host's as it should be: the management side has made them.
func (c *runCmd) ensureZone(ctx context.Context, s *startup, b *bus.Bus, log zerolog.Logger) error {
	absent := func(err error) bool { return errors.Is(err, bus.ErrUnreachable) }
	err := s.await(ctx, "NATS", absent, func(ctx context.Context) error { return b.EnsureZone(ctx, c.Zone) })
	if errors.Is(err, bus.ErrUnauthorized) && b.Connected() {
		log.Info().Err(err).Msg("this user may not make the zone's streams; they are expected to be there")
		return nil
	}
	return err
}
