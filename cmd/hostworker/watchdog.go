package main

import (
	"context"
	"io"
	"os"

	"github.com/rs/zerolog"

	"github.com/nasfleet/nasfleet/internal/exec/hypervisor"
)

// watchdogCommand is the name of the command that run starts for each freeze of a guest.
const watchdogCommand = "thaw-watchdog"

// watchdogCmd takes hypervisor.WatchConfig.Args. It has no flags, which would be settings too.
type watchdogCmd struct {
	URI       string `arg:""`
	UUID      string `arg:""`
	RunDir    string `arg:""`
	OwnMounts string `arg:"" optional:""`
}

// Run guards one freeze.
func (c *watchdogCmd) Run(ctx context.Context, stdout io.Writer, log zerolog.Logger) error {
	return hypervisor.Watch(ctx, hypervisor.WatchConfig{
		URI: c.URI, UUID: c.UUID, RunDir: c.RunDir, OwnMounts: c.OwnMounts != "",
	}, os.Stdin, stdout, log)
}

// watchdog is this very program, also when its file has been replaced by an upgrade.
func watchdog(log zerolog.Logger) hypervisor.Watchdog {
	return hypervisor.Watchdog{
		Program: "/proc/self/exe",
		Args:    []string{"--log-level", log.GetLevel().String(), watchdogCommand},
	}
}
