// Command hostworker runs on each host: it takes the host's commands from NATS JetStream, does
// the backups, and publishes what happened. `hostworker doctor` checks what the host needs.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/alecthomas/kong"
	kongyaml "github.com/alecthomas/kong-yaml"

	"github.com/nasfleet/nasfleet/messages"
)

// version is set by the linker.
var version = "dev"

// Exit codes.
const (
	exitOK     = 0
	exitFailed = 1
	exitUsage  = 2
)

type cli struct {
	Config    kong.ConfigFlag  `help:"YAML file; its keys are the names of the flags." placeholder:"FILE"`
	LogLevel  string           `help:"debug, info, warn or error." default:"info" enum:"debug,info,warn,error"`
	LogFormat string           `help:"json, or console for people." default:"json" enum:"json,console"`
	Version   kong.VersionFlag `help:"Print the version."`

	Run    runCmd    `cmd:"" help:"Take this host's commands and do them, until SIGTERM."`
	Doctor doctorCmd `cmd:"" help:"Check what this host needs; says for each failure what to do."`
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	os.Exit(run(ctx, os.Args[1:], os.Stdout, os.Stderr))
}

// run is main with its surroundings passed in.
func run(ctx context.Context, args []string, stdout, stderr io.Writer) int {
	var c cli
	exited := -1
	parser, err := kong.New(&c,
		kong.Name("hostworker"),
		kong.Description("Backs up this host's virtual machines, driven by messages over NATS.\n\n"+
			"Each flag can also be set by an environment variable (NASFLEET_ and its name) and by a key in the YAML file.\n\n"+
			"Exit codes: 0 stopped in order, or nothing to complain of; 1 failed; 2 wrong usage."),
		kong.Configuration(kongyaml.Loader, "/etc/nasfleet/hostworker.yaml"),
		kong.DefaultEnvars("NASFLEET"),
		kong.Vars{"version": version},
		kong.Writers(stdout, stderr),
		kong.Exit(func(code int) { exited = code }),
		kong.UsageOnError(),
		kong.BindTo(ctx, (*context.Context)(nil)),
		kong.BindTo(stdout, (*io.Writer)(nil)),
	)
	if err != nil {
		return report(stderr, err)
	}
	k, err := parser.Parse(args)
	if exited >= 0 { // --help, --version
		return exited
	}
	if err != nil {
		return report(stderr, fmt.Errorf("%w: %w", errUsage, err))
	}
	return report(stderr, k.Run(newLogger(c, stderr)))
}

// errUsage marks what the person who typed it can mend.
var errUsage = errors.New("usage")

// errUnhealthy is doctor's: it has said what is wrong already.
var errUnhealthy = errors.New("something has to be mended")

// report prints an error with its hint, and returns the exit code it means.
func report(stderr io.Writer, err error) int {
	if err == nil {
		return exitOK
	}
	_, _ = fmt.Fprintf(stderr, "hostworker: %v\n", err)
	var e *messages.Error
	if errors.As(err, &e) {
		_, _ = fmt.Fprintf(stderr, "  %s\n", e.Advice())
	}
	if errors.Is(err, errUsage) {
		return exitUsage
	}
	return exitFailed
}
