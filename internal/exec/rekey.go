package exec

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/nasfleet/nasfleet/internal/exec/repository"
	"github.com/nasfleet/nasfleet/internal/exec/storaged"
	"github.com/nasfleet/nasfleet/internal/secret"
	"github.com/nasfleet/nasfleet/messages"
)

// rekeying is a change of the passphrases of a backup, and of all others of its chain, under way: one
// passphrase opens a chain.
type rekeying struct {
	ws  *workspace
	cmd *messages.RekeyBackup
	// old opens the backup before, fresh and recovery (nil for none) open it afterwards.
	old, fresh, recovery *secret.Passphrase
	// stays says that old is the recovery passphrase.
	stays   bool
	daemon  *storaged.Daemon
	backups []*rekeyedBackup // that of the command first
	disks   []*rekeyedDisk   // of all of them
	// wrapped are the keys of the digests as they are going to be, by what they were wrapped in: backups of
	// a chain share theirs, and go on doing so.
	wrapped map[string][]json.RawMessage
}

type rekeyedBackup struct {
	*repository.Backup
	wrapped []json.RawMessage
}

// rekeyedDisk is a disk whose container gets other passphrases.
type rekeyedDisk struct {
	name, path string
	// with is the passphrase that opened it at first; nil where an earlier attempt has come to the end with
	// the disk.
	with *secret.Passphrase
	// slots are the key slots to keep.
	slots []int
}

// rekeyStep is one move of a rekey. After a crash before, in or after any of them the old passphrase or
// the new one opens every disk and the digests, and the job done again comes to the same end.
type rekeyStep struct {
	name string
	run  func(context.Context) error
}

// rekey does a RekeyBackup. Nothing is taken away before the new passphrase opens everything: the key
// slots are added, then the manifests get the digests' key for it as well, then the others go.
func (e *Executor) rekey(ctx context.Context, ws *workspace, cmd *messages.RekeyBackup, r Reporter) (Outcome, error) {
	t := &rekeying{ws: ws, cmd: cmd, wrapped: map[string][]json.RawMessage{}}
	defer t.wipe()
	if err := t.openKeys(e); err != nil {
		return Outcome{}, err
	}
	r.Phase(messages.PhaseMounting)
	if err := t.find(ctx); err != nil {
		return Outcome{}, err
	}
	r.Phase(messages.PhaseCommitting)
	for _, s := range t.steps() {
		if err := s.run(ctx); err != nil {
			return Outcome{}, fmt.Errorf("%s: %w", s.name, err)
		}
	}
	return t.outcome(), nil
}

func (t *rekeying) outcome() Outcome {
	note := "tried on every disk: the old passphrase no longer opens it, the new one does"
	if t.stays {
		note = "tried on every disk: the new passphrase opens it, and the old one as its recovery passphrase; no other does"
	}
	out := Outcome{BackupID: t.cmd.Backup.ID, Notes: []string{note}}
	var others []string
	for i, b := range t.backups {
		entry := b.Manifest.CatalogEntry(t.cmd.Backup.Repository, t.cmd.Backup.BackupPath)
		if i == 0 {
			out.Backup = &entry
			continue
		}
		out.Changed = append(out.Changed, entry)
		others = append(others, entry.ID)
	}
	if len(others) > 0 {
		out.Notes = append(out.Notes, "the other backups of its chain have the same passphrase now: "+strings.Join(others, ", "))
	}
	return out
}

func (t *rekeying) openKeys(e *Executor) (err error) {
	if t.old, err = e.passphrase(t.cmd.OldPassphrase); err != nil {
		return err
	}
	if t.fresh, err = e.passphrase(t.cmd.Details.Passphrase); err != nil {
		return err
	}
	if t.recovery, err = e.passphrase(t.cmd.Details.Recovery); err != nil {
		return err
	}
	if bytes.Equal(t.old.Bytes(), t.fresh.Bytes()) {
		return messages.Errorf(messages.CodeInvalidDetail, "the new passphrase is the old one").
			WithHint("Give a new passphrase that is not the one that opens the backup now.")
	}
	// Who opens it with the recovery passphrase may want to keep that.
	t.stays = bytes.Equal(t.old.Bytes(), t.recovery.Bytes())
	return nil
}

func (t *rekeying) wipe() {
	t.old.Wipe()
	t.fresh.Wipe()
	t.recovery.Wipe()
}

// find finds the backup, what it continues, and what continues any of them.
func (t *rekeying) find(ctx context.Context) error {
	repo, err := t.ws.repository(ctx, t.cmd.Backup.Repository)
	if err != nil {
		return err
	}
	chain, err := repo.Chain(ctx, t.cmd.Backup)
	if err != nil {
		return err
	}
	for _, b := range chain {
		t.backups = append(t.backups, &rekeyedBackup{Backup: b})
	}
	ref := t.cmd.Backup
	ref.ID = chain[len(chain)-1].Manifest.ID
	needing, err := repo.Dependents(ctx, ref)
	if err != nil {
		return err
	}
	for _, d := range needing {
		if slices.ContainsFunc(chain, func(b *repository.Backup) bool { return b.Manifest.ID == d.ID }) {
			continue
		}
		ref.ID = d.ID
		b, err := repo.Find(ctx, ref)
		if err != nil {
			return err
		}
		t.backups = append(t.backups, &rekeyedBackup{Backup: b})
	}
	return t.open(ctx)
}

func (t *rekeying) open(ctx context.Context) (err error) {
	for _, b := range t.backups {
		if !b.Manifest.Encryption.LUKS {
			return messages.Errorf(messages.CodeInvalidDetail, "backup %s is not encrypted", b.Manifest.ID).
				WithHint("A backup in the clear stays so: take an encrypted one and delete it.")
		}
		for _, d := range b.Manifest.Disks {
			disk := &rekeyedDisk{name: b.Manifest.ID + "/" + d.Name}
			if disk.path, err = b.Path(ctx, d.File); err != nil {
				return err
			}
			t.disks = append(t.disks, disk)
		}
	}
	t.daemon, err = t.ws.daemon(ctx, "keys")
	return err
}

func (t *rekeying) steps() []rekeyStep {
	var steps []rekeyStep
	eachDisk := func(what string, fn func(context.Context, *rekeyedDisk) error) {
		for _, d := range t.disks {
			steps = append(steps, rekeyStep{what + " " + d.name, func(ctx context.Context) error { return fn(ctx, d) }})
		}
	}
	eachManifest := func(what string, fn func(context.Context, *rekeyedBackup) error) {
		for _, b := range t.backups {
			steps = append(steps, rekeyStep{what + " the manifest of " + b.Manifest.ID, func(ctx context.Context) error { return fn(ctx, b) }})
		}
	}
	eachDisk("look at", t.look)
	eachManifest("look at", t.rewrap)
	eachDisk("add the new passphrase to", t.add)
	eachManifest("add the new passphrase to", func(ctx context.Context, b *rekeyedBackup) error {
		return t.rewrite(ctx, b, b.Manifest.Digest.WrappedKeys)
	})
	eachDisk("take the old passphrase from", t.takeAway)
	eachManifest("take the old passphrase from", func(ctx context.Context, b *rekeyedBackup) error { return t.rewrite(ctx, b, nil) })
	eachDisk("try the passphrases on", t.try)
	eachManifest("try the passphrases on", func(_ context.Context, b *rekeyedBackup) error { return t.tryManifest(b) })
	return steps
}

// look finds out which passphrase opens the disk, before anything is changed anywhere.
func (t *rekeying) look(ctx context.Context, d *rekeyedDisk) error {
	old, err := t.opens(ctx, d, t.old)
	if err != nil {
		return err
	}
	if old {
		d.with = t.old
		return nil
	}
	done, err := t.isDone(ctx, d)
	if !done {
		d.with = t.fresh
	}
	return err
}

// isDone says of a disk that the old passphrase does not open whether the new ones are all it has. One
// that the new one does not open either is CodeWrongPassphrase.
func (t *rekeying) isDone(ctx context.Context, d *rekeyedDisk) (bool, error) {
	fresh, err := t.opens(ctx, d, t.fresh)
	if err != nil {
		return false, err
	}
	if !fresh {
		return false, messages.Errorf(messages.CodeWrongPassphrase, "the old passphrase does not open it, and the new one does not either")
	}
	slots, err := t.daemon.Slots(ctx, d.as(t.fresh))
	if err != nil || t.recovery == nil {
		return slots == 1, err
	}
	recovery, err := t.opens(ctx, d, t.recovery)
	return recovery && slots == 2, err
}

// add gives the disk the passphrases it is to have. Slots that an earlier attempt added cannot be told from
// others: they are added anew, and those go with the old ones.
func (t *rekeying) add(ctx context.Context, d *rekeyedDisk) (err error) {
	if d.with == nil {
		return nil
	}
	passphrases := [][]byte{t.fresh.Bytes()}
	if t.recovery != nil {
		passphrases = append(passphrases, t.recovery.Bytes())
	}
	d.slots, err = t.daemon.AddKeys(ctx, d.as(d.with), passphrases...)
	return err
}

func (t *rekeying) takeAway(ctx context.Context, d *rekeyedDisk) error {
	if d.with == nil {
		return nil
	}
	return t.daemon.KeepKeys(ctx, d.as(t.fresh), d.slots)
}

// rewrap wraps the key of a backup's digests for the new passphrases.
func (t *rekeying) rewrap(_ context.Context, b *rekeyedBackup) error {
	was := b.Manifest.Digest.WrappedKeys
	if !b.Manifest.Digest.Keyed {
		return nil
	}
	text, err := json.Marshal(was)
	if err != nil {
		return messages.Errorf(messages.CodeBackupCorrupt, "a wrapped key of the manifest: %w", err)
	}
	if b.wrapped = t.wrapped[string(text)]; b.wrapped != nil {
		return nil
	}
	key, err := unwrap(was, t.fresh)
	if messages.CodeOf(err) == messages.CodeWrongPassphrase {
		key, err = unwrap(was, t.old)
	}
	if err != nil {
		return err
	}
	defer clear(key)
	b.wrapped, err = t.ws.e.wrap(key, t.fresh, t.recovery)
	t.wrapped[string(text)] = b.wrapped
	return err
}

// rewrite gives the manifest the digests' key wrapped for the new passphrases, before the old ones.
func (t *rekeying) rewrite(ctx context.Context, b *rekeyedBackup, old []json.RawMessage) error {
	m := b.Manifest
	m.Encryption.Revision, m.Encryption.RecoveryRevision = t.cmd.Details.Revision, t.cmd.Details.RecoveryRevision
	if m.Digest.Keyed {
		m.Digest.WrappedKeys = slices.Concat(b.wrapped, old)
	}
	return b.Rewrite(ctx, m)
}

// try shows what the job is for: that the disk opens with the new passphrases and not with the old one.
func (t *rekeying) try(ctx context.Context, d *rekeyedDisk) error {
	for _, p := range []struct {
		what   string
		pass   *secret.Passphrase
		should bool
	}{{"old", t.old, t.stays}, {"new", t.fresh, true}, {"recovery", t.recovery, true}} {
		if p.pass == nil {
			continue
		}
		opens, err := t.opens(ctx, d, p.pass)
		if err != nil {
			return err
		}
		if opens != p.should {
			return messages.Errorf(messages.CodeVerifyFailed, "that the %s passphrase opens it is %t and should be %t", p.what, opens, p.should)
		}
	}
	return nil
}

func (t *rekeying) tryManifest(b *rekeyedBackup) error {
	if !b.Manifest.Digest.Keyed {
		return nil
	}
	key, err := unwrap(b.Manifest.Digest.WrappedKeys, t.old)
	clear(key)
	if err == nil && !t.stays {
		return messages.Errorf(messages.CodeVerifyFailed, "the old passphrase still opens the digests")
	}
	key, err = unwrap(b.Manifest.Digest.WrappedKeys, t.fresh)
	clear(key)
	return err
}

func (t *rekeying) opens(ctx context.Context, d *rekeyedDisk, p *secret.Passphrase) (bool, error) {
	return t.daemon.Opens(ctx, d.as(p))
}

func (d *rekeyedDisk) as(p *secret.Passphrase) storaged.Backup {
	return storaged.Backup{Path: d.path, Passphrase: p.Bytes()}
}
