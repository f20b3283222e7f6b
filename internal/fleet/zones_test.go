package fleet

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"github.com/nasfleet/nasfleet/internal/bus"
	"github.com/nasfleet/nasfleet/internal/fleet/fleettest"
	"github.com/nasfleet/nasfleet/internal/secret"
	"github.com/nasfleet/nasfleet/messages"
)

// phrase is a passphrase that the hosts of fleettest take.
func phrase(t *testing.T, suffix string) *secret.Passphrase {
	t.Helper()
	p, err := secret.NewPassphrase([]byte(fleettest.Passphrase + suffix))
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func rotate(t *testing.T, m *Manager, zone, suffix string, recovery bool) string {
	t.Helper()
	revision, err := m.RotatePassphrase(t.Context(), zone, phrase(t, suffix), Rotation{Recovery: recovery})
	if err != nil {
		t.Fatal(err)
	}
	return revision
}

// runOne runs a job, which must succeed, and returns its final event.
func runOne(t *testing.T, m *Manager, job *Job) messages.Event {
	t.Helper()
	results, err := m.Run(t.Context(), []*Job{job}, &journal{})
	if err != nil || results[0].Failure() != nil {
		t.Fatal(err, results[0].Failure())
	}
	return *results[0].Final
}

func TestZoneSettingsAreStrict(t *testing.T) {
	m, _, _ := start(t)
	for name, tt := range map[string]struct {
		assignments []string
		want        string
	}{
		"misspelt":            {[]string{"nas.backup.encrpytion.enabled=true"}, "there is no setting"},
		"another case":        {[]string{"NAS.backup.compression.enabled=true"}, "there is no setting"},
		"no value":            {[]string{"nas.backup.compression.enabled"}, "has no value"},
		"no setting":          {[]string{"hunter2"}, "KEY=VALUE"},
		"yes":                 {[]string{"nas.backup.compression.enabled=yes"}, "neither true nor false"},
		"empty":               {[]string{"nas.backup.integrity.check="}, "neither true nor false"},
		"below 0":             {[]string{"nas.backup.bandwidth.limit.mbps=-1"}, "not an integer"},
		"a unit":              {[]string{"nas.backup.bandwidth.limit.mbps=10M"}, "not an integer"},
		"too much":            {[]string{"nas.backup.bandwidth.limit.mbps=1073741825"}, "not an integer"},
		"twice":               {[]string{"nas.backup.integrity.check=true", "nas.backup.integrity.check=true"}, "given twice"},
		"secret in argv":      {[]string{"nas.backup.encryption.passphrase=hunter2"}, "not set on the command line"},
		"without a key":       {[]string{"nas.backup.encryption.enabled=true"}, "has no passphrase"},
		"good and then wrong": {[]string{"nas.backup.compression.enabled=true", "x=y"}, "there is no setting"},
	} {
		err := m.Set(t.Context(), "z1", tt.assignments)
		if ClassOf(err) != Usage || !strings.Contains(err.Error(), tt.want) || strings.Contains(err.Error()+HintOf(err), "hunter2") {
			t.Errorf("%s: %v", name, err)
		}
	}
	z, err := m.Zone(t.Context(), "z1")
	if diff := cmp.Diff(describe(messages.ZoneSettings{Zone: "z1"}), z); diff != "" || err != nil {
		t.Errorf("something was set: %s, %v", diff, err)
	}
	for _, s := range z.Settings {
		if s.Value != s.Default || s.Type == "" || s.Description == "" {
			t.Errorf("%+v", s)
		}
	}
	if err := m.Set(t.Context(), "a.b", []string{"nas.backup.compression.enabled=true"}); ClassOf(err) != Usage {
		t.Errorf("a zone of two tokens: %v", err)
	}
}

func TestEncryptionNeedsAPassphraseToTheEnd(t *testing.T) {
	m, f, _ := start(t)
	ctx := t.Context()
	revision := rotate(t, m, "z1", "", false)
	if err := m.Set(ctx, "z1", []string{"nas.backup.encryption.enabled=true"}); err != nil {
		t.Fatal(err)
	}
	// It cannot be taken away while encryption is on, alone or by somebody else's hand.
	if err := m.Unset(ctx, "z1", []string{messages.SettingPassphrase}); ClassOf(err) != Usage || !strings.Contains(err.Error(), "passphrase_missing") {
		t.Errorf("unset: %v", err)
	}
	if s, err := m.Get(ctx, "z1", messages.SettingPassphrase); err != nil || s.Value != revision {
		t.Errorf("%+v, %v", s, err)
	}
	if err := m.Unset(ctx, "z1", []string{messages.SettingEncryption, messages.SettingPassphrase}); err != nil {
		t.Error(err)
	}
	// What is taken with --encrypt in a zone without a passphrase is refused before it is published.
	settings := TakeSettings{RepositorySettings: nas(), Encrypt: new(true)}
	job, err := TakeJob(Source{Zone: "z1", Host: "h1", VM: "web"}, settings, passphrases())
	if err != nil {
		t.Fatal(err)
	}
	if _, err := m.Send(ctx, []*Job{job}, &journal{}); ClassOf(err) != Usage || !strings.Contains(err.Error(), "passphrase_missing") {
		t.Errorf("send: %v", err)
	}
	if _, err := f.Bus.Command(ctx, "z1", "h1", job.ID()); !errors.Is(err, bus.ErrNotFound) && !errors.Is(err, bus.ErrNoStream) {
		t.Errorf("it was published: %v", err)
	}
}

// TestTakeIsFilledFromItsZone: each target of a fleet gets the settings of its own zone.
func TestTakeIsFilledFromItsZone(t *testing.T) {
	m, _, _ := start(t)
	ctx := t.Context()
	revision, recovery := rotate(t, m, "z1", " one", false), rotate(t, m, "z1", " safe", true)
	if err := m.Set(ctx, "z1", []string{
		"nas.backup.encryption.enabled=true", "nas.backup.compression.enabled=true",
		"nas.backup.bandwidth.limit.mbps=9", "nas.backup.integrity.check=true",
	}); err != nil {
		t.Fatal(err)
	}
	jobs, err := parseTargets([]byte(`
- {zone: z1, host: h1, vm: all}
- {zone: z1, host: h1, vm: none, overrides: {compress: false, encrypt: false, bandwidth: 0, verify: false}}
- {zone: z1, host: h1, vm: detail, overrides: {detail: {encryption: "false", bandwidth_limit: "0"}}}
- {zone: z1, host: h1, vm: own, overrides: {passphrase-file: "-"}}
- {zone: z2, host: h2, vm: other}
`), Source{}, TakeSettings{RepositorySettings: nas()}, passphrases())
	if err != nil {
		t.Fatal(err)
	}
	for range 2 { // filling again changes nothing
		if err := m.Fill(ctx, jobs); err != nil {
			t.Fatal(err)
		}
	}
	sealed := "(sealed)"
	want := []messages.Details{
		{Compression: true, Encryption: true, Passphrase: sealed, Revision: revision, Recovery: sealed, RecoveryRevision: recovery, BandwidthLimit: 9, IntegrityCheck: true},
		{},
		{Compression: true, IntegrityCheck: true},
		{Compression: true, Encryption: true, Passphrase: sealed, Recovery: sealed, RecoveryRevision: recovery, BandwidthLimit: 9, IntegrityCheck: true},
		{},
	}
	for i, job := range jobs {
		if diff := cmp.Diff(want[i], job.Redacted().(*messages.TakeBackup).Details); diff != "" {
			t.Errorf("target %d: %s", i+1, diff)
		}
	}
	results, err := m.Run(ctx, jobs, &journal{})
	if err != nil {
		t.Fatal(err)
	}
	for i, r := range results {
		if r.Failure() != nil || r.Final.Backup.Encrypted != want[i].Encryption || r.Final.Backup.Revision != want[i].Revision {
			t.Errorf("target %d: %v, %+v", i+1, r.Failure(), r.Final)
		}
	}
}

// TestPassphraseForNothing: who gives a passphrase does not get a backup in the clear.
func TestPassphraseForNothing(t *testing.T) {
	m, _, _ := start(t)
	for name, s := range map[string]TakeSettings{
		"in a file":   {RepositorySettings: nas(), PassphraseFile: "-"},
		"in a detail": {RepositorySettings: nas(), Detail: map[string]string{messages.DetailPassphrase: "sealed1.x"}},
	} {
		job, err := TakeJob(Source{Zone: "z1", Host: "h1", VM: "web"}, s, passphrases())
		if err != nil {
			t.Fatal(err)
		}
		if err := m.Fill(t.Context(), []*Job{job}); ClassOf(err) != Usage {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestFlagsWin: whatever the zone says, what the command line speaks of is as it says.
func TestFlagsWin(t *testing.T) {
	m, _, _ := start(t)
	ctx := t.Context()
	rotate(t, m, "z1", "", false)
	rapid.Check(t, func(rt *rapid.T) {
		zone := messages.ZoneSettings{
			Zone: "z1", Compression: rapid.Bool().Draw(rt, "zone compression"), Encryption: rapid.Bool().Draw(rt, "zone encryption"),
			BandwidthLimit: rapid.IntRange(0, 3).Draw(rt, "zone limit"), IntegrityCheck: rapid.Bool().Draw(rt, "zone check"),
		}
		var assignments []string
		for _, s := range describe(zone).Settings {
			if s.Type != "secret" {
				assignments = append(assignments, s.Key+"="+s.Value)
			}
		}
		if err := m.Set(ctx, "z1", assignments); err != nil {
			rt.Fatal(err)
		}
		s := TakeSettings{RepositorySettings: nas()}
		for name, flag := range map[string]**bool{"compress": &s.Compress, "encrypt": &s.Encrypt, "verify": &s.Verify} {
			*flag = rapid.SampledFrom([]*bool{nil, new(true), new(false)}).Draw(rt, name)
		}
		if limit := rapid.IntRange(-1, 3).Draw(rt, "limit"); limit >= 0 {
			s.Bandwidth = &limit
		}
		job, err := TakeJob(Source{Zone: "z1", Host: "h1", VM: "web"}, s, passphrases())
		if err != nil {
			rt.Fatal(err)
		}
		if err := m.Fill(ctx, []*Job{job}); err != nil {
			rt.Fatal(err)
		}
		d := job.Redacted().(*messages.TakeBackup).Details
		or := func(flag *bool, zone bool) bool {
			if flag != nil {
				return *flag
			}
			return zone
		}
		limit := zone.BandwidthLimit
		if s.Bandwidth != nil {
			limit = *s.Bandwidth
		}
		if d.Compression != or(s.Compress, zone.Compression) || d.Encryption != or(s.Encrypt, zone.Encryption) ||
			d.IntegrityCheck != or(s.Verify, zone.IntegrityCheck) || d.BandwidthLimit != limit || (d.Passphrase != "") != d.Encryption {
			rt.Fatalf("zone %+v, flags %+v: %v", zone, s, d)
		}
	})
}

// TestRotationsOrphanNothing takes a backup under each of four passphrases and then reads all of them,
// rekeys the oldest, and runs an old job again.
func TestRotationsOrphanNothing(t *testing.T) {
	m, f, _ := start(t)
	ctx := t.Context()
	settings := TakeSettings{RepositorySettings: nas(), Encrypt: new(true)}
	var backups []string
	revisions := map[string]bool{}
	for i := range 4 {
		revisions[rotate(t, m, "z1", fmt.Sprintf(" %d", i), false)] = true
		job, err := TakeJob(Source{Zone: "z1", Host: "h1", VM: "web"}, settings, passphrases())
		if err != nil {
			t.Fatal(err)
		}
		backups = append(backups, runOne(t, m, job).BackupID)
	}
	if len(revisions) != 4 {
		t.Fatalf("revisions %v", revisions)
	}
	read := func(m *Manager) {
		t.Helper()
		for _, id := range backups {
			job, err := m.RestoreJob(ctx, RestoreSettings{BackupSettings: BackupSettings{Backup: id}, To: "/r"}, passphrases())
			if err != nil {
				t.Fatal(err)
			}
			runOne(t, m, job)
			if job, err = m.VerifyJob(ctx, BackupSettings{Backup: id}, ReadSettings{}, passphrases()); err != nil {
				t.Fatal(err)
			}
			runOne(t, m, job)
		}
	}
	read(m)
	read(New(f.Bus, m.keys, m.log)) // another program with the same keys

	list, err := m.ZonePassphrases(ctx, "z1")
	if err != nil || len(list) != 4 {
		t.Fatalf("%+v, %v", list, err)
	}
	for i, p := range list {
		if p.Backups != 1 || !p.Opens || p.Current != (i == 3) {
			t.Errorf("%+v", p)
		}
	}

	job, err := m.RekeyJob(ctx, RekeySettings{BackupSettings: BackupSettings{Backup: backups[0]}}, passphrases())
	if err != nil {
		t.Fatal(err)
	}
	if ev := runOne(t, m, job); ev.Backup.Revision != list[3].Revision {
		t.Errorf("%+v", ev.Backup)
	}
	if _, err := m.RekeyJob(ctx, RekeySettings{BackupSettings: BackupSettings{Backup: backups[0]}}, passphrases()); ClassOf(err) != Usage {
		t.Errorf("rekeyed with what it has: %v", err)
	}
	// Hosts take no passphrase for a new one that is the old one, also where there is a new recovery passphrase.
	rotate(t, m, "z1", " safe", true)
	if _, err := m.RekeyJob(ctx, RekeySettings{BackupSettings: BackupSettings{Backup: backups[0]}}, passphrases()); !strings.Contains(HintOf(err), "passphrase rotate") {
		t.Errorf("%v: %s", err, HintOf(err))
	}
	read(m)
}

// A job that is replayed after a rotation has the passphrase it was published with, sealed for the key
// that its host has by now.
func TestReplayAfterRotation(t *testing.T) {
	m, f, _ := start(t)
	ctx := t.Context()
	revision := rotate(t, m, "z1", " old", false)
	job, err := TakeJob(Source{Zone: "z1", Host: "h1", VM: "down"}, TakeSettings{RepositorySettings: nas(), Encrypt: new(true)}, passphrases())
	if err != nil {
		t.Fatal(err)
	}
	results, err := m.Run(ctx, []*Job{job}, &journal{})
	if err != nil || results[0].Failure() == nil {
		t.Fatal(err, results[0])
	}
	before := job.Command.(*messages.TakeBackup).Details.Passphrase
	rotate(t, m, "z1", " new", false)
	// The host is made anew, with another key.
	if err := f.Rekey("z1", "h1"); err != nil {
		t.Fatal(err)
	}
	plan, err := m.PlanReplay(ctx, ReplaySettings{Jobs: []string{job.ID()}})
	if err != nil {
		t.Fatal(err)
	}
	ev := runOne(t, m, plan[0].Job)
	d := plan[0].Job.Command.(*messages.TakeBackup).Details
	if ev.Backup.Revision != revision || d.Passphrase == before || d.Revision != revision {
		t.Errorf("%+v, %v", ev.Backup, d)
	}
}

// TestLostKey: without the publisher's key nothing that is kept opens, new backups go on with a new
// passphrase, and who knows an old one puts it back.
func TestLostKey(t *testing.T) {
	m, f, _ := start(t)
	ctx := t.Context()
	revision := rotate(t, m, "z1", " old", false)
	settings := TakeSettings{RepositorySettings: nas(), Encrypt: new(true)}
	take := func(m *Manager) (messages.Event, error) {
		job, err := TakeJob(Source{Zone: "z1", Host: "h1", VM: "web"}, settings, passphrases())
		if err != nil {
			t.Fatal(err)
		}
		results, err := m.Run(ctx, []*Job{job}, &journal{})
		if err != nil {
			return messages.Event{}, err
		}
		return *results[0].Final, results[0].Failure()
	}
	ev, err := take(m)
	if err != nil {
		t.Fatal(err)
	}

	lost := New(f.Bus, secret.NewFolder(t.TempDir()+"/keys"), m.log)
	if _, err := take(lost); err == nil || HintOf(err) == "" {
		t.Errorf("a backup with a passphrase that nobody could read: %v", err)
	}
	restore := func(m *Manager, file string, r *Passphrases) error {
		job, err := m.RestoreJob(ctx, RestoreSettings{
			BackupSettings: BackupSettings{Backup: ev.BackupID}, ReadSettings: ReadSettings{PassphraseFile: file}, To: "/r",
		}, r)
		if err != nil {
			return err
		}
		results, err := m.Run(ctx, []*Job{job}, &journal{})
		return errors.Join(err, results[0].Failure())
	}
	if err := restore(lost, "", passphrases()); err == nil || !strings.Contains(HintOf(err), "--keys") {
		t.Errorf("%v, hint %q", err, HintOf(err))
	}
	if err := restore(lost, "-", NewPassphrases(strings.NewReader(fleettest.Passphrase+" old"))); err != nil {
		t.Errorf("with the passphrase itself: %v", err)
	}
	// Nothing is kept with a new key by mistake, whatever the zone.
	for _, zone := range []string{"z1", "z2"} {
		for _, recovery := range []bool{false, true} {
			_, err := lost.RotatePassphrase(ctx, zone, phrase(t, " new"), Rotation{Recovery: recovery})
			if ClassOf(err) != Usage || !strings.Contains(HintOf(err), "--new-key") {
				t.Errorf("%s: %v, hint %q", zone, err, HintOf(err))
			}
		}
	}
	if err := lost.RestorePassphrase(ctx, "z1", revision, phrase(t, " old")); ClassOf(err) != Usage {
		t.Errorf("restored with a new key: %v", err)
	}
	if _, err := os.Stat(lost.keys.Path(secret.SealKeyFile)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a key was made: %v", err)
	}
	if _, err := lost.RotatePassphrase(ctx, "z1", phrase(t, " new"), Rotation{NewKey: true}); err != nil {
		t.Fatal(err)
	}
	rotate(t, lost, "z1", " new", false)
	if _, err := m.RotatePassphrase(ctx, "z1", phrase(t, ""), Rotation{}); ClassOf(err) != Usage {
		t.Errorf("the old key is taken for a zone that has a new one: %v", err)
	}
	if _, err := take(lost); err != nil {
		t.Errorf("after a rotation: %v", err)
	}
	if err := lost.RestorePassphrase(ctx, "z1", revision, phrase(t, " old")); err != nil {
		t.Fatal(err)
	}
	if err := restore(lost, "", passphrases()); err != nil {
		t.Errorf("put back: %v", err)
	}
	if err := lost.RestorePassphrase(ctx, "z1", revision, phrase(t, " another")); ClassOf(err) != Usage {
		t.Errorf("a passphrase that opens was replaced: %v", err)
	}
	// A folder that others can read is not used.
	if err := os.Chmod(m.keys.Path(""), 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := take(New(f.Bus, m.keys, m.log)); ClassOf(err) != Usage || !strings.Contains(err.Error(), "others have rights") {
		t.Errorf("keys that others can read: %v", err)
	}
}

// When the bucket is lost the manifests still name the revisions: who knows a passphrase puts it back.
func TestLostBucket(t *testing.T) {
	m, f, _ := start(t)
	ctx := t.Context()
	const revision = "01K5XZ8M4RA0T5B7C9D1E3F5G7"
	b := backupAt(time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC), 1)
	b.Encrypted, b.Revision = true, revision
	if err := f.Bus.PutBackup(ctx, b); err != nil {
		t.Fatal(err)
	}
	settings := RestoreSettings{BackupSettings: BackupSettings{Backup: b.ID}, To: "/r"}
	if _, err := m.RestoreJob(ctx, settings, passphrases()); ClassOf(err) != NotFound || !strings.Contains(HintOf(err), "passphrase restore") {
		t.Errorf("%v, hint %q", err, HintOf(err))
	}
	if err := m.RestorePassphrase(ctx, "z1", revision, phrase(t, "")); err != nil {
		t.Fatal(err)
	}
	job, err := m.RestoreJob(ctx, settings, passphrases())
	if err != nil {
		t.Fatal(err)
	}
	runOne(t, m, job)
	list, err := m.ZonePassphrases(ctx, "z1")
	if err != nil || len(list) != 1 || list[0].Current || list[0].Backups != 1 || list[0].CreatedAt.Year() != 2025 {
		t.Errorf("%+v, %v", list, err)
	}
}

// Nothing in the bucket tells a passphrase, and one of another zone or revision is not taken for it.
func TestKeptPassphrasesCannotBeMoved(t *testing.T) {
	m, f, _ := start(t)
	ctx := t.Context()
	first, second := rotate(t, m, "z1", " first", false), rotate(t, m, "z1", " second", false)
	kept, err := f.Bus.KeptPassphrases(ctx, "z1")
	if err != nil || len(kept) != 2 {
		t.Fatal(kept, err)
	}
	if s := fmt.Sprintf("%+v", kept); strings.Contains(s, "battery") {
		t.Error(s)
	}
	_, last, err := f.Bus.KeptPassphrase(ctx, "z1", second)
	if err != nil {
		t.Fatal(err)
	}
	moved := kept[1]
	moved.Kept = kept[0].Kept
	if err := f.Bus.KeepPassphrase(ctx, moved, last); err != nil {
		t.Fatal(err)
	}
	again := New(f.Bus, m.keys, m.log)
	defer again.Wipe()
	if _, err := again.kept(ctx, "z1", second); !errors.Is(err, secret.ErrForeign) {
		t.Errorf("the passphrase %s is taken for %s: %v", first, second, err)
	}
}
