package exec

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"time"

	"github.com/nasfleet/nasfleet/internal/exec/digest"
	"github.com/nasfleet/nasfleet/internal/exec/repository"
	"github.com/nasfleet/nasfleet/messages"
)

// The end of a backup: its manifest, what stands beside its disks, and its name.

// domainFile is the VM's definition beside its disks.
const domainFile = "domain.xml"

// commit writes what stands beside the disks and gives the backup its name.
func (t *taking) commit(ctx context.Context) error {
	if err := t.describe(); err != nil {
		return err
	}
	for _, d := range t.disks {
		if err := t.partial.CopyIn(ctx, filepath.Join(t.ws.dir, d.digestsFile), d.digestsFile); err != nil {
			return err
		}
	}
	if xml := t.src.domainXML(); xml != "" {
		t.man.DomainFile = domainFile
		if err := t.partial.WriteFile(ctx, domainFile, []byte(xml)); err != nil {
			return err
		}
	}
	b, err := t.partial.Commit(ctx, t.man)
	if messages.CodeOf(err) == messages.CodeChainBroken {
		return t.chainGone(err)
	}
	if err != nil {
		return err
	}
	t.man = b.Manifest
	t.src.keep()
	return nil
}

// describe fills in the manifest. The sizes of the files are the repository's to say.
func (t *taking) describe() error {
	m, cfg := &t.man, t.e.cfg
	m.ID, m.JobID, m.VM = t.ws.job, t.ws.job, t.cmd.Target()
	m.Version, m.Zone, m.Host = repository.ManifestVersion, cfg.Zone, cfg.Host
	m.Tool = "nasfleet " + cfg.Version
	m.FinishedAt = time.Now().UTC()
	t.src.describe(m)
	if m.Consistency == "" {
		m.Consistency = consistency(m.Source, m.Quiesced)
	}
	for _, s := range m.Skipped {
		m.Notes = append(m.Notes, skippedNote(s))
	}
	if t.cmd.Details.Compression {
		m.Compression = t.cmd.Details.Type()
	}
	m.Digest = repository.Digest{Algorithm: digest.Algorithm(t.cmd.Details.Encryption), BlockBytes: digest.BlockSize}
	if t.cmd.Details.Encryption {
		m.Encryption = repository.Encryption{
			LUKS: true, Revision: t.cmd.Details.Revision, RecoveryRevision: t.cmd.Details.RecoveryRevision,
		}
		m.Digest.Keyed, m.Digest.WrappedKeys = true, t.wrappedKeys
		if t.wrappedKeys == nil {
			var err error
			if m.Digest.WrappedKeys, err = t.e.wrap(t.digKey, t.pass, t.recovery); err != nil {
				return err
			}
		}
	}
	m.Checkpoint = t.point.checkpoint.Name
	for _, d := range t.disks {
		m.Disks = append(m.Disks, repository.Disk{
			Name: d.name, File: d.file, DigestsFile: d.digestsFile, Format: repository.FormatQCOW2, LUKS: t.cmd.Details.Encryption,
			Incremental: t.incremental(d), Bitmap: slices.Contains(t.point.checkpoint.Disks, d.name),
			VirtualBytes: d.size, DataBytes: d.stats.DataBytes,
			Source: repository.Source{Path: d.path, Format: d.format, Encrypted: d.encrypted},
		})
	}
	return nil
}

func skippedNote(s repository.Skipped) string {
	return fmt.Sprintf("%s was left out: %s", s.Target, s.Reason)
}

// consistency says in words how far the data can be trusted.
func consistency(from repository.SourceKind, quiesced bool) string {
	switch {
	case quiesced:
		return "file systems frozen: consistent"
	case from == repository.SourceRunning:
		return "crash-consistent: all disks at one moment of a running guest"
	}
	return "consistent: nobody wrote the disks"
}
