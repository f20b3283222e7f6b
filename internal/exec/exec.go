package exec

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/rs/zerolog"

	"github.com/nasfleet/nasfleet/internal/exec/bounded"
	"github.com/nasfleet/nasfleet/internal/exec/copier"
	"github.com/nasfleet/nasfleet/internal/exec/hypervisor"
	"github.com/nasfleet/nasfleet/internal/exec/repository"
	"github.com/nasfleet/nasfleet/internal/secret"
	"github.com/nasfleet/nasfleet/messages"
)

// Config is what an Executor needs of its host.
type Config struct {
	Zone, Host string
	// Version of the worker, for the manifests.
	Version string
	// RunDir holds a folder a job: sockets, the mount point, digests under way. Its path must be
	// short (80 bytes), because a unix socket's is bounded by 107.
	RunDir string
	// ScratchDir takes what guests overwrite while they are backed up.
	ScratchDir string
	// StateDir is the worker's, which no command may name.
	StateDir string
	// AllowRBD are the pools of Ceph whose images a command may overwrite.
	AllowRBD []string
	// CephConf is the file with the settings of the cluster of these pools, and CephUser who works on them; empty means
	// Ceph's own, /etc/ceph/ceph.conf and admin.
	CephConf, CephUser string
	// AllowPaths are the folders that a command may name paths in: images, folders to restore to,
	// repositories that are folders. Without any it is all but the system's own and the worker's.
	AllowPaths []string
	// MountCredentials is the folder that files have to lie in which mount options of a command name; "" means that
	// none may be named.
	MountCredentials string
	// MountOptions are the names of options that a command may give beside those that are known.
	MountOptions []string
	// ScratchReserve is how much room (bytes) must stay free in ScratchDir; a backup that would
	// use it is stopped, because a full scratch gives the guest a write error.
	ScratchReserve int64
	// StorageDaemon and QEMUImg are the programs to run; empty means the usual names in PATH.
	StorageDaemon, QEMUImg string
	// LUKSIterTime is how long one guess at a passphrase takes; 0 means storaged.DefaultIterTime.
	LUKSIterTime time.Duration
	// MountTimeout bounds one mount or unmount.
	MountTimeout time.Duration
	// StallTimeout is how long a repository, or a side of a copy, may be silent before the job ends; 0 means
	// repository.DefaultStallTimeout.
	StallTimeout time.Duration
	// Key opens the passphrases that were sealed for this host.
	Key *secret.Key
	// Hypervisor is nil on a host that backs up images alone.
	Hypervisor *hypervisor.Hypervisor
	// Watchdog starts what thaws a guest when the worker cannot; its RunDir is set to RunDir.
	Watchdog hypervisor.Watchdog
	Log      zerolog.Logger
}

// Executor does jobs. It may do several at a time; the caller sees to it that no two of them
// work on one VM.
type Executor struct{ cfg Config }

// New checks the folders and returns an Executor.
func New(cfg Config) (*Executor, error) {
	for _, dir := range []*string{&cfg.RunDir, &cfg.ScratchDir} {
		// libvirt wants absolute paths, and a killed attempt's backup job is known by its path.
		abs, err := filepath.Abs(*dir)
		if err != nil {
			return nil, fmt.Errorf("find a folder of the worker: %w", err)
		}
		*dir = abs
		// Traversable, because an unprivileged QEMU has to reach its socket and scratch below.
		if err := os.MkdirAll(abs, 0o711); err != nil {
			return nil, fmt.Errorf("make a folder of the worker: %w", err)
		}
	}
	if cfg.StallTimeout == 0 {
		cfg.StallTimeout = repository.DefaultStallTimeout
	}
	if len(cfg.RunDir) > maxRunDir {
		return nil, fmt.Errorf("run folder %s: the path has more than %d bytes", cfg.RunDir, maxRunDir)
	}
	cfg.Watchdog.RunDir = cfg.RunDir
	return &Executor{cfg: cfg}, nil
}

// Reporter hears how a job goes on. Its methods may be called from several goroutines.
type Reporter interface {
	// Phase is called when the job enters a phase.
	Phase(messages.Phase)
	// Disk is called often: done and total are bytes of data of the phase.
	Disk(name string, done, total int64)
	// Verified is called once a backup was read back and found right.
	Verified(backupID string, v messages.Verification)
	// Done is called once everything is done and only the cleaning up remains: a job whose worker is killed
	// from then on must not be done again, because not every job can be.
	Done(Outcome)
}

// Deleted is a backup that is gone, and the host that had taken it.
type Deleted struct{ ID, Zone, Host string }

// Outcome is what a job that succeeded has to say.
type Outcome struct {
	// BackupID is set by commands on one backup.
	BackupID string
	// Backup is set when one was taken, made out of a chain, or got another passphrase.
	Backup *messages.CatalogEntry
	// Changed are other backups that are not what they were.
	Changed []messages.CatalogEntry
	// Deleted are the backups that no longer exist.
	Deleted []Deleted
	// Listed holds what a repository holds; nil unless one was listed.
	Listed []messages.CatalogEntry
	// Restored names the files or devices written, by disk.
	Restored map[string]string
	Notes    []string
}

// BandwidthLimit returns the limit that a command asks for, in MiB/s; 0 for none.
func BandwidthLimit(cmd messages.Command) int {
	switch cmd := cmd.(type) {
	case *messages.TakeBackup:
		return cmd.Details.BandwidthLimit
	case *messages.ConsolidateBackup:
		return cmd.Details.BandwidthLimit
	case *messages.RestoreBackup:
		return cmd.Details.BandwidthLimit
	case *messages.VerifyBackup:
		return cmd.Details.BandwidthLimit
	}
	return 0
}

// Copies says whether a command's job copies data, and so has a bandwidth limit.
func Copies(cmd messages.Command) bool {
	switch cmd.(type) {
	case *messages.TakeBackup, *messages.RestoreBackup, *messages.VerifyBackup, *messages.ConsolidateBackup:
		return true
	}
	return false
}

// Run does one job, all its copying under the limiter, which the caller may change meanwhile; nil
// does not limit: what the command asks for (BandwidthLimit) is the caller's to heed. An error carries a
// code (messages.CodeOf); after it nothing of the job is left: no mount, no libvirt job, no process, no
// partial backup; the Outcome then has what was Deleted alone. When ctx ends, the error is its cause. A panic in the job is an error of CodeInternal:
// it costs the job and not the worker.
func (e *Executor) Run(ctx context.Context, cmd messages.Command, limiter *copier.Limiter, r Reporter) (Outcome, error) {
	ws, err := e.open(cmd.Head().JobID)
	if err != nil {
		return Outcome{}, err
	}
	ws.limiter = limiter
	var out Outcome
	err = ws.attempt(ctx, cmd, func(ctx context.Context) (err error) {
		if out, err = e.run(ctx, ws, cmd, r); err == nil {
			r.Done(out)
		}
		return err
	})
	return out, err
}

// attempt runs f, which does the command, and cleans up after it.
func (ws *workspace) attempt(caller context.Context, cmd messages.Command, f func(context.Context) error) error {
	ctx, cancel := context.WithCancelCause(caller)
	defer cancel(nil)
	ws.giveUp = cancel
	err := bounded.Try(func() error { return f(ctx) })
	if p := new(bounded.Panic); errors.As(err, &p) {
		ws.e.cfg.Log.Error().Err(p).Str("job", ws.job).Bytes("stack", p.Stack).Msg("a defect in the job")
	}
	// Looked at now: the cleaning up may find the repository lost as well.
	ended, cause := ctx.Err() != nil, context.Cause(ctx)
	if err != nil && !ended {
		// The guest first: its guardian ends libvirt's job now. To ask a repository can take a minute.
		cancel(err)
		err = ws.explain(caller, cmd, err)
	}
	if cerr := ws.close(); cerr != nil {
		ws.e.cfg.Log.Warn().Err(cerr).Str("job", ws.job).Msg("leftovers of the job")
	}
	if err != nil && ended {
		// What failed did so because it was told to stop; the reason is the caller's.
		err = cause
	}
	if errors.Is(err, context.DeadlineExceeded) {
		err = messages.EnsureCode(messages.CodeTimeout, err)
	}
	return messages.EnsureCode(messages.CodeInternal, err)
}

func (e *Executor) run(ctx context.Context, ws *workspace, cmd messages.Command, r Reporter) (Outcome, error) {
	if err := e.checkPaths(ctx, cmd); err != nil {
		return Outcome{}, err
	}
	switch cmd := cmd.(type) {
	case *messages.TakeBackup:
		return e.take(ctx, ws, cmd, r)
	case *messages.RestoreBackup:
		return e.restore(ctx, ws, cmd, r)
	case *messages.VerifyBackup:
		return e.verify(ctx, ws, cmd, r)
	case *messages.DeleteBackup:
		return e.remove(ctx, ws, cmd, r)
	case *messages.RekeyBackup:
		return e.rekey(ctx, ws, cmd, r)
	case *messages.ConsolidateBackup:
		return e.consolidate(ctx, ws, cmd, r)
	case *messages.ListBackups:
		return e.list(ctx, ws, cmd, r)
	}
	return Outcome{}, messages.Errorf(messages.CodeInvalidMessage, "no way to run a %T", cmd)
}

// passphrase opens a sealed passphrase of a command; nil if there is none.
func (e *Executor) passphrase(sealed string) (*secret.Passphrase, error) {
	if sealed == "" {
		return nil, nil
	}
	if e.cfg.Key == nil {
		return nil, messages.Errorf(messages.CodePassphraseForeign, "this host has no key to open passphrases with")
	}
	return e.cfg.Key.Open(sealed)
}
