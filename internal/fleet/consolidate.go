package fleet

import (
	"context"
	"time"

	"github.com/nasfleet/nasfleet/internal/secret"
	"github.com/nasfleet/nasfleet/messages"
)

// ConsolidateSettings say which incremental becomes a full backup, and shape that. A feature that is not
// set (nil) is on where the zone or the incremental has it.
type ConsolidateSettings struct {
	BackupSettings
	PassphraseFile    string            `help:"File that holds the passphrase that opens the backup now, - for standard input; the one kept for it if left out." placeholder:"FILE"`
	NewPassphraseFile string            `help:"File that holds the passphrase of the new backup, - for standard input; the zone's current one, or that of the old backup, if left out." placeholder:"FILE"`
	Compress          *bool             `help:"Compress the new backup." negatable:""`
	CompressionType   string            `help:"Compression: zstd or zlib." placeholder:"TYPE"`
	Encrypt           *bool             `help:"Encrypt the new backup (LUKS). What is encrypted stays so." negatable:""`
	Bandwidth         *int              `help:"Limit of the job, all its disks together; 0 is none." placeholder:"MIB/S"`
	Verify            *bool             `help:"Read the new backup back after the copy and compare it with its digests." negatable:""`
	Detail            map[string]string `help:"Set a detail of the command as it travels; one that contradicts a flag is refused." mapsep:"none" placeholder:"KEY=VALUE"`
	Attempts          int               `help:"How often the job is tried; 0 is the contract's default." placeholder:"N"`
	Timeout           time.Duration     `help:"How long the job may take, all attempts together, such as 2h; 0 is the host's limit." placeholder:"DURATION"`
}

// ConsolidateJob makes the job that turns an incremental and all that it continues into a new full backup.
// Passphrases are read through r. Manager.Fill completes it.
func (m *Manager) ConsolidateJob(ctx context.Context, s ConsolidateSettings, r *Passphrases) (*Job, error) {
	entry, err := m.Backup(ctx, s.Backup, s.Zone, s.Host)
	if err != nil {
		return nil, err
	}
	if entry.Parent == "" {
		return nil, usagef("backup %s is a full one already: it needs no other to be restored", entry.ID)
	}
	details, given, err := s.features().details()
	if err != nil {
		return nil, err
	}
	head, err := newHeader(messages.TypeConsolidate, s.JobID, s.Attempts, s.Timeout)
	if err != nil {
		return nil, err
	}
	cmd := &messages.ConsolidateBackup{Header: head, Backup: entry.Ref(), Details: details}
	job := &Job{
		Zone: s.zone(entry), Host: s.host(entry), Command: cmd, chosenID: s.JobID != "",
		fill: &filling{given: given, from: &entry},
	}
	if given[messages.DetailEncryption] && !details.Encryption {
		if entry.Encrypted {
			return nil, usagef("backup %s is encrypted, and so is what is made of it", entry.ID)
		}
		if s.NewPassphraseFile != "" {
			return nil, passphraseForNothing()
		}
	}
	if entry.Encrypted {
		if err := m.openChain(ctx, job, s, entry, r); err != nil {
			return nil, err
		}
	}
	if s.NewPassphraseFile != "" {
		if details.Passphrase != "" {
			return nil, usagef("--new-passphrase-file and --detail %s contradict each other", messages.DetailPassphrase)
		}
		p, err := r.Read(s.NewPassphraseFile)
		if err != nil {
			return nil, err
		}
		job.sealings = append(job.sealings, sealing{p, &cmd.Details.Passphrase})
	}
	return job, job.check()
}

// openChain has what opens the incremental sealed into the command. A passphrase that nobody keeps is the new
// backup's as well, unless another is given: whoever chose it did not mean the zone's to open his data.
func (m *Manager) openChain(ctx context.Context, j *Job, s ConsolidateSettings, entry messages.CatalogEntry, r *Passphrases) error {
	p, err := m.opener(ctx, entry, s.PassphraseFile, r)
	if err != nil {
		return err
	}
	cmd := j.Command.(*messages.ConsolidateBackup)
	j.sealings = append(j.sealings, sealing{p, &cmd.ChainPassphrase})
	if s.PassphraseFile == "" {
		cmd.ChainRevision = entry.Revision
	}
	if entry.Revision == "" && s.NewPassphraseFile == "" && cmd.Details.Passphrase == "" {
		j.sealings = append(j.sealings, sealing{p, &cmd.Details.Passphrase})
	}
	return nil
}

// features are the settings that shape the new backup, as those of one that is taken.
func (s ConsolidateSettings) features() TakeSettings {
	return TakeSettings{
		Compress: s.Compress, CompressionType: s.CompressionType, Encrypt: s.Encrypt, Bandwidth: s.Bandwidth, Verify: s.Verify, Detail: s.Detail,
	}
}

// newKept returns what a backup is encrypted with that was given no passphrase, and its name: the
// zone's current one, or that of what it is made of.
func (m *Manager) newKept(ctx context.Context, j *Job, s messages.ZoneSettings) (*secret.Passphrase, string, error) {
	switch from := j.fill.from; {
	case s.Passphrase != "":
		p, err := m.kept(ctx, j.Zone, s.Passphrase)
		return p, s.Passphrase, err
	case from != nil && from.Revision != "":
		p, err := m.kept(ctx, from.Zone, from.Revision)
		return p, from.Revision, err
	}
	return nil, "", noPassphrase(j.Zone)
}
