package fleet

import (
	"context"
	"fmt"
	"slices"

	"github.com/nasfleet/nasfleet/messages"
)

// filling says what of a backup's details was asked for; the rest is as the zone has it.
type filling struct {
	given map[string]bool
	// from is what a backup is made of: what that has goes on where nothing else was asked for; nil for one
	// that is taken.
	from *messages.CatalogEntry
	// target is the job's place in a file of targets, from 1; 0 for a job of its own.
	target int
}

// Fill completes backups with the settings of their zones, where the command does not say otherwise.
// Encryption without a passphrase is refused (class Usage), and then no job counts as filled. Send and
// Run do it by themselves; calling it again changes nothing.
func (m *Manager) Fill(ctx context.Context, jobs []*Job) error {
	zones := map[string]messages.ZoneSettings{}
	for _, j := range jobs {
		if j.fill == nil {
			continue
		}
		s, known := zones[j.Zone]
		if !known {
			var err error
			if s, _, err = m.bus.ZoneSettings(ctx, j.Zone); err != nil {
				return fmt.Errorf("settings of zone %s: %w", j.Zone, err)
			}
			zones[j.Zone] = s
		}
		if err := m.fillOne(ctx, j, s); err != nil {
			if j.fill.target > 0 {
				err = atTarget(j.fill.target-1, err)
			}
			return err
		}
	}
	for _, j := range jobs {
		j.fill = nil
	}
	return nil
}

func (m *Manager) fillOne(ctx context.Context, j *Job, s messages.ZoneSettings) error {
	d, given, from := detailsOf(j.Command), j.fill.given, j.fill.from
	if !given[messages.DetailCompression] {
		d.Compression = s.Compression || from != nil && from.Compressed
	}
	if !given[messages.DetailBandwidthLimit] {
		d.BandwidthLimit = s.BandwidthLimit
	}
	if !given[messages.DetailIntegrityCheck] {
		d.IntegrityCheck = s.IntegrityCheck
	}
	if !given[messages.DetailEncryption] {
		d.Encryption = s.Encryption || from != nil && from.Encrypted
	}
	passphrase := d.Passphrase != "" || slices.ContainsFunc(j.sealings, func(s sealing) bool { return s.into == &d.Passphrase })
	if !d.Encryption {
		if passphrase {
			return passphraseForNothing()
		}
		return nil
	}
	if !passphrase {
		p, revision, err := m.newKept(ctx, j, s)
		if err != nil {
			return err
		}
		d.Revision = revision
		j.sealings = append(j.sealings, sealing{p, &d.Passphrase})
	}
	if d.Recovery == "" && s.Recovery != "" {
		d.RecoveryRevision = s.Recovery
		if err := m.sealKept(ctx, j, s.Recovery, &d.Recovery); err != nil {
			return err
		}
	}
	return j.check()
}

// sealKept has a passphrase that is kept for the job's zone sealed into a field of its command.
func (m *Manager) sealKept(ctx context.Context, j *Job, revision string, into *string) error {
	p, err := m.kept(ctx, j.Zone, revision)
	if err != nil {
		return err
	}
	j.sealings = append(j.sealings, sealing{p, into})
	return nil
}

func noPassphrase(zone string) error {
	return &Error{
		Class: Usage, Err: messages.Errorf(messages.CodePassphraseMissing, "the backup is to be encrypted and zone %s has no passphrase", zone),
		Hint: "Give one (--passphrase-file FILE), keep one for the zone (publisher zone passphrase rotate), or turn encryption off (--no-encrypt).",
	}
}

// Wipe overwrites the passphrases that the Manager has opened. Jobs that hold one cannot be sent any more.
func (m *Manager) Wipe() { m.book.wipe() }
