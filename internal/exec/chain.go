package exec

import (
	"bytes"
	"context"
	"fmt"

	"github.com/nasfleet/nasfleet/internal/exec/hypervisor"
	"github.com/nasfleet/nasfleet/internal/exec/repository"
	"github.com/nasfleet/nasfleet/internal/exec/storaged"
	"github.com/nasfleet/nasfleet/messages"
)

// checkpointPrefix begins the name of each checkpoint of ours; the id of the job that made it, which is its
// first backup's, follows. Every backup whose manifest names it holds it.
const checkpointPrefix = "nasfleet-"

// holds says whether a backup, whose manifest names the checkpoint named, or makes no sense and names none,
// holds a checkpoint: what may be the backup that it was made for does.
func holds(id, named, checkpoint string) bool {
	return named == checkpoint || named == "" && checkpointPrefix+id == checkpoint
}

// point says what the source of a VM does about checkpoints when it begins.
type point struct {
	// checkpoint is made at the moment of the backup of a running VM; one without a name is not.
	checkpoint hypervisor.Checkpoint
	// since is the checkpoint that an incremental continues from, disks those that have a bitmap of
	// it. The others are whole.
	since string
	disks []string
}

// full is why a backup is a full one.
type full struct {
	reason messages.FullReason
	why    string
}

func fullBecause(reason messages.FullReason, format string, args ...any) *full {
	return &full{reason, fmt.Sprintf(format, args...)}
}

// refuse is the error for a command that asks for an incremental.
func (f *full) refuse() error {
	code := messages.CodeChainBroken
	switch f.reason {
	case messages.FullImages, messages.FullNoBitmaps:
		code = messages.CodeModeUnavailable
	}
	return messages.Errorf(code, "no incremental is possible (%s): %s", f.reason, f.why)
}

// chooseChain decides what the backup continues and which checkpoint it makes. Nothing of the VM
// is changed but for checkpoints of attempts that never became backups.
func (t *taking) chooseChain(ctx context.Context, repo *repository.Repository, disks []sourceDisk) error {
	t.man.Mode = messages.ModeFull
	if t.live == nil {
		return nil // begin tells the checkpoint that a chain of backups holds
	}
	if f := t.live.noIncremental(); f != nil {
		return t.takeFull(f)
	}
	if t.cmd.Mode == "" {
		return nil
	}
	var err error
	if t.chain, err = t.e.survey(ctx, repo, t.live, t.cmd); err != nil {
		return err
	}
	// Nothing makes a bitmap in the disks of a stopped VM: what comes after continues what this one does.
	if t.chain.running() {
		t.point.checkpoint = hypervisor.Checkpoint{
			Name: checkpointPrefix + t.ws.job, Description: checkpointOf(t.cmd), Disks: bitmapDisks(disks),
		}
	}
	if t.cmd.Mode == messages.ModeFull {
		return nil
	}
	tips, f, err := t.chain.pick(ctx, t.e, disks)
	if err == nil && f == nil {
		f, err = t.continueOne(tips, disks, func(links []repository.Backup) (*full, error) {
			return t.checkBelow(ctx, links, bitmapDisks(disks))
		})
	}
	if err != nil {
		return err
	}
	if f != nil {
		return t.takeFull(f)
	}
	return nil
}

// continueOne continues the first of some backups that can be continued; otherwise it says why the very
// first cannot. Look is asked last, as it reads more than manifests.
func (t *taking) continueOne(tips []repository.Backup, disks []sourceDisk, look func([]repository.Backup) (*full, error)) (first *full, err error) {
	for _, tip := range tips {
		links, f := t.chain.follow(tip)
		if f == nil {
			f = t.chain.fits(links, disks, t.cmd)
		}
		if f == nil {
			f = t.takeOverKeys(links)
		}
		if f == nil {
			if f, err = look(links); err != nil {
				return nil, err
			}
		}
		if f == nil {
			t.links = links
			t.point.since, t.point.disks = tip.Manifest.Checkpoint, bitmapDisks(disks)
			t.man.Mode, t.man.Parent, t.man.Links = messages.ModeIncremental, tip.Manifest.ID, len(links)+1
			return nil, nil
		}
		if first == nil {
			first = f
		}
	}
	return first, nil
}

// takeFull makes the backup a full one, or fails where an incremental was asked for.
func (t *taking) takeFull(f *full) error {
	if t.cmd.Mode == messages.ModeIncremental {
		return f.refuse()
	}
	t.links = nil
	t.point.since, t.point.disks = "", nil
	t.man.Mode, t.man.Parent, t.man.Links = messages.ModeFull, "", 0
	if t.cmd.Mode == messages.ModeAuto {
		t.man.FullReason = f.reason
		t.man.Notes = append(t.man.Notes, fmt.Sprintf("mode auto: a full backup (%s): %s", f.reason, f.why))
	}
	return nil
}

// takeOverKeys opens the keys of the chain's digests, and makes the parent's this backup's: one passphrase
// opens a chain, and where it is wrapped for the same passphrases, one key derivation its digests.
func (t *taking) takeOverKeys(links []repository.Backup) *full {
	t.wipeLinkKeys() // those of another chain that was looked at
	t.linkKeys, t.wrappedKeys = make([][]byte, len(links)), nil
	if !t.cmd.Details.Encryption {
		return nil
	}
	opened := openedKeys{}
	defer opened.wipe()
	for i, l := range links {
		key, err := opened.unwrap(l.Manifest.Digest.WrappedKeys, t.pass)
		switch {
		case messages.CodeOf(err) == messages.CodeWrongPassphrase:
			return fullBecause(messages.FullEncryptionChanged, "backup %s has another passphrase", l.Manifest.ID)
		case err != nil:
			return fullBecause(messages.FullParentBroken, "backup %s: %v", l.Manifest.ID, err)
		}
		t.linkKeys[i] = bytes.Clone(key)
	}
	parent := links[0].Manifest
	copy(t.digKey, t.linkKeys[0])
	alone := t.recovery == nil && len(parent.Digest.WrappedKeys) == 1
	named := t.cmd.Details.Revision != "" && t.cmd.Details.Revision == parent.Encryption.Revision &&
		t.cmd.Details.RecoveryRevision == parent.Encryption.RecoveryRevision
	if alone || named {
		t.wrappedKeys = parent.Digest.WrappedKeys
	}
	return nil
}

// beginSource begins the source, as the chain has it if that can be, and otherwise as the command
// allows.
func (t *taking) beginSource(ctx context.Context) (moment, error) {
	m, err := t.src.begin(ctx, t.ws, t.point)
	if messages.CodeOf(err) == messages.CodeChainBroken && t.links != nil {
		if err := t.takeFull(fullBecause(messages.FullBitmapBroken, "%v", err)); err != nil {
			return moment{}, err
		}
		m, err = t.src.begin(ctx, t.ws, t.point)
	}
	if messages.CodeOf(err) == messages.CodeBackupBeginFailed && t.point.checkpoint.Name != "" {
		// The checkpoint may be what libvirt refuses. The backup is one all the same.
		refused := err
		t.point.checkpoint = hypervisor.Checkpoint{}
		if m, err = t.src.begin(ctx, t.ws, t.point); err == nil {
			m.notes = append(m.notes, fmt.Sprintf("no checkpoint was made, and no incremental can continue this backup: %v", refused))
		}
	}
	return m, err
}

// checkChain looks again whether what an incremental continues is there. It may have been deleted
// from another host meanwhile.
func (t *taking) checkChain(ctx context.Context, repo *repository.Repository) error {
	for _, l := range t.links {
		ref := messages.BackupRef{ID: l.Manifest.ID, VM: l.Manifest.VM, BackupPath: t.cmd.BackupPath}
		if _, err := repo.Find(ctx, ref); repository.Unusable(err) {
			return t.chainGone(err)
		} else if err != nil {
			return err
		}
	}
	return nil
}

// chainGone is the error for a chain that was broken during the backup.
func (t *taking) chainGone(err error) error {
	code := messages.CodeChainBroken
	if t.cmd.Mode == messages.ModeAuto {
		code = messages.CodeBackupInUse // the next attempt sees it and takes a full
	}
	return messages.Errorf(code, "the chain was broken during the backup: %w", err)
}

// forgetOld removes the checkpoints that the one of a new backup has replaced. The backup is
// committed: what fails here costs a bitmap, and the next backup tries again.
func (t *taking) forgetOld(ctx context.Context) {
	if t.chain == nil || t.point.checkpoint.Name == "" {
		return
	}
	for _, c := range t.chain.ours() {
		if c.Name != t.point.checkpoint.Name {
			t.chain.forget(ctx, t.e, c)
		}
	}
}

// checkpointOf says whose a checkpoint is: a repository and a path in it have one chain of a VM.
func checkpointOf(cmd *messages.TakeBackup) string {
	r := cmd.Repository
	return fmt.Sprintf("nasfleet: the next incremental backup to %s %s, path %q, needs it", r.Type, r.Address, cmd.BackupPath)
}

// bitmapDisks names the disks that can have a bitmap.
func bitmapDisks(disks []sourceDisk) []string {
	var names []string
	for _, d := range disks {
		if d.format == storaged.FormatQcow2 {
			names = append(names, d.name)
		}
	}
	return names
}
