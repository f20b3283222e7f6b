package main

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"time"

	"github.com/rs/zerolog"

	"github.com/nasfleet/nasfleet/internal/bus"
	"github.com/nasfleet/nasfleet/internal/exec"
	"github.com/nasfleet/nasfleet/internal/exec/hypervisor"
	"github.com/nasfleet/nasfleet/internal/secret"
	"github.com/nasfleet/nasfleet/internal/worker"
)

// noLibvirt is the value of --libvirt on a host without VMs.
const noLibvirt = "none"

type runCmd struct {
	settings `embed:""`
}

// Run wires the parts and works until ctx ends.
func (c *runCmd) Run(ctx context.Context, log zerolog.Logger) (err error) {
	if err := enterNamespace(); err != nil {
		return err
	}
	log = log.With().Str("zone", c.Zone).Str("host", c.Host).Logger()
	if err := makeFolders(c.StateDir, c.RunDir); err != nil {
		return err
	}
	key, err := secret.LoadOrCreateKey(filepath.Join(c.StateDir, "host.key"))
	if err != nil {
		return err
	}
	b, stopBus, err := c.bus(ctx, log)
	if err != nil {
		return err
	}
	defer stopBus()
	hv, err := c.hypervisor(ctx, log)
	if err != nil {
		return err
	}
	if hv != nil {
		defer func() { err = errors.Join(err, hv.Close()) }()
	}
	executor, err := exec.New(exec.Config{
		Zone: c.Zone, Host: c.Host, Version: version,
		RunDir: c.RunDir, ScratchDir: c.Scratch, ScratchReserve: c.ScratchReserve << 20,
		MountTimeout: c.MountTimeout, Key: key, Hypervisor: hv, Log: log,
	})
	if err != nil {
		return err
	}
	return c.work(ctx, log, b, key, executor)
}

// work runs the worker, beside the server for metrics if there is to be one.
func (c *runCmd) work(ctx context.Context, log zerolog.Logger, b *bus.Bus, key *secret.Key, executor *exec.Executor) error {
	public, err := key.Public()
	if err != nil {
		return err
	}
	commands, err := b.Commands(c.Zone, c.Host)
	if err != nil {
		return err
	}
	defer commands.Stop()
	metrics := worker.NewMetrics()
	stopMetrics, err := serveMetrics(c.Metrics, metrics, b.Connected, log)
	if err != nil {
		return err
	}
	defer stopMetrics()
	w, err := worker.New(worker.Config{
		Zone: c.Zone, Host: c.Host, Version: version, SealKey: public, Jobs: c.Jobs, StateDir: c.StateDir,
		RetryDelay: c.RetryDelay, Grace: c.Grace, Metrics: metrics, Log: log,
	}, queue{commands}, outbox{b}, executor)
	if err != nil {
		return err
	}
	log.Info().Str("version", version).Int("jobs", c.Jobs).Msg("ready")
	defer log.Info().Msg("stopped")
	return w.Run(ctx)
}

// bus connects to NATS, after starting the embedded server if there is to be one. A server that
// is not there yet is waited for: hosts and servers boot in any order.
func (c *settings) bus(ctx context.Context, log zerolog.Logger) (*bus.Bus, func(), error) {
	cfg := bus.Config{
		URL: c.NATS, Context: c.Context, Creds: c.Creds, Name: "hostworker " + c.Zone + "/" + c.Host,
		InboxPrefix: bus.HostInbox(c.Zone, c.Host), Persist: true, Log: log,
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
	stopAll := func() { b.Close(); stop() }
	if err := c.ensureZone(ctx, b, log); err != nil {
		stopAll()
		return nil, nil, err
	}
	return b, stopAll, nil
}

// ensureZone makes the zone's streams where they are missing, and waits for the server to be there.
func (c *settings) ensureZone(ctx context.Context, b *bus.Bus, log zerolog.Logger) error {
	const pause = 2 * time.Second
	for {
		err := b.EnsureZone(ctx, c.Zone)
		if err == nil || !errors.Is(err, bus.ErrUnreachable) {
			return err
		}
		log.Warn().Err(err).Msg("waits for NATS")
		t := time.NewTimer(pause)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return fmt.Errorf("stopped while waiting for NATS: %w", err)
		}
	}
}

// hypervisor connects to libvirt; nil on a host that backs up images alone.
func (c *settings) hypervisor(ctx context.Context, log zerolog.Logger) (*hypervisor.Hypervisor, error) {
	if c.Libvirt == noLibvirt {
		return nil, nil
	}
	return hypervisor.Connect(ctx, c.Libvirt, log)
}
