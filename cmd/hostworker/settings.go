package main

import (
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"time"

	"github.com/nasfleet/nasfleet/internal/bus"
	"github.com/nasfleet/nasfleet/messages"
)

// noLibvirt is the value of --libvirt on a host without VMs.
const noLibvirt = "none"

// maxRunDir is how long the run folder's path may be (bytes), which exec checks: a job's sockets
// lie below it, and the path of a unix socket is bounded by 107.
const maxRunDir = 48

// minAckWait leaves a running job time to extend its command, at a third of it.
const minAckWait = time.Second

// settings are a host's, each a flag, an environment variable and a key of the YAML file.
type settings struct {
	Zone string `help:"Zone of this host ([a-z0-9-]+)." required:"" placeholder:"ZONE"`
	Host string `help:"Name of this host ([a-z0-9-]+)." required:"" placeholder:"HOST"`

	NATS         string        `name:"nats" help:"NATS server, or several separated by commas. Default: that of --context, or else ${default_nats}." placeholder:"URL"`
	Context      string        `help:"Context of the nats CLI: its name or its file." placeholder:"NAME"`
	Creds        string        `help:"NATS credentials file." placeholder:"FILE"`
	NKey         string        `name:"nkey" help:"File with the nkey seed of a NATS user, in place of --creds." placeholder:"FILE"`
	CA           string        `name:"ca" help:"Certificates (PEM) that the NATS server's is checked against, in place of the system's." placeholder:"FILE"`
	PublisherKey []string      `help:"Take only commands that are signed with this key (U…, or a file with one a line); repeatable. Without it the host takes whatever is published for it." sep:"none" placeholder:"KEY"`
	CommandAge   time.Duration `help:"How long after it was issued a signed command may be begun." default:"720h"`
	EmbeddedNATS string        `name:"embedded-nats" help:"Run a NATS server in this process, its streams in this folder; --nats, --context, --creds, --nkey and --ca are then not used." placeholder:"DIR"`
	Replicas     int           `help:"How many servers of a cluster keep each stream: 1 to 5. It is set when the streams are made first." default:"1"`
	Listen       string        `help:"Where the embedded server listens; none for this process alone. It asks for no credentials." default:"${default_listen}"`
	AckWait      time.Duration `help:"How long the server waits for a sign of life before it hands a command out again. It is set when the host's queue is made first." default:"60s"`

	Libvirt string `help:"libvirt's URI; none for a host that backs up images alone." default:"qemu:///system"`
	Jobs    int    `help:"How many jobs at a time, never two for one VM." default:"2"`

	Scratch        string `help:"Folder for what guests overwrite while they are backed up." default:"/var/lib/nasfleet/scratch"`
	ScratchReserve int64  `help:"MiB that stay free there; a backup that would use them is stopped before its guest notices." default:"512"`
	RunDir         string `help:"Folder for sockets and mount points (a short path)." default:"/run/nasfleet"`
	StateDir       string `help:"Folder for the host's key and journal." default:"/var/lib/nasfleet"`

	AllowPath        []string `help:"Folder that commands may name paths in (images, folders to restore to, repositories of type dir), with all below it; repeatable. Without it: all but /etc, /usr and the like, and the worker's own." sep:"none" placeholder:"DIR"`
	AllowRBD         []string `name:"allow-rbd" help:"Pool of Ceph whose images a command may restore over; repeatable. Without it: none." sep:"none" placeholder:"POOL"`
	CephConf         string   `help:"File with the settings of the cluster of these pools." default:"/etc/ceph/ceph.conf" placeholder:"FILE"`
	CephUser         string   `help:"User of Ceph who restores over their images; the settings name its keyring." default:"admin" placeholder:"NAME"`
	MountCredentials string   `help:"Folder that files have to lie in which mount options of a command name (credentials=, IdentityFile=), with all below it." default:"/etc/nasfleet/credentials" placeholder:"DIR"`
	MountOption      []string `help:"Let commands give this mount option too, which is not known to be harmless; repeatable." sep:"none" placeholder:"NAME"`

	LUKSIterTime time.Duration `name:"luks-iter-time" help:"How long one guess at the passphrase of a new backup takes on this machine: what protects a weak one, and is paid for each disk of each backup, verify and restore." default:"1s"`
	MountTimeout time.Duration `help:"How long one mount or unmount may take." default:"30s"`
	StallTimeout time.Duration `help:"How long a repository, or a side of a copy, may be silent before the job ends." default:"60s"`
	RetryDelay   time.Duration `help:"Wait before the second attempt at a job; it doubles with each." default:"10s"`
	JobTimeout   time.Duration `help:"How long a job may take, all attempts together, where its command does not say; 0 for as long as it likes." default:"24h"`
	Nice         int           `help:"How far the worker, and what it starts, stands back where the processors are busy with guests: 0 for not at all, to 19." default:"10"`
	Grace        time.Duration `help:"How long running jobs have to end at SIGTERM." default:"30s"`
	Metrics      string        `help:"Serve Prometheus metrics and /healthz here." placeholder:"ADDR"`
}

// Validate is called by kong once all sources have been read.
func (s *settings) Validate() error {
	if s.Zone == "" || s.Host == "" {
		return errors.New("--zone and --host have to say which host this is")
	}
	if err := errors.Join(checkLabel("zone", s.Zone), checkLabel("host", s.Host)); err != nil {
		return err
	}
	if s.Jobs < 1 || s.Jobs > 1000 {
		return fmt.Errorf("--jobs %d is not from 1 to 1000", s.Jobs)
	}
	if s.Nice < 0 || s.Nice > maxNice {
		return fmt.Errorf("--nice %d is not from 0 to %d", s.Nice, maxNice)
	}
	if s.Replicas < 1 || s.Replicas > bus.MaxReplicas {
		return fmt.Errorf("--replicas %d is not from 1 to %d", s.Replicas, bus.MaxReplicas)
	}
	const maxReserve = 1 << 40 // MiB; in bytes it still is an int64
	if s.ScratchReserve < 0 || s.ScratchReserve > maxReserve {
		return fmt.Errorf("--scratch-reserve %d is not from 0 to %d", s.ScratchReserve, int64(maxReserve))
	}
	if s.AckWait < minAckWait {
		return fmt.Errorf("--ack-wait %v is less than %v", s.AckWait, minAckWait)
	}
	if s.JobTimeout < 0 {
		return fmt.Errorf("--job-timeout %v is below 0", s.JobTimeout)
	}
	for _, d := range []struct {
		flag  string
		value time.Duration
	}{{"mount-timeout", s.MountTimeout}, {"stall-timeout", s.StallTimeout}, {"retry-delay", s.RetryDelay}, {"command-age", s.CommandAge}, {"grace", s.Grace}} {
		if d.value <= 0 {
			return fmt.Errorf("--%s %v is not above 0", d.flag, d.value)
		}
	}
	return errors.Join(s.checkAddresses(), s.cleanFolders())
}

// checkLabel is that of messages without its code, which is for commands.
func checkLabel(what, name string) error {
	if err := messages.CheckLabel(what, name); err != nil {
		return errors.New(plain(err))
	}
	return nil
}

func (s *settings) checkAddresses() error {
	if _, _, err := net.SplitHostPort(s.Listen); s.listens() && err != nil {
		return fmt.Errorf("--listen: %w", err)
	}
	if _, _, err := net.SplitHostPort(s.Metrics); s.Metrics != "" && err != nil {
		return fmt.Errorf("--metrics: %w", err)
	}
	return nil
}

// listens says whether an embedded server is for others than this process.
func (s *settings) listens() bool { return s.Listen != "" && s.Listen != bus.ListenNone }

// cleanFolders makes the folders absolute.
func (s *settings) cleanFolders() error {
	for _, dir := range []*string{&s.Scratch, &s.RunDir, &s.StateDir, &s.EmbeddedNATS} {
		if *dir == "" && dir != &s.EmbeddedNATS {
			return errors.New("--scratch, --run-dir and --state-dir have to name folders")
		}
		if *dir == "" {
			continue
		}
		abs, err := filepath.Abs(*dir)
		if err != nil {
			return err
		}
		*dir = abs
	}
	for _, dir := range s.AllowPath {
		if !filepath.IsAbs(dir) || filepath.Clean(dir) != dir {
			return fmt.Errorf("--allow-path %s is not a clean absolute path", dir)
		}
	}
	if s.CephConf != "" && !filepath.IsAbs(s.CephConf) { // none is Ceph's own
		return fmt.Errorf("--ceph-conf %s is not an absolute path", s.CephConf)
	}
	if dir := s.MountCredentials; !filepath.IsAbs(dir) || filepath.Clean(dir) != dir {
		return fmt.Errorf("--mount-credentials %s is not a clean absolute path", dir)
	}
	if len(s.RunDir) > maxRunDir {
		return fmt.Errorf("--run-dir %s: the path has more than %d bytes", s.RunDir, maxRunDir)
	}
	return nil
}

// busConfig says how to reach NATS.
func (s *settings) busConfig(name string) bus.Config {
	return bus.Config{
		URL: s.NATS, Context: s.Context, Creds: s.Creds, NKey: s.NKey, CA: s.CA, Name: name + " " + s.Zone + "/" + s.Host,
		InboxPrefix: bus.HostInbox(s.Zone, s.Host), AckWait: s.AckWait,
		Layout: bus.Layout{Replicas: s.Replicas},
	}
}
