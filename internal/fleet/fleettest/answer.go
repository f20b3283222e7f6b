package fleettest

import (
	"context"
	"slices"
	"strings"
	"time"

	"github.com/nasfleet/nasfleet/internal/bus"
	"github.com/nasfleet/nasfleet/internal/secret"
	"github.com/nasfleet/nasfleet/messages"
)

// answerer is one host at work.
type answerer struct {
	f          *Fleet
	key        *secret.Key // guarded by f.mu
	zone, host string
	hanging    hanging
}

func (h *answerer) announce() error {
	public, err := h.sealKey().Public()
	if err != nil {
		return err
	}
	now := time.Now().UTC()
	return h.f.Bus.Announce(h.f.ctx, messages.HostInfo{
		Zone: h.zone, Host: h.host, SealKey: public, Version: "1.2.3", StartedAt: now, SeenAt: now, Running: []string{}, Slots: slots,
	})
}

// stayAlive announces the host again and again, as a worker does, until the fleet stops.
func (h *answerer) stayAlive() {
	tick := time.NewTicker(15 * time.Second)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			_ = h.announce() // the next time, or what needs it will fail
		case <-h.f.ctx.Done():
			return
		}
	}
}

func (h *answerer) sealKey() *secret.Key {
	h.f.mu.Lock()
	defer h.f.mu.Unlock()
	return h.key
}

func (h *answerer) answer(d *bus.Delivery) error {
	cmd, _, err := messages.Decode(d.Data)
	if err != nil {
		return err
	}
	if err := h.attempts(cmd); err != nil {
		return err
	}
	return d.Ack(h.f.ctx)
}

func (h *answerer) attempts(cmd messages.Command) error {
	attempt := 1
	if err := h.event(cmd, messages.KindAccepted, attempt, nil); err != nil {
		return err
	}
	switch name := cmd.Target(); {
	case strings.HasPrefix(name, "hang"):
		return h.hang(cmd)
	case strings.HasPrefix(name, "bad"):
		return h.event(cmd, messages.KindFailed, attempt, func(e *messages.Event) {
			e.Error = messages.FailureOf(messages.Errorf(messages.CodeTargetFull, "no room for %s", name))
		})
	case strings.HasPrefix(name, "down") && cmd.Head().Replays == "":
		return h.event(cmd, messages.KindFailed, attempt, func(e *messages.Event) {
			e.Error = messages.FailureOf(messages.Errorf(messages.CodeMountFailed, "the NAS is away"))
		})
	case strings.HasPrefix(name, "gone"):
		return h.event(cmd, messages.KindCancelled, attempt, func(e *messages.Event) {
			e.Error = messages.FailureOf(messages.Errorf(messages.CodeCancelled, "an operator asked for it"))
		})
	case strings.HasPrefix(name, "flaky"):
		err := h.event(cmd, messages.KindRetrying, attempt, func(e *messages.Event) {
			next := time.Now().Add(time.Second)
			e.Error = messages.FailureOf(messages.Errorf(messages.CodeMountFailed, "the NAS is away"))
			e.Error.NextAttempt = &next
		})
		if err != nil {
			return err
		}
		attempt = 2
		if err := h.event(cmd, messages.KindAccepted, attempt, nil); err != nil {
			return err
		}
	}
	if err := h.unseal(cmd); err != nil {
		return h.event(cmd, messages.KindFailed, attempt, func(e *messages.Event) { e.Error = messages.FailureOf(err) })
	}
	return h.do(cmd, attempt)
}

func (h *answerer) do(cmd messages.Command, attempt int) error {
	var fill func(*messages.Event)
	var err error
	switch c := cmd.(type) {
	case *messages.TakeBackup:
		entry := Entry(c, h.zone, h.host)
		if c.Mode == messages.ModeIncremental {
			entry.Mode = messages.ModeIncremental
			err = h.newest(c.VM, &entry.Parent)
		}
		if err == nil {
			err = h.f.Bus.PutBackup(h.f.ctx, entry)
		}
		fill = func(e *messages.Event) { e.BackupID, e.Backup = entry.ID, &entry }
	case *messages.RestoreBackup:
		fill = func(e *messages.Event) {
			e.BackupID, e.Restored = c.Backup.ID, map[string]string{"vda": c.ToDir + c.ToVM + "/vda.qcow2"}
		}
	case *messages.VerifyBackup:
		err = h.event(cmd, messages.KindVerified, attempt, func(e *messages.Event) {
			e.BackupID, e.Verified = c.Backup.ID, &messages.Verification{Disks: 1, Bytes: 3 << 20, Seconds: 0.5}
		})
		fill = func(e *messages.Event) { e.BackupID = c.Backup.ID }
	case *messages.DeleteBackup:
		err = h.f.Bus.RemoveBackup(h.f.ctx, h.zone, h.host, c.Backup.ID)
		fill = func(e *messages.Event) { e.BackupID = c.Backup.ID }
	case *messages.RekeyBackup:
		var entry messages.CatalogEntry
		var found []messages.CatalogEntry
		if found, err = h.f.Bus.Backup(h.f.ctx, c.Backup.ID); err == nil {
			entry = found[0]
			entry.Revision, entry.RecoveryRevision = c.Details.Revision, c.Details.RecoveryRevision
			err = h.f.Bus.PutBackup(h.f.ctx, entry)
		}
		fill = func(e *messages.Event) { e.BackupID, e.Backup = entry.ID, &entry }
	case *messages.ConsolidateBackup:
		var found []messages.CatalogEntry
		var entry messages.CatalogEntry
		if found, err = h.f.Bus.Backup(h.f.ctx, c.Backup.ID); err == nil {
			take := &messages.TakeBackup{Header: c.Header, VM: c.Backup.VM, BackupPath: c.Backup.BackupPath, Repository: c.Backup.Repository, Details: c.Details}
			entry = Entry(take, h.zone, h.host)
			entry.CreatedAt, entry.ConsolidatedFrom = found[0].CreatedAt, c.Backup.ID
			err = h.f.Bus.PutBackup(h.f.ctx, entry)
		}
		fill = func(e *messages.Event) { e.BackupID, e.Backup = entry.ID, &entry }
	case *messages.ListBackups:
		take := &messages.TakeBackup{Header: c.Header, VM: "refreshed", Repository: c.Repository}
		n := 1
		err = h.f.Bus.PutBackup(h.f.ctx, Entry(take, h.zone, h.host))
		fill = func(e *messages.Event) { e.Backups = &n }
	}
	if err != nil {
		return err
	}
	return h.event(cmd, messages.KindSucceeded, attempt, fill)
}

// newest finds the backup of a VM that an incremental continues.
func (h *answerer) newest(vm string, id *string) error {
	list, err := h.f.Bus.Backups(h.f.ctx, bus.CatalogFilter{Zone: h.zone, Host: h.host, VM: vm})
	if len(list) > 0 {
		*id = list[len(list)-1].ID
	}
	return err
}

// hang tells progress until the job is cancelled or the fleet stops.
func (h *answerer) hang(cmd messages.Command) error {
	ctx, cancel := context.WithCancel(h.f.ctx)
	defer cancel()
	h.hanging.add(cmd, cancel)
	defer h.hanging.remove(cmd.Head().JobID)
	for done := int64(1); ; done++ {
		err := h.f.Bus.PublishProgress(messages.Progress{
			JobID: cmd.Head().JobID, Zone: h.zone, Host: h.host, VM: cmd.Target(), Attempt: 1, Phase: messages.PhaseCopying,
			Disks: []messages.DiskProgress{{Name: "vda", Done: done << 20, Total: 1 << 30}},
		})
		if err != nil {
			return err
		}
		select {
		case <-h.f.ctx.Done():
			return h.f.ctx.Err()
		case <-ctx.Done():
			return h.f.Bus.PublishEvent(h.f.ctx, messages.Cancelled(h.zone, h.host, cmd, 1, messages.Errorf(messages.CodeCancelled, "it was cancelled on request")))
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// unseal checks the command's passphrases where it has some, with the host's own key. Right for a new
// backup is whatever begins with Passphrase; a stored one wants the one it was taken with, or its recovery.
func (h *answerer) unseal(cmd messages.Command) error {
	open := func(sealed string) (string, error) {
		if sealed == "" {
			return "", nil
		}
		p, err := h.sealKey().Open(sealed)
		if err != nil {
			return "", err
		}
		defer p.Wipe()
		return string(p.Bytes()), nil
	}
	switch c := cmd.(type) {
	case *messages.TakeBackup:
		return h.lock(c.JobID, c.Details, open)
	case *messages.RestoreBackup:
		return h.unlock(c.Backup.ID, c.Details.Passphrase, open)
	case *messages.VerifyBackup:
		return h.unlock(c.Backup.ID, c.Details.Passphrase, open)
	case *messages.RekeyBackup:
		if err := h.unlock(c.Backup.ID, c.OldPassphrase, open); err != nil {
			return err
		}
		old, _ := open(c.OldPassphrase)
		if fresh, _ := open(c.Details.Passphrase); fresh == old {
			return messages.Errorf(messages.CodeVerifyFailed, "the old passphrase still opens it")
		}
		return h.lock(c.Backup.ID, c.Details, open)
	case *messages.ConsolidateBackup:
		if err := h.unlock(c.Backup.ID, c.ChainPassphrase, open); err != nil {
			return err
		}
		return h.lock(c.JobID, c.Details, open)
	}
	return nil
}

func (h *answerer) lock(backup string, d messages.Details, open func(string) (string, error)) error {
	var locks []string
	for _, sealed := range []string{d.Passphrase, d.Recovery} {
		p, err := open(sealed)
		if err != nil {
			return err
		}
		if p == "" {
			continue
		}
		if !strings.HasPrefix(p, Passphrase) {
			return messages.Errorf(messages.CodeWrongPassphrase, "the passphrase does not open the container")
		}
		locks = append(locks, p)
	}
	h.f.mu.Lock()
	defer h.f.mu.Unlock()
	h.f.locks[backup] = locks
	return nil
}

func (h *answerer) unlock(backup, sealed string, open func(string) (string, error)) error {
	p, err := open(sealed)
	if err != nil || p == "" {
		return err
	}
	h.f.mu.Lock()
	defer h.f.mu.Unlock()
	locks, known := h.f.locks[backup]
	if !known {
		locks = []string{Passphrase}
	}
	if !slices.Contains(locks, p) {
		return messages.Errorf(messages.CodeWrongPassphrase, "the passphrase does not open the container")
	}
	return nil
}

func (h *answerer) event(cmd messages.Command, kind messages.Kind, attempt int, fill func(*messages.Event)) error {
	e := messages.Event{
		Version: messages.Version, Kind: kind, JobID: cmd.Head().JobID, Type: cmd.Head().Type, Zone: h.zone, Host: h.host,
		VM: cmd.Target(), Time: time.Now().UTC(), Attempt: attempt, Seconds: 1.5,
	}
	if fill != nil {
		fill(&e)
	}
	return h.f.Bus.PublishEvent(h.f.ctx, e)
}

// Entry is the catalog entry of the backup that a host takes.
func Entry(c *messages.TakeBackup, zone, host string) messages.CatalogEntry {
	return messages.CatalogEntry{
		ID: c.JobID, Zone: zone, Host: host, VM: c.Target(), JobID: c.JobID, CreatedAt: c.IssuedAt, Mode: messages.ModeFull,
		Encrypted: c.Details.Encryption, Revision: c.Details.Revision, RecoveryRevision: c.Details.RecoveryRevision, Compressed: c.Details.Compression,
		VirtualBytes: 6 << 30, DataBytes: 719 << 20, StoredBytes: 251 << 20, BackupPath: c.BackupPath, Repository: c.Repository,
		Disks: []messages.CatalogDisk{{Name: "vda", File: "vda.qcow2", VirtualBytes: 6 << 30, DataBytes: 719 << 20, StoredBytes: 251 << 20}},
		Notes: []string{"cdrom sda left out"},
	}
}
