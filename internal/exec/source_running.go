package exec

import (
	"context"
	"path/filepath"
	"slices"
	"strings"

	"github.com/nasfleet/nasfleet/internal/exec/hypervisor"
	"github.com/nasfleet/nasfleet/internal/exec/repository"
	"github.com/nasfleet/nasfleet/messages"
)

// The socket of a running VM's export is <run folder>/<job>/src/nbd.sock. It tells whose a backup job is.
const (
	sourceFolder = "src"
	sourceSocket = "nbd.sock"
)

// runningSource reads the disks of a running VM by libvirt's backup-begin in pull mode: its QEMU
// exports them as they were at one moment, and copies what the guest overwrites to scratch files.
type runningSource struct {
	e       *Executor
	dom     hypervisor.Domain
	quiesce messages.Quiesce
	disks   []sourceDisk
	// dir holds the socket of the NBD server that QEMU opens.
	dir, scratch string
	begun        bool
	// checkpoint is what begin has made, or may have made, until the backup is committed.
	checkpoint hypervisor.Checkpoint
	// guard protects the guest while the job runs.
	guard      *guardian
	handshakes handshakes
}

func newRunningSource(e *Executor, dom hypervisor.Domain, q messages.Quiesce) *runningSource {
	return &runningSource{e: e, dom: dom, quiesce: q}
}

func (s *runningSource) prepare(ctx context.Context, ws *workspace) ([]sourceDisk, error) {
	s.dir, s.scratch = filepath.Join(ws.dir, sourceFolder), filepath.Join(s.e.cfg.ScratchDir, ws.job)
	if err := s.e.removeScratch(ctx, ws.job); err != nil {
		return nil, messages.Errorf(messages.CodeInternal, "remove an earlier attempt's scratch: %w", err)
	}
	ws.onClose("scratch files", func(ctx context.Context) error { return s.e.removeScratch(ctx, ws.job) })
	if err := s.e.checkScratch(ctx); err != nil {
		return nil, err
	}
	for _, dir := range []string{s.dir, s.scratch} {
		if err := s.dom.PrepareDir(dir); err != nil {
			return nil, err
		}
	}
	for _, d := range s.dom.Disks {
		if d.SizeBytes == 0 {
			return nil, messages.Errorf(messages.CodeSourceReadFailed, "libvirt does not tell the size of disk %s", d.Target)
		}
		s.disks = append(s.disks, sourceDisk{
			name: d.Target, size: d.SizeBytes, path: d.Path, format: d.Format, encrypted: d.Encrypted,
			socket: filepath.Join(s.dir, sourceSocket), export: d.Target, guest: &s.handshakes,
		})
	}
	return s.disks, nil
}

func (s *runningSource) noIncremental() *full { return noBitmaps(s.dom) }

func (s *runningSource) domain() hypervisor.Domain { return s.dom }

func (s *runningSource) checkpoints(ctx context.Context) ([]hypervisor.Checkpoint, error) {
	return s.e.cfg.Hypervisor.Checkpoints(ctx, s.dom.Name)
}

func (s *runningSource) begin(ctx context.Context, ws *workspace, p point) (moment, error) {
	spec := hypervisor.BackupSpec{Domain: s.dom.Name, Socket: s.disks[0].socket, Quiesce: s.quiesce, Watchdog: s.e.cfg.Watchdog, Checkpoint: p.checkpoint}
	for _, d := range s.disks {
		disk := hypervisor.BackupDisk{Target: d.name, ScratchFile: filepath.Join(s.scratch, d.name+".scratch")}
		if slices.Contains(p.disks, d.name) {
			disk.Since = p.since
		}
		spec.Disks = append(spec.Disks, disk)
	}
	// Before the call: when it is cut off, the job may have begun, and the checkpoint be there.
	s.begun, s.checkpoint = true, p.checkpoint
	ws.onClose("the checkpoint of a backup that was not committed", s.dropCheckpoint)
	ws.onClose("libvirt's backup job", s.end)
	if err := s.e.checkScratch(ctx); err != nil {
		return moment{}, err // making the targets may have taken long
	}
	if s.guard != nil {
		s.guard.leave() // that of a begin that failed
	}
	s.handshakes.open()
	s.guard = s.e.protect(ctx, ws.giveUp, s.endJob)
	b, err := s.e.cfg.Hypervisor.BeginBackup(ctx, spec)
	if err != nil {
		return moment{}, err
	}
	m := moment{at: b.At, quiesced: b.Quiesced, frozen: b.Frozen}
	if b.Note != "" {
		m.notes = append(m.notes, b.Note)
	}
	return m, nil
}

// check notices a VM that was stopped.
func (s *runningSource) check(ctx context.Context) error {
	state, err := s.e.state(ctx, s.dom.Name)
	if messages.CodeOf(err) == messages.CodeHypervisorDown && ctx.Err() == nil {
		// The export is QEMU's and outlives a libvirtd that restarts; without QEMU reading it fails.
		return nil
	}
	if err != nil {
		return err
	}
	if state == hypervisor.Stopped {
		return messages.Errorf(messages.CodeVMStateChanged, "vm %s was stopped during its backup", s.dom.Name)
	}
	return nil
}

// endJob ends libvirt's job.
func (s *runningSource) endJob(ctx context.Context) error {
	s.handshakes.end()
	return untilReachable(ctx, func(ctx context.Context) error {
		return s.e.cfg.Hypervisor.EndBackup(ctx, s.dom.Name, s.disks[0].socket)
	})
}

func (s *runningSource) end(ctx context.Context) error {
	if !s.begun {
		return nil
	}
	// The room is watched until the job is gone.
	err := s.endJob(ctx)
	if s.guard != nil {
		s.guard.leave()
	}
	if err != nil {
		return err
	}
	s.begun = false
	return s.e.removeScratch(ctx, filepath.Base(s.scratch))
}

func (s *runningSource) keep() { s.checkpoint = hypervisor.Checkpoint{} }

// dropCheckpoint removes the checkpoint of an attempt that failed. Those of backups stay as they are.
func (s *runningSource) dropCheckpoint(ctx context.Context) error {
	if s.checkpoint.Name == "" {
		return nil
	}
	return untilReachable(ctx, func(ctx context.Context) error {
		_, err := s.e.cfg.Hypervisor.DeleteCheckpoint(ctx, s.dom.Name, s.checkpoint)
		return err
	})
}

func (s *runningSource) describe(m *repository.Manifest) {
	m.Source, m.UUID = repository.SourceRunning, s.dom.UUID
	m.Skipped = skippedDevices(s.dom.Skipped)
}

func (s *runningSource) domainXML() string { return s.dom.XML }

func skippedDevices(skipped []hypervisor.Skipped) []repository.Skipped {
	var out []repository.Skipped
	for _, d := range skipped {
		out = append(out, repository.Skipped{Target: d.Target, Reason: d.Reason})
	}
	return out
}

func skippedText(skipped []hypervisor.Skipped) string {
	if len(skipped) == 0 {
		return "it has no disk devices at all"
	}
	var parts []string
	for _, d := range skipped {
		parts = append(parts, d.Target+": "+d.Reason)
	}
	return strings.Join(parts, "; ")
}
