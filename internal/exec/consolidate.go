package exec

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/nasfleet/nasfleet/internal/exec/hypervisor"
	"github.com/nasfleet/nasfleet/internal/exec/repository"
	"github.com/nasfleet/nasfleet/internal/secret"
	"github.com/nasfleet/nasfleet/messages"
)

// consolidate does a ConsolidateBackup: a backup whose source is a chain of backups. No VM is looked at,
// and no libvirt is needed.
func (e *Executor) consolidate(ctx context.Context, ws *workspace, cmd *messages.ConsolidateBackup, r Reporter) (Outcome, error) {
	src := &chainSource{e: e, cmd: cmd}
	var err error
	if src.pass, err = e.passphrase(cmd.ChainPassphrase); err != nil {
		return Outcome{}, err
	}
	defer src.wipe()
	t := &taking{e: e, ws: ws, cmd: asTake(cmd), r: r, limiter: ws.limiter, src: src}
	if cmd.Details.Encryption {
		defer t.wipe()
		if err := t.openKeys(); err != nil {
			return Outcome{}, err
		}
	}
	return t.run(ctx)
}

// asTake is a consolidation as its target sees it.
func asTake(cmd *messages.ConsolidateBackup) *messages.TakeBackup {
	return &messages.TakeBackup{
		Header: cmd.Header, VM: cmd.Backup.VM, BackupPath: cmd.Backup.BackupPath, Repository: cmd.Backup.Repository, Details: cmd.Details,
	}
}

// chainSource reads the disks of an incremental through all that it continues, as a restore does.
type chainSource struct {
	e      *Executor
	cmd    *messages.ConsolidateBackup
	pass   *secret.Passphrase
	backup *storedBackup
	xml    string
	disks  []sourceDisk
}

// wipe forgets what opens the chain.
func (s *chainSource) wipe() {
	s.pass.Wipe()
	if s.backup != nil {
		s.backup.wipe()
	}
}

// top is the manifest of the incremental.
func (s *chainSource) top() repository.Manifest { return s.backup.manifest() }

func (s *chainSource) prepare(ctx context.Context, ws *workspace) (_ []sourceDisk, err error) {
	if s.backup, err = findStored(ctx, ws.repo, s.cmd.Backup, s.pass); err != nil {
		return nil, err
	}
	if err := s.fits(); err != nil {
		return nil, err
	}
	if name := s.top().DomainFile; name != "" {
		xml, err := s.backup.chain[0].ReadFile(ctx, name, maxDomainXML)
		if err != nil {
			return nil, err
		}
		s.xml = string(xml)
	}
	stored, err := s.backup.disks(ctx, s.top().Disks)
	if err != nil {
		return nil, err
	}
	for i, d := range s.top().Disks {
		s.disks = append(s.disks, sourceDisk{
			name: d.Name, size: d.VirtualBytes, path: d.Source.Path, format: d.Source.Format, encrypted: d.Source.Encrypted,
			export: d.Name, stored: &stored[i],
		})
	}
	opened := make([]*sourceDisk, len(s.disks))
	for i := range s.disks {
		opened[i] = &s.disks[i]
	}
	return s.disks, each(ctx, opened, func(ctx context.Context, d *sourceDisk) error { return s.open(ctx, ws, d) })
}

// fits says whether the command goes with what it is to be done to.
func (s *chainSource) fits() error {
	top := s.top()
	switch {
	case top.Mode == messages.ModeFull:
		return messages.Errorf(messages.CodeAlreadyFull, "backup %s is a full one", top.ID)
	case top.Encryption.LUKS && !s.cmd.Details.Encryption:
		return messages.Errorf(messages.CodeSourceEncrypted, "backup %s is encrypted and the new one would not be", top.ID).
			WithHint("Turn encryption on for the new backup: who encrypted the old one did not mean it to be readable on the repository.")
	case !top.Encryption.LUKS && s.pass != nil:
		// Whoever can write to the repository must not have a chain of his own made into an encrypted backup.
		return messages.Errorf(messages.CodeBackupCorrupt, "backup %s is not encrypted, and the command has a passphrase to open it", top.ID).
			WithHint("If it never was encrypted, leave its passphrase out; otherwise somebody has put another in its place.")
	}
	return nil
}

func (s *chainSource) open(ctx context.Context, ws *workspace, d *sourceDisk) (err error) {
	if d.daemon, err = ws.daemon(ctx, fmt.Sprintf("src%d", d.stored.index)); err != nil {
		return err
	}
	d.socket = d.daemon.Socket()
	if d.check, err = d.stored.open(ctx, d.daemon, s.backup.pass, s.e.cfg.StallTimeout); err != nil {
		return err
	}
	ws.onClose("digests of the chain", func(context.Context) error { return d.check.Close() })
	return nil
}

// checkpoint is that of the incremental, which the new backup holds as well.
func (s *chainSource) checkpoint() hypervisor.Checkpoint {
	c := hypervisor.Checkpoint{Name: s.top().Checkpoint}
	for _, d := range s.top().Disks {
		if d.Bitmap {
			c.Disks = append(c.Disks, d.Name)
		}
	}
	return c
}

// begin tells the moment of the incremental.
func (s *chainSource) begin(context.Context, *workspace, point) (moment, error) {
	top := s.top()
	m := moment{
		at: top.CreatedAt, quiesced: top.Quiesced, frozen: time.Duration(top.FrozenSeconds * float64(time.Second)),
		held: s.checkpoint(),
	}
	for _, note := range top.Notes {
		// What was left out is noted again.
		if !slices.ContainsFunc(top.Skipped, func(d repository.Skipped) bool { return skippedNote(d) == note }) {
			m.notes = append(m.notes, note)
		}
	}
	m.notes = append(m.notes, fmt.Sprintf("made of backup %s and the %d that it continues, without the VM", top.ID, len(s.backup.chain)-1))
	return m, nil
}

// check has nothing to look at: each block is compared with its digest when it is read.
func (s *chainSource) check(context.Context) error { return nil }

func (s *chainSource) end(context.Context) error {
	var errs []error
	for _, d := range s.disks {
		errs = append(errs, d.check.Close(), d.daemon.Stop())
	}
	return errors.Join(errs...)
}

func (s *chainSource) keep() {}

func (s *chainSource) describe(m *repository.Manifest) {
	top := s.top()
	m.ConsolidatedFrom, m.Source, m.UUID, m.Consistency, m.Skipped = top.ID, top.Source, top.UUID, top.Consistency, top.Skipped
}

func (s *chainSource) domainXML() string { return s.xml }
