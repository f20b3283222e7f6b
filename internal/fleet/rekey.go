package fleet

import (
	"bytes"
	"context"
	"fmt"

	"github.com/nasfleet/nasfleet/internal/secret"
	"github.com/nasfleet/nasfleet/messages"
)

// RekeySettings say which backup gets another passphrase, and which one.
type RekeySettings struct {
	BackupSettings
	PassphraseFile    string `help:"File that holds the passphrase that opens the backup now, - for standard input; the one kept for it if left out." placeholder:"FILE"`
	NewPassphraseFile string `help:"File that holds the new passphrase, - for standard input; the zone's current one if left out." placeholder:"FILE"`
}

// RekeyJob makes the job that puts another passphrase on a stored backup: that of the file, or the
// current one of the backup's zone, with the zone's recovery passphrase beside it. What opened the
// backup before no longer does.
func (m *Manager) RekeyJob(ctx context.Context, s RekeySettings, r *Passphrases) (*Job, error) {
	entry, err := m.Backup(ctx, s.Backup, s.Zone, s.Host)
	if err != nil {
		return nil, err
	}
	if !entry.Encrypted {
		return nil, usagef("backup %s is not encrypted", entry.ID)
	}
	if s.PassphraseFile != "" && s.PassphraseFile == s.NewPassphraseFile {
		return nil, usagef("--passphrase-file and --new-passphrase-file are the same")
	}
	head, err := newHeader(messages.TypeRekey, s.JobID, 0, 0)
	if err != nil {
		return nil, err
	}
	zone, _, err := m.bus.ZoneSettings(ctx, entry.Zone)
	if err != nil {
		return nil, fmt.Errorf("settings of zone %s: %w", entry.Zone, err)
	}
	cmd := &messages.RekeyBackup{Header: head, Backup: entry.Ref()}
	job := &Job{Zone: s.zone(entry), Host: s.host(entry), Command: cmd, chosenID: s.JobID != ""}
	old, err := m.opener(ctx, entry, s.PassphraseFile, r)
	if err != nil {
		return nil, err
	}
	if s.PassphraseFile == "" {
		cmd.OldRevision = entry.Revision
	}
	fresh, err := m.newPassphrase(ctx, s, entry, zone, r)
	if err != nil {
		return nil, err
	}
	if s.NewPassphraseFile == "" {
		cmd.Details.Revision = zone.Passphrase
	}
	if bytes.Equal(old.Bytes(), fresh.Bytes()) {
		return nil, usagef("the new passphrase is the old one")
	}
	job.sealings = []sealing{{old, &cmd.OldPassphrase}, {fresh, &cmd.Details.Passphrase}}
	if zone.Recovery != "" {
		cmd.Details.RecoveryRevision = zone.Recovery
		recovery, err := m.kept(ctx, entry.Zone, zone.Recovery)
		if err != nil {
			return nil, err
		}
		job.sealings = append(job.sealings, sealing{recovery, &cmd.Details.Recovery})
	}
	return job, job.check()
}

func (m *Manager) newPassphrase(ctx context.Context, s RekeySettings, entry messages.CatalogEntry, zone messages.ZoneSettings, r *Passphrases) (*secret.Passphrase, error) {
	switch {
	case s.NewPassphraseFile != "":
		return r.Read(s.NewPassphraseFile)
	case zone.Passphrase == "":
		return nil, noPassphrase(entry.Zone)
	case zone.Passphrase == entry.Revision:
		return nil, &Error{
			Class: Usage, Err: fmt.Errorf("backup %s has the current passphrase of zone %s already", entry.ID, entry.Zone),
			Hint: "Rotate the zone's passphrase first (publisher zone passphrase rotate), or give another (--new-passphrase-file FILE).",
		}
	}
	return m.kept(ctx, entry.Zone, zone.Passphrase)
}

// opener returns the passphrase that opens a backup: that of the file, or the one that is kept for it.
func (m *Manager) opener(ctx context.Context, entry messages.CatalogEntry, file string, r *Passphrases) (*secret.Passphrase, error) {
	switch {
	case file != "":
		return r.Read(file)
	case entry.Revision == "":
		return nil, &Error{
			Class: Usage, Err: fmt.Errorf("backup %s is encrypted and there is no passphrase", entry.ID),
			Hint: "Give the passphrase it was taken with (--passphrase-file FILE, or - for standard input).",
		}
	}
	return m.kept(ctx, entry.Zone, entry.Revision)
}
