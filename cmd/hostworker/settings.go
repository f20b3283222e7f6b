package main

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"

	"github.com/rs/zerolog"

	"github.com/nasfleet/nasfleet/messages"
)

// settings are a host's, each a flag, an environment variable and a key of the YAML file.
type settings struct {
	Zone string `help:"Zone of this host ([a-z0-9-]+)." required:""`
	Host string `help:"Name of this host ([a-z0-9-]+)." required:""`

	NATS         string `name:"nats" help:"URL of the NATS servers, separated by commas." default:"nats://127.0.0.1:4222" placeholder:"URL"`
	Context      string `help:"NATS context, as the nats CLI keeps them; replaces --nats and --creds." placeholder:"NAME"`
	Creds        string `help:"NATS credentials file." placeholder:"FILE"`
	EmbeddedNATS string `name:"embedded-nats" help:"Run a NATS server in this process, its streams in this folder." placeholder:"DIR"`
	Listen       string `help:"Where the embedded server listens." default:"127.0.0.1:4222" placeholder:"ADDR"`

	Libvirt string `help:"libvirt's URI; none for a host that backs up images alone." default:"qemu:///system" placeholder:"URI"`
	Jobs    int    `help:"How many jobs at a time, never two for one VM." default:"2"`

	Scratch        string `help:"Folder for what guests overwrite while they are backed up." default:"/var/lib/nasfleet/scratch" placeholder:"DIR"`
	ScratchReserve int64  `help:"MiB that stay free there; a backup that would use them is stopped before its guest notices." default:"512" placeholder:"MIB"`
	RunDir         string `help:"Folder for sockets and mount points (a short path)." default:"/run/nasfleet" placeholder:"DIR"`
	StateDir       string `help:"Folder for the host's key and journal." default:"/var/lib/nasfleet" placeholder:"DIR"`

	MountTimeout time.Duration `help:"How long one mount or unmount may take." default:"30s"`
	RetryDelay   time.Duration `help:"Wait before the second attempt at a job; it doubles with each." default:"10s"`
	Grace        time.Duration `help:"How long running jobs have to end at SIGTERM." default:"30s"`
	Metrics      string        `help:"Serve Prometheus metrics and /healthz here." placeholder:"ADDR"`
}

// Validate is called by kong once all sources have been read.
func (s *settings) Validate() error {
	if err := messages.CheckLabel("zone", s.Zone); err != nil {
		return err
	}
	if err := messages.CheckLabel("host", s.Host); err != nil {
		return err
	}
	if s.Jobs < 1 || s.Jobs > 1000 {
		return fmt.Errorf("--jobs %d is not from 1 to 1000", s.Jobs)
	}
	if s.ScratchReserve < 0 {
		return fmt.Errorf("--scratch-reserve %d is negative", s.ScratchReserve)
	}
	for _, dir := range []*string{&s.Scratch, &s.RunDir, &s.StateDir, &s.EmbeddedNATS} {
		if *dir == "" {
			continue
		}
		abs, err := filepath.Abs(*dir)
		if err != nil {
			return err
		}
		*dir = abs
	}
	return nil
}

func newLogger(c cli, stderr io.Writer) zerolog.Logger {
	level, err := zerolog.ParseLevel(c.LogLevel)
	if err != nil {
		level = zerolog.InfoLevel
	}
	if c.LogFormat == "console" {
		stderr = zerolog.ConsoleWriter{Out: stderr, TimeFormat: time.TimeOnly, NoColor: os.Getenv("NO_COLOR") != ""}
	}
	return zerolog.New(stderr).Level(level).With().Timestamp().Logger()
}
