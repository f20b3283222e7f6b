// Command hostworker runs on each host: it takes the host's commands from NATS JetStream, does
// the backups, and publishes what happened. `hostworker doctor` checks what the host needs.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"syscall"

	"github.com/alecthomas/kong"
	"github.com/rs/zerolog"

	"github.com/nasfleet/nasfleet/internal/bus"
	"github.com/nasfleet/nasfleet/internal/flagfile"
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

// standardFile holds the host's settings when it exists.
const standardFile = "/etc/nasfleet/hostworker.yaml"

const description = `Backs up this host's virtual machines, driven by messages over NATS.

Each flag can also be set by its environment variable and in a YAML file (${standard_file} and --config), under the flag's name: at the top, or below run or doctor. A flag wins over the environment, that over --config, and that over ${standard_file}.

Exit codes: 0 stopped in order, or nothing to mend; 1 failed, or something to mend; 2 wrong usage.`

type cli struct {
	Config    kong.ConfigFlag  `help:"YAML file with settings." placeholder:"FILE" env:"-"`
	LogLevel  string           `help:"What is logged to standard error: ${enum}." default:"info" enum:"debug,info,warn,error"`
	LogFormat string           `help:"json, or console for people." default:"json" enum:"json,console"`
	Version   kong.VersionFlag `help:"Print the version." env:"-"`

	Run    runCmd    `cmd:"" help:"Take this host's commands and do them, until SIGTERM."`
	Key    keyCmd    `cmd:"" help:"Print the public key that passphrases for this host are sealed with; makes it when there is none."`
	Doctor doctorCmd `cmd:"" help:"Check what this host needs; says for each failure what to do."`

	ThawWatchdog watchdogCmd `cmd:"" hidden:"" help:"Started by run for each freeze of a guest."`
}

func main() {
	ctx, h, release := catchSignals()
	code := run(ctx, h, os.Args[1:], standardFile, os.Stdout, os.Stderr)
	release()
	os.Exit(code)
}

// run is main with its surroundings passed in.
func run(ctx context.Context, h hurry, args []string, standard string, stdout, stderr io.Writer) int {
	var c cli
	parser, err := newParser(&c, standard, stdout, stderr)
	if err != nil {
		return report(stderr, &usageError{err: err})
	}
	parsed, err := parser.Parse(args)
	if err != nil {
		return report(stderr, asUsage(err))
	}
	parsed.BindTo(ctx, (*context.Context)(nil))
	parsed.Bind(h)
	return report(stderr, parsed.Run(newLogger(c, stderr)))
}

func newParser(c *cli, standard string, stdout, stderr io.Writer) (*kong.Kong, error) {
	return kong.New(c,
		kong.Name("hostworker"), kong.Description(description), kong.Writers(stdout, stderr),
		flagfile.Option(standard), kong.DefaultEnvars("NASFLEET"),
		kong.Vars{"version": version, "standard_file": standard, "default_nats": bus.DefaultURL, "default_listen": bus.DefaultListen},
		kong.ConfigureHelp(kong.HelpOptions{Compact: true}),
		kong.BindTo(stdout, (*io.Writer)(nil)),
	)
}

// usageError is what the person who typed it can mend.
type usageError struct {
	err     error
	command string
}

func (e *usageError) Error() string { return e.err.Error() }
func (e *usageError) Unwrap() error { return e.err }

func asUsage(err error) error {
	u := &usageError{err: err}
	var p *kong.ParseError
	if errors.As(err, &p) && p.Context != nil && p.Context.Selected() != nil {
		u.command = " " + p.Context.Selected().Name
	}
	return u
}

// report prints an error and what to do about it, and returns the exit code it means.
func report(stderr io.Writer, err error) int {
	if err == nil {
		return exitOK
	}
	_, _ = fmt.Fprintf(stderr, "hostworker: %v\n", err)
	if h := hint(err); h != "" {
		_, _ = fmt.Fprintln(stderr, h)
	}
	var usage *usageError
	if errors.As(err, &usage) {
		return exitUsage
	}
	return exitFailed
}

// hint says in a sentence what to do about an error.
func hint(err error) string {
	var usage *usageError
	var coded *messages.Error
	switch {
	case errors.Is(err, errUnhealthy):
		return "" // doctor has said it already
	case errors.As(err, &usage):
		return "See hostworker" + usage.command + " --help."
	case errors.As(err, &coded):
		return coded.Advice()
	case bus.Hint(err) != "":
		return bus.Hint(err)
	case errors.Is(err, os.ErrNotExist):
		return "Check the files that are named (--creds, --context)."
	case errors.Is(err, syscall.EADDRINUSE):
		return "Stop what listens there, or give this worker another address (--listen, --metrics)."
	case errors.Is(err, syscall.EWOULDBLOCK):
		return "Stop the other worker, or give this one another --host and --state-dir."
	case errors.Is(err, os.ErrPermission):
		return "Run it as root, or name folders that this user may write (--state-dir, --run-dir, --scratch)."
	}
	return "hostworker doctor, with the same settings, checks what this host needs."
}

func newLogger(c cli, stderr io.Writer) zerolog.Logger {
	level, err := zerolog.ParseLevel(c.LogLevel)
	if err != nil {
		level = zerolog.InfoLevel
	}
	if c.LogFormat == "console" {
		stderr = zerolog.ConsoleWriter{Out: stderr, TimeFormat: "15:04:05", NoColor: os.Getenv("NO_COLOR") != ""}
	}
	return zerolog.New(stderr).Level(level).With().Timestamp().Logger()
}
