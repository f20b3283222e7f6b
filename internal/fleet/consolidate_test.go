package fleet

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/nasfleet/nasfleet/internal/fleet/fleettest"
	"github.com/nasfleet/nasfleet/messages"
)

// incrementalOf enters an incremental into the catalog, and the full backup that it continues.
func incrementalOf(t *testing.T, f *fleettest.Fleet, change func(*messages.CatalogEntry)) messages.CatalogEntry {
	t.Helper()
	full := backupAt(time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC), 1)
	b := backupAt(time.Date(2026, 1, 2, 0, 0, 0, 0, time.UTC), 2)
	b.Mode, b.Parent = messages.ModeIncremental, full.ID
	if change != nil {
		change(&b)
	}
	for _, e := range []messages.CatalogEntry{full, b} {
		if err := f.Bus.PutBackup(t.Context(), e); err != nil {
			t.Fatal(err)
		}
	}
	return b
}

// TestConsolidateIsFilled: the new backup is as the zone and the old one have it, where no flag says otherwise. What is
// encrypted stays so, and a passphrase that nobody keeps gives way to no other by itself.
func TestConsolidateIsFilled(t *testing.T) {
	m, f, _ := start(t)
	ctx := t.Context()
	old, current := rotate(t, m, "z1", " old", false), rotate(t, m, "z1", " new", false)
	const sealed = "(sealed)"
	of := func(revision string) func(*messages.CatalogEntry) {
		return func(e *messages.CatalogEntry) { e.Encrypted, e.Revision, e.Compressed = true, revision, true }
	}
	for name, tt := range map[string]struct {
		zone   []string
		change func(*messages.CatalogEntry)
		s      ConsolidateSettings
		want   messages.ConsolidateBackup
	}{
		"nothing": {},
		"compressed as it was": {
			change: func(e *messages.CatalogEntry) { e.Compressed = true },
			want:   messages.ConsolidateBackup{Details: messages.Details{Compression: true}},
		},
		"not compressed any more": {
			change: func(e *messages.CatalogEntry) { e.Compressed = true }, s: ConsolidateSettings{Compress: new(false)},
		},
		"as the zone": {
			zone: []string{"nas.backup.encryption.enabled=true", "nas.backup.compression.enabled=true", "nas.backup.bandwidth.limit.mbps=9", "nas.backup.integrity.check=true"},
			want: messages.ConsolidateBackup{Details: messages.Details{
				Compression: true, Encryption: true, Passphrase: sealed, Revision: current, BandwidthLimit: 9, IntegrityCheck: true,
			}},
		},
		"after a rotation": {
			change: of(old),
			want: messages.ConsolidateBackup{ChainPassphrase: sealed, ChainRevision: old, Details: messages.Details{
				Compression: true, Encryption: true, Passphrase: sealed, Revision: current,
			}},
		},
		"a passphrase that nobody keeps": {
			change: of(""), s: ConsolidateSettings{PassphraseFile: "-", CompressionType: "zlib"},
			want: messages.ConsolidateBackup{ChainPassphrase: sealed, Details: messages.Details{
				Compression: true, CompressionType: "zlib", Encryption: true, Passphrase: sealed,
			}},
		},
		"a new passphrase that nobody keeps": {
			change: of(old), s: ConsolidateSettings{NewPassphraseFile: "-"},
			want: messages.ConsolidateBackup{ChainPassphrase: sealed, ChainRevision: old, Details: messages.Details{
				Compression: true, Encryption: true, Passphrase: sealed,
			}},
		},
		"encrypted for the first time": {
			s: ConsolidateSettings{Encrypt: new(true), Attempts: 4, Timeout: time.Minute, Detail: map[string]string{"bandwidth_limit": "3"}},
			want: messages.ConsolidateBackup{Header: messages.Header{Attempts: 4, Timeout: 60}, Details: messages.Details{
				Encryption: true, Passphrase: sealed, Revision: current, BandwidthLimit: 3,
			}},
		},
	} {
		t.Run(name, func(t *testing.T) {
			entry := incrementalOf(t, f, tt.change)
			if tt.zone != nil {
				if err := m.Set(ctx, "z1", tt.zone); err != nil {
					t.Fatal(err)
				}
				defer func() {
					err := m.Unset(ctx, "z1", []string{messages.SettingEncryption, messages.SettingCompression, messages.SettingBandwidthLimit, messages.SettingIntegrityCheck})
					if err != nil {
						t.Error(err)
					}
				}()
			}
			tt.s.Backup = entry.ID
			job, err := m.ConsolidateJob(ctx, tt.s, passphrases())
			if err != nil {
				t.Fatal(err)
			}
			for range 2 {
				if err := m.Fill(ctx, []*Job{job}); err != nil {
					t.Fatal(err)
				}
			}
			got := *job.Redacted().(*messages.ConsolidateBackup)
			tt.want.Version, tt.want.Type, tt.want.JobID, tt.want.IssuedAt = 1, messages.TypeConsolidate, job.ID(), got.IssuedAt
			tt.want.Backup = entry.Ref()
			if diff := cmp.Diff(tt.want, got); diff != "" || job.Zone != "z1" || job.Host != "h1" {
				t.Error(diff, job.Zone, job.Host)
			}
		})
	}
}

func TestConsolidateRefuses(t *testing.T) {
	m, f, _ := start(t)
	plain := incrementalOf(t, f, nil)
	sealed := incrementalOf(t, f, func(e *messages.CatalogEntry) {
		e.ID = "01K5XZ8M4RA0T5B7C9D1E3F5G7"
		e.JobID = e.ID
		e.Encrypted = true
	})
	for name, tt := range map[string]struct {
		s    ConsolidateSettings
		want string
	}{
		"a full backup":              {ConsolidateSettings{BackupSettings: BackupSettings{Backup: plain.Parent}}, "full one already"},
		"nothing to open it with":    {ConsolidateSettings{BackupSettings: BackupSettings{Backup: sealed.ID}}, "no passphrase"},
		"in the clear afterwards":    {ConsolidateSettings{BackupSettings: BackupSettings{Backup: sealed.ID}, PassphraseFile: "-", Encrypt: new(false)}, "is encrypted"},
		"the same by another word":   {ConsolidateSettings{BackupSettings: BackupSettings{Backup: sealed.ID}, PassphraseFile: "-", Detail: map[string]string{"encryption": "false"}}, "is encrypted"},
		"a passphrase for nothing":   {ConsolidateSettings{BackupSettings: BackupSettings{Backup: plain.ID}, NewPassphraseFile: "-", Encrypt: new(false)}, "no encryption"},
		"a passphrase and no word":   {ConsolidateSettings{BackupSettings: BackupSettings{Backup: plain.ID}, NewPassphraseFile: "-"}, "no encryption"},
		"none for a zone without":    {ConsolidateSettings{BackupSettings: BackupSettings{Backup: plain.ID}, Encrypt: new(true)}, "passphrase_missing"},
		"two passphrases":            {ConsolidateSettings{BackupSettings: BackupSettings{Backup: plain.ID}, NewPassphraseFile: "-", Encrypt: new(true), Detail: map[string]string{"encryption_passphrase": "sealed1.x"}}, "contradict"},
		"an unknown detail":          {ConsolidateSettings{BackupSettings: BackupSettings{Backup: plain.ID}, Detail: map[string]string{"encrpytion": "true"}}, "unknown detail"},
		"a job id that is no ULID":   {ConsolidateSettings{BackupSettings: BackupSettings{Backup: plain.ID, JobID: "x"}}, "job id"},
		"the backup as the new one":  {ConsolidateSettings{BackupSettings: BackupSettings{Backup: plain.ID, JobID: plain.ID}}, "is the one that the job makes"},
		"a backup that is not there": {ConsolidateSettings{BackupSettings: BackupSettings{Backup: "01K5XZ8M4RA0T5B7C9D1E3F5G8"}}, "not in the catalog"},
	} {
		job, err := m.ConsolidateJob(t.Context(), tt.s, passphrases())
		if err == nil {
			err = m.Fill(t.Context(), []*Job{job})
		}
		if class := ClassOf(err); class != Usage && class != NotFound || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A consolidation that failed is replayed with the passphrase of its chain, sealed for the key that the host has by
// now; what it made is in the catalog.
func TestReplayOfAConsolidation(t *testing.T) {
	m, f, _ := start(t)
	revision := rotate(t, m, "z1", "", false)
	entry := incrementalOf(t, f, func(e *messages.CatalogEntry) { e.VM, e.Encrypted, e.Revision = "down", true, revision })
	job, err := m.ConsolidateJob(t.Context(), ConsolidateSettings{BackupSettings: BackupSettings{Backup: entry.ID}}, passphrases())
	if err != nil {
		t.Fatal(err)
	}
	results, err := m.Run(t.Context(), []*Job{job}, &journal{})
	if err != nil || results[0].Failure() == nil {
		t.Fatal(err, results[0])
	}
	if err := f.Rekey("z1", "h1"); err != nil {
		t.Fatal(err)
	}
	plan, err := m.PlanReplay(t.Context(), ReplaySettings{Jobs: []string{job.ID()}})
	if err != nil {
		t.Fatal(err)
	}
	ev := runOne(t, m, plan[0].Job)
	b, err := m.Backup(t.Context(), ev.BackupID, "", "")
	if err != nil || b.ConsolidatedFrom != entry.ID || !b.CreatedAt.Equal(entry.CreatedAt) || b.Revision != revision {
		t.Errorf("%+v, %v", b, err)
	}
	story, err := m.Job(t.Context(), plan[0].Job.ID(), "", "")
	if err != nil || story.Command.(*messages.ConsolidateBackup).ChainPassphrase != "(sealed)" {
		t.Errorf("%+v, %v", story.Command, err)
	}
}
