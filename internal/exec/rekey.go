package exec

import (
	"bytes"
	"context"
	"fmt"

	"github.com/nasfleet/nasfleet/internal/exec/repository"
	"github.com/nasfleet/nasfleet/internal/exec/storaged"
	"github.com/nasfleet/nasfleet/internal/secret"
	"github.com/nasfleet/nasfleet/messages"
)

// rekeying is a change of a backup's passphrases under way.
type rekeying struct {
	ws  *workspace
	cmd *messages.RekeyBackup
	// old opens the backup before, fresh and recovery (nil for none) open it afterwards.
	old, fresh, recovery *secret.Passphrase
	// stays says that old is the recovery passphrase.
	stays  bool
	backup *repository.Backup
	disks  []*rekeyedDisk
}

// rekeyedDisk is a disk whose container gets other passphrases.
type rekeyedDisk struct {
	name, path string
	daemon     *storaged.Daemon
	// slots are the key slots to keep; nil where an earlier attempt has come to the end with the disk.
	slots []int
}

// rekeyStep is one move of a rekey. After a crash before, in or after any of them the old passphrase or
// the new one opens every disk and the digests, and the job done again comes to the same end.
type rekeyStep struct {
	name string
	run  func(context.Context) error
}

// rekey does a RekeyBackup. Nothing is taken away before the new passphrase opens everything: the key
// slots are added, then the manifest gets the digests' key for it as well, then the others go.
func (e *Executor) rekey(ctx context.Context, ws *workspace, cmd *messages.RekeyBackup, r Reporter) (Outcome, error) {
	t := &rekeying{ws: ws, cmd: cmd}
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
	entry := t.backup.Manifest.CatalogEntry(cmd.Backup.Repository, cmd.Backup.BackupPath)
	note := "tried on every disk: the old passphrase no longer opens it, the new one does"
	if t.stays {
		note = "tried on every disk: the new passphrase opens it, and the old one as its recovery passphrase; no other does"
	}
	return Outcome{BackupID: cmd.Backup.ID, Backup: &entry, Notes: []string{note}}, nil
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

func (t *rekeying) find(ctx context.Context) error {
	repo, err := t.ws.repository(ctx, t.cmd.Backup.Repository)
	if err != nil {
		return err
	}
	if t.backup, err = repo.Find(ctx, t.cmd.Backup); err != nil {
		return err
	}
	if !t.backup.Manifest.Encryption.LUKS {
		return messages.Errorf(messages.CodeInvalidDetail, "backup %s is not encrypted", t.cmd.Backup.ID).
			WithHint("A backup in the clear stays so: take an encrypted one and delete it.")
	}
	for i, d := range t.backup.Manifest.Disks {
		disk := &rekeyedDisk{name: d.Name}
		if disk.path, err = t.backup.Path(ctx, d.File); err != nil {
			return err
		}
		if disk.daemon, err = t.ws.daemon(ctx, fmt.Sprintf("key%d", i)); err != nil {
			return err
		}
		t.disks = append(t.disks, disk)
	}
	return nil
}

func (t *rekeying) steps() []rekeyStep {
	var steps []rekeyStep
	eachDisk := func(what string, fn func(context.Context, *rekeyedDisk) error) {
		for _, d := range t.disks {
			steps = append(steps, rekeyStep{what + " " + d.name, func(ctx context.Context) error { return fn(ctx, d) }})
		}
	}
	eachDisk("add the new passphrase to", t.add)
	steps = append(steps, rekeyStep{"add the new passphrase to the manifest", t.rewrite(true)})
	eachDisk("take the old passphrase from", t.takeAway)
	steps = append(steps, rekeyStep{"take the old passphrase from the manifest", t.rewrite(false)})
	eachDisk("try the passphrases on", t.try)
	return append(steps, rekeyStep{"try the passphrases on the manifest", func(context.Context) error { return t.tryManifest() }})
}

// add gives the disk the passphrases it is to have, unless it has them and no others. Slots that an
// earlier attempt added cannot be told from others: they are added anew, and those go with the old ones.
func (t *rekeying) add(ctx context.Context, d *rekeyedDisk) error {
	old, err := d.opens(ctx, t.old)
	if err != nil {
		return err
	}
	with := t.old
	if !old {
		done, err := t.isDone(ctx, d)
		if done || err != nil {
			return err
		}
		with = t.fresh
	}
	passphrases := [][]byte{t.fresh.Bytes()}
	if t.recovery != nil {
		passphrases = append(passphrases, t.recovery.Bytes())
	}
	d.slots, err = d.daemon.AddKeys(ctx, d.as(with), passphrases...)
	return err
}

// isDone says of a disk that the old passphrase does not open whether the new ones are all it has. One
// that the new one does not open either is CodeWrongPassphrase.
func (t *rekeying) isDone(ctx context.Context, d *rekeyedDisk) (bool, error) {
	slots, want := 0, 1
	fresh, err := d.opens(ctx, t.fresh)
	if err == nil && !fresh {
		err = messages.Errorf(messages.CodeWrongPassphrase, "the old passphrase does not open it, and the new one does not either")
	}
	if err == nil {
		slots, err = d.daemon.Slots(ctx, d.as(t.fresh))
	}
	if err != nil || t.recovery == nil {
		return slots == want, err
	}
	recovery, err := d.opens(ctx, t.recovery)
	return recovery && slots == want+1, err
}

func (t *rekeying) takeAway(ctx context.Context, d *rekeyedDisk) error {
	if d.slots == nil {
		return nil
	}
	return d.daemon.KeepKeys(ctx, d.as(t.fresh), d.slots)
}

// rewrite gives the manifest the digests' key wrapped for the new passphrases, beside the old ones or
// instead of them.
func (t *rekeying) rewrite(keepOld bool) func(context.Context) error {
	return func(ctx context.Context) error {
		m := t.backup.Manifest
		m.Encryption.Revision, m.Encryption.RecoveryRevision = t.cmd.Details.Revision, t.cmd.Details.RecoveryRevision
		if m.Digest.Keyed {
			key, err := t.digestKey()
			if err != nil {
				return err
			}
			defer clear(key)
			wrapped, err := wrap(key, t.fresh, t.recovery)
			if err != nil {
				return err
			}
			if keepOld {
				wrapped = append(wrapped, m.Digest.WrappedKeys...)
			}
			m.Digest.WrappedKeys = wrapped
		}
		return t.backup.Rewrite(ctx, m)
	}
}

// digestKey opens the digests' key with whichever passphrase does.
func (t *rekeying) digestKey() ([]byte, error) {
	key, err := unwrap(t.backup.Manifest.Digest.WrappedKeys, t.fresh)
	if messages.CodeOf(err) == messages.CodeWrongPassphrase {
		key, err = unwrap(t.backup.Manifest.Digest.WrappedKeys, t.old)
	}
	return key, err
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
		opens, err := d.opens(ctx, p.pass)
		if err != nil {
			return err
		}
		if opens != p.should {
			return messages.Errorf(messages.CodeVerifyFailed, "that the %s passphrase opens it is %t and should be %t", p.what, opens, p.should)
		}
	}
	return d.daemon.Stop()
}

func (t *rekeying) tryManifest() error {
	if !t.backup.Manifest.Digest.Keyed {
		return nil
	}
	key, err := unwrap(t.backup.Manifest.Digest.WrappedKeys, t.old)
	clear(key)
	if err == nil && !t.stays {
		return messages.Errorf(messages.CodeVerifyFailed, "the old passphrase still opens the digests")
	}
	key, err = unwrap(t.backup.Manifest.Digest.WrappedKeys, t.fresh)
	clear(key)
	return err
}

func (d *rekeyedDisk) as(p *secret.Passphrase) storaged.Backup {
	return storaged.Backup{Path: d.path, Passphrase: p.Bytes()}
}

func (d *rekeyedDisk) opens(ctx context.Context, p *secret.Passphrase) (bool, error) {
	return d.daemon.Opens(ctx, d.as(p))
}
