package fleettest

import (
	"context"
	"strings"
	"time"

	"github.com/nasfleet/nasfleet/internal/bus"
	"github.com/nasfleet/nasfleet/internal/secret"
	"github.com/nasfleet/nasfleet/messages"
)

// answerer is one host at work.
type answerer struct {
	f          *Fleet
	key        *secret.Key
	zone, host string
	hanging    hanging
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
		err = h.f.Bus.PutBackup(h.f.ctx, entry)
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

// unseal checks the command's passphrase where it has one, with the host's own key.
func (h *answerer) unseal(cmd messages.Command) error {
	sealed := ""
	switch c := cmd.(type) {
	case *messages.TakeBackup:
		sealed = c.Details.Passphrase
	case *messages.RestoreBackup:
		sealed = c.Details.Passphrase
	case *messages.VerifyBackup:
		sealed = c.Details.Passphrase
	}
	if sealed == "" {
		return nil
	}
	p, err := h.key.Open(sealed)
	if err != nil {
		return err
	}
	defer p.Wipe()
	if string(p.Bytes()) != Passphrase {
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
		Encrypted: c.Details.Encryption, Compressed: c.Details.Compression,
		VirtualBytes: 6 << 30, DataBytes: 719 << 20, StoredBytes: 251 << 20, BackupPath: c.BackupPath, Repository: c.Repository,
		Disks: []messages.CatalogDisk{{Name: "vda", File: "vda.qcow2", VirtualBytes: 6 << 30, DataBytes: 719 << 20, StoredBytes: 251 << 20}},
		Notes: []string{"cdrom sda left out"},
	}
}
