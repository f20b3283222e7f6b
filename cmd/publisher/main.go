// Command publisher is the management side of nasfleet: it publishes commands to hosts, follows
// their jobs, and shows what backups exist.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/signal"
	"strings"
	"syscall"
	_ "time/tzdata" // a static program, on machines without the time zones
	"unicode"

	"github.com/alecthomas/kong"
	"github.com/rs/zerolog"

	"github.com/nasfleet/nasfleet/internal/bus"
	"github.com/nasfleet/nasfleet/internal/fleet"
	"github.com/nasfleet/nasfleet/internal/secret"
)

const description = `Take, restore, verify and delete backups of VMs on many hosts, over NATS JetStream.

Each flag can also be set by its environment variable and, with --config, in a YAML file: under
the name of its command, or at the top for every command that has it.

Exit codes: 0 done, 1 the job failed, 2 wrong usage, 3 NATS not reachable or access refused,
4 no such thing, 130 interrupted (a job that was followed goes on).`

// version is set by the linker.
var version = "dev"

// cli is the command line; kong reads its tags.
type cli struct {
	connection

	Take        takeCmd        `cmd:"" help:"Back up a VM or disk images: of one host, or of a fleet (--targets)."`
	Restore     restoreCmd     `cmd:"" help:"Restore the disks of a backup: to a folder, over a stopped VM's, or over RBD images."`
	Verify      verifyCmd      `cmd:"" help:"Read a stored backup back and compare it with its digests."`
	Delete      deleteCmd      `cmd:"" help:"Delete a stored backup."`
	Prune       pruneCmd       `cmd:"" help:"Delete old backups by rule: keep the last, and one a day, week and month."`
	Ls          lsCmd          `cmd:"" help:"List the backups that exist."`
	Show        showCmd        `cmd:"" help:"Show one backup."`
	Watch       watchCmd       `cmd:"" help:"Follow what jobs do: all of them until interrupted, or one (--job) to its end."`
	Jobs        jobsCmd        `cmd:"" help:"List jobs and their states."`
	Job         storyCmd       `cmd:"" help:"Tell the whole story of one job."`
	Replay      replayCmd      `cmd:"" help:"Run failed jobs again."`
	Cancel      cancelCmd      `cmd:"" help:"End a job that waits or runs."`
	Throttle    throttleCmd    `cmd:"" help:"Change the bandwidth limit of a job."`
	Init        initCmd        `cmd:"" help:"Make the streams and buckets, or the configuration of a NATS server; --check says what differs."`
	Host        hostCmd        `cmd:"" help:"Add hosts to the fleet, list them, revoke them."`
	Hosts       hostsCmd       `cmd:"" help:"List the hosts that are alive."`
	Zone        zoneCmd        `cmd:"" help:"Settings and passphrases of the zones."`
	Consolidate consolidateCmd `cmd:"" help:"Make a new full backup of an incremental and all that it continues, without the VM."`
	Rekey       rekeyCmd       `cmd:"" help:"Put another passphrase on a stored backup; its data is not copied."`
	Signkey     signkeyCmd     `cmd:"" help:"Print the public key that hosts check commands with; makes it when there is none."`
	Seal        sealCmd        `cmd:"" help:"Seal the passphrase on standard input for a host, for commands written by hand."`
}

// connection is what all commands have in common.
type connection struct {
	Config   kong.ConfigFlag  `help:"YAML file with settings." placeholder:"FILE" env:"-"`
	NATS     string           `name:"nats" help:"NATS server, or several separated by commas. Default: that of --context, or else ${default_nats}." placeholder:"URL"`
	Context  string           `help:"Context of the nats CLI: its name or its file." placeholder:"NAME"`
	Creds    string           `help:"NATS credentials file." placeholder:"FILE"`
	NKey     string           `name:"nkey" help:"File with the nkey seed of a NATS user, in place of --creds." placeholder:"FILE"`
	CA       string           `name:"ca" help:"Certificates (PEM) that the NATS server's is checked against, in place of the system's." placeholder:"FILE"`
	Replicas int              `help:"How many servers of a cluster keep each stream that is made: 1 to 5." default:"1"`
	Keys     string           `help:"Folder with the publisher's own keys." default:"${default_keys}" placeholder:"DIR"`
	Version  kong.VersionFlag `help:"Print the version."`
	LogLevel string           `help:"What is logged to standard error: ${enum}." enum:"debug,info,warn,error" default:"warn"`
}

// app is what a command runs with.
type app struct {
	connection
	stdin          io.Reader
	stdout, stderr io.Writer
	log            zerolog.Logger
}

// with runs fn with a Manager on a connection of its own.
func (a *app) with(ctx context.Context, fn func(m *fleet.Manager) error) error {
	cfg, err := a.busConfig()
	if err != nil {
		return err
	}
	return a.withBus(ctx, cfg, func(b *bus.Bus) error {
		m := fleet.New(b, secret.NewFolder(a.Keys), a.log)
		defer m.Wipe()
		return fn(m)
	})
}

// withBus runs fn with a connection of its own.
func (a *app) withBus(ctx context.Context, cfg bus.Config, fn func(b *bus.Bus) error) error {
	b, err := bus.Connect(ctx, cfg)
	if err != nil {
		if fleet.ClassOf(err) == fleet.Failed { // a context or a credentials file that is not there
			err = &fleet.Error{Class: fleet.Usage, Err: err}
		}
		return err
	}
	defer b.Close()
	return fn(b)
}

// busConfig says how to reach NATS. Commands are signed where the publisher has a key for it.
func (a *app) busConfig() (bus.Config, error) {
	cfg := bus.Config{
		URL: a.NATS, Context: a.Context, Creds: a.Creds, NKey: a.NKey, CA: a.CA, Name: "publisher", Layout: bus.Layout{Replicas: a.Replicas}, Log: a.log,
	}
	signer, err := secret.LoadSigner(secret.NewFolder(a.Keys))
	switch {
	case err == nil:
		cfg.Sign = signer.Sign
	case !errors.Is(err, fs.ErrNotExist):
		return cfg, &fleet.Error{Class: fleet.Usage, Err: err}
	}
	return cfg, nil
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second interrupt ends the program as usual
	code := run(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr)
	stop()
	os.Exit(code)
}

func run(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) int {
	var c cli
	parser, err := newParser(&c, stdout, stderr)
	if err != nil {
		return finish(stderr, err)
	}
	parsed, err := parser.Parse(args)
	if err != nil {
		return finish(stderr, parseError(err))
	}
	level, err := zerolog.ParseLevel(c.LogLevel)
	if err != nil {
		return finish(stderr, &fleet.Error{Class: fleet.Usage, Err: err})
	}
	console := zerolog.ConsoleWriter{Out: stderr, TimeFormat: "15:04:05", NoColor: !isTerminal(stderr)}
	log := zerolog.New(console).Level(level).With().Timestamp().Logger()
	parsed.BindTo(ctx, (*context.Context)(nil))
	return finish(stderr, parsed.Run(&app{connection: c.connection, stdin: prompted(stdin, stderr), stdout: stdout, stderr: stderr, log: log}))
}

// parseError turns kong's complaint into a usage error that says where the flags are explained.
func parseError(err error) error {
	command := "publisher"
	var p *kong.ParseError
	if errors.As(err, &p) && p.Context != nil && p.Context.Selected() != nil {
		command += " " + p.Context.Selected().Name
	}
	return &fleet.Error{Class: fleet.Usage, Err: err, Hint: "See " + command + " --help."}
}

// finish prints an error and what to do about it, and returns the exit code.
func finish(stderr io.Writer, err error) int {
	code := exitCode(err)
	var quiet *told
	if err == nil || errors.As(err, &quiet) {
		return code
	}
	_, _ = fmt.Fprintln(stderr, "publisher: "+printable(err.Error()))
	if hint := fleet.HintOf(err); hint != "" {
		_, _ = fmt.Fprintln(stderr, printable(hint))
	}
	return code
}

// exitCode is the one place that turns an error into an exit code.
func exitCode(err error) int {
	if err == nil {
		return 0
	}
	switch fleet.ClassOf(err) {
	case fleet.Usage:
		return 2
	case fleet.Unreachable:
		return 3
	case fleet.NotFound:
		return 4
	case fleet.Interrupted:
		return 130 // 128 + SIGINT, as a shell has it
	}
	return 1
}

// told is an error that has been printed already.
type told struct{ error }

func (t *told) Unwrap() error { return t.error }

// printable replaces what is not seen, control characters and those that turn the direction of writing: a host's words
// must not steer the terminal, break a table or look like others.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsGraphic(r) {
			return ' '
		}
		return r
	}, s)
}
