package exec

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/nasfleet/nasfleet/internal/exec/hypervisor"
	"github.com/nasfleet/nasfleet/internal/exec/repository"
	"github.com/nasfleet/nasfleet/internal/exec/storaged"
	"github.com/nasfleet/nasfleet/messages"
)

// checkpointPrefix begins the name of each checkpoint of ours; the id of its job, which is its
// backup's, follows.
const checkpointPrefix = "nasfleet-"

// point says what a running source does about checkpoints when it begins.
type point struct {
	// checkpoint is made at the moment of the backup; one without a name is not.
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
	case messages.FullImages, messages.FullVMStopped, messages.FullNoBitmaps:
		code = messages.CodeModeUnavailable
	}
	return messages.Errorf(code, "no incremental is possible (%s): %s", f.reason, f.why)
}

// chooseChain decides what the backup continues and which checkpoint it makes. Nothing of the VM
// is changed but for checkpoints of attempts that never became backups.
func (t *taking) chooseChain(ctx context.Context, repo *repository.Repository) error {
	t.man.Mode = messages.ModeFull
	if f := t.src.noIncremental(); f != nil {
		return t.takeFull(f)
	}
	if t.cmd.Mode == "" {
		return nil
	}
	src := t.src.(*runningSource)
	var err error
	if t.chain, err = t.e.survey(ctx, repo, src.dom, t.cmd); err != nil {
		return err
	}
	t.point.checkpoint = hypervisor.Checkpoint{
		Name: checkpointPrefix + t.ws.job, Description: checkpointOf(t.cmd), Disks: bitmapDisks(src.disks),
	}
	if t.cmd.Mode == messages.ModeFull {
		return nil
	}
	links, f, err := t.chain.pick(ctx, t.e, src.disks)
	if err != nil {
		return err
	}
	if f == nil {
		f = t.chain.fits(links, src.disks, t.cmd)
	}
	if f == nil {
		f = t.takeOverKey(links)
	}
	if f != nil {
		return t.takeFull(f)
	}
	t.links = links
	t.point.since, t.point.disks = links[0].Manifest.Checkpoint, t.point.checkpoint.Disks
	t.man.Mode, t.man.Parent, t.man.Links = messages.ModeIncremental, links[0].Manifest.ID, len(links)+1
	return nil
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

// takeOverKey makes the key of the parent's digests this backup's: one passphrase opens a chain, and
// where it is wrapped for the same passphrases, one key derivation its digests.
func (t *taking) takeOverKey(links []repository.Backup) *full {
	if !t.cmd.Details.Encryption {
		return nil
	}
	opened := openedKeys{}
	defer opened.wipe()
	for _, l := range links {
		switch _, err := opened.unwrap(l.Manifest.Digest.WrappedKeys, t.pass); {
		case messages.CodeOf(err) == messages.CodeWrongPassphrase:
			return fullBecause(messages.FullEncryptionChanged, "backup %s has another passphrase", l.Manifest.ID)
		case err != nil:
			return fullBecause(messages.FullParentBroken, "backup %s: %v", l.Manifest.ID, err)
		}
	}
	parent := links[0].Manifest
	key, _ := opened.unwrap(parent.Digest.WrappedKeys, t.pass)
	copy(t.digKey, key)
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

// survey is what there is to continue: the VM's backups on this repository and its checkpoints.
type survey struct {
	dom         hypervisor.Domain
	description string
	backups     []repository.Backup // the newest first
	problems    []repository.Problem
	checkpoints []hypervisor.Checkpoint
	// orphans are the ids of backups to this repository that had a checkpoint and are not there: they
	// never were, or somebody removed them.
	orphans []string
}

// survey looks around, and removes the checkpoints of attempts that never became backups.
func (e *Executor) survey(ctx context.Context, repo *repository.Repository, dom hypervisor.Domain, cmd *messages.TakeBackup) (*survey, error) {
	s := &survey{dom: dom, description: checkpointOf(cmd)}
	var err error
	if s.checkpoints, err = e.cfg.Hypervisor.Checkpoints(ctx, dom.Name); err != nil {
		return nil, err
	}
	if s.backups, s.problems, err = repo.List(ctx, cmd.BackupPath, cmd.VM); err != nil {
		return nil, err
	}
	slices.SortFunc(s.backups, func(a, b repository.Backup) int {
		return cmp.Or(b.Manifest.CreatedAt.Compare(a.Manifest.CreatedAt), cmp.Compare(b.Manifest.ID, a.Manifest.ID))
	})
	if err := s.unread(); err != nil {
		return nil, err // not to know the backups is no reason to remove their checkpoints
	}
	for _, c := range s.ours() {
		if id := strings.TrimPrefix(c.Name, checkpointPrefix); !s.stored(id) {
			s.orphans = append(s.orphans, id)
			s.forget(ctx, e, c)
		}
	}
	return s, nil
}

// unread is the error of a VM's folder that could not be read.
func (s *survey) unread() error {
	for _, p := range s.problems {
		if p.ID == "" && messages.CodeOf(p.Err) == messages.CodeMountFailed {
			return p.Err
		}
	}
	return nil
}

// ours are the checkpoints of backups to this repository.
func (s *survey) ours() []hypervisor.Checkpoint {
	var list []hypervisor.Checkpoint
	for _, c := range s.checkpoints {
		id, named := strings.CutPrefix(c.Name, checkpointPrefix)
		if named && (c.Description == s.description || s.stored(id)) {
			list = append(list, c)
		}
	}
	return list
}

// stored says whether the repository has, or seems to have, a backup.
func (s *survey) stored(id string) bool {
	return slices.ContainsFunc(s.backups, func(b repository.Backup) bool { return b.Manifest.ID == id }) ||
		slices.ContainsFunc(s.problems, func(p repository.Problem) bool { return p.ID == id })
}

// forget removes a checkpoint from the VM.
func (s *survey) forget(ctx context.Context, e *Executor, c hypervisor.Checkpoint) {
	gone, err := e.cfg.Hypervisor.DeleteCheckpoint(ctx, s.dom.Name, c)
	if err != nil || !gone {
		e.cfg.Log.Warn().Err(err).Str("vm", s.dom.Name).Str("checkpoint", c.Name).Msg("a checkpoint that nobody needs stays")
		return
	}
	s.checkpoints = slices.DeleteFunc(s.checkpoints, func(k hypervisor.Checkpoint) bool { return k.Name == c.Name })
}

// pick returns the chain to continue, the newest first: that of the newest backup whose checkpoint
// the VM still has. An error says that libvirt did not tell.
func (s *survey) pick(ctx context.Context, e *Executor, disks []sourceDisk) ([]repository.Backup, *full, error) {
	var newest *repository.Backup
	for i, b := range s.backups {
		if b.Manifest.UUID != s.dom.UUID || b.Manifest.Checkpoint == "" {
			continue
		}
		if newest == nil {
			newest = &s.backups[i]
		}
		if s.checkpoint(b.Manifest.Checkpoint) != nil {
			links, f := s.follow(s.backups[i])
			return links, f, nil
		}
	}
	f := fullBecause(messages.FullNoChain, "the repository has no backup of the vm that an incremental can continue")
	if newest != nil {
		var err error
		if f, err = s.adopt(ctx, e, *newest, disks); err != nil {
			return nil, nil, err
		}
		if f == nil {
			links, f := s.follow(*newest)
			return links, f, nil
		}
	}
	if left := s.ours(); len(left) > 0 { // they are of backups that cannot be read
		id := strings.TrimPrefix(left[len(left)-1].Name, checkpointPrefix)
		return nil, fullBecause(messages.FullParentBroken, "backup %s is damaged", id), nil
	}
	if len(s.orphans) > 0 {
		return nil, fullBecause(messages.FullParentBroken, "backup %s is not on this repository", s.orphans[len(s.orphans)-1]), nil
	}
	return nil, f, nil
}

// adopt makes libvirt know a checkpoint again that it has forgotten. The bitmaps are in the disks
// themselves and record on whoever writes: where they are whole nothing is lost. Where libvirt does not
// answer they stay, for the next attempt.
func (s *survey) adopt(ctx context.Context, e *Executor, b repository.Backup, disks []sourceDisk) (*full, error) {
	m := b.Manifest
	c := hypervisor.Checkpoint{Name: m.Checkpoint, Description: s.description}
	for _, d := range m.Disks {
		if d.Bitmap && slices.ContainsFunc(disks, func(now sourceDisk) bool { return now.name == d.Name }) {
			c.Disks = append(c.Disks, d.Name)
		}
	}
	err := e.cfg.Hypervisor.AdoptCheckpoint(ctx, s.dom.Name, c, m.CreatedAt.Truncate(time.Second))
	if messages.CodeOf(err) == messages.CodeChainBroken {
		s.forget(ctx, e, c)
		return fullBecause(messages.FullCheckpointLost, "libvirt has lost the checkpoint of backup %s, and its bitmaps cannot be used: %v", m.ID, err), nil
	}
	if err != nil {
		return nil, err
	}
	e.cfg.Log.Info().Str("vm", s.dom.Name).Str("checkpoint", c.Name).Msg("libvirt had forgotten a checkpoint whose bitmaps are whole")
	s.checkpoints = append(s.checkpoints, c)
	return nil, nil
}

func (s *survey) checkpoint(name string) *hypervisor.Checkpoint {
	i := slices.IndexFunc(s.checkpoints, func(c hypervisor.Checkpoint) bool { return c.Name == name })
	if i < 0 {
		return nil
	}
	return &s.checkpoints[i]
}

// follow returns a backup and all that it continues.
func (s *survey) follow(b repository.Backup) ([]repository.Backup, *full) {
	links := []repository.Backup{b}
	for b.Manifest.Parent != "" && len(links) <= messages.MaxChain {
		id := b.Manifest.Parent
		i := slices.IndexFunc(s.backups, func(b repository.Backup) bool { return b.Manifest.ID == id })
		if i < 0 {
			why := "is not on this repository"
			if j := slices.IndexFunc(s.problems, func(p repository.Problem) bool { return p.ID == id }); j >= 0 {
				why = fmt.Sprintf("is damaged: %v", s.problems[j].Err)
			}
			return nil, fullBecause(messages.FullParentBroken, "backup %s of the chain %s", id, why)
		}
		b = s.backups[i]
		links = append(links, b)
	}
	for _, l := range links {
		if l.Damaged {
			return nil, fullBecause(messages.FullParentBroken, "backup %s of the chain failed a verification", l.Manifest.ID)
		}
	}
	return links, nil
}

// fits says why the VM, as it is now, and the command do not go on with a chain.
func (s *survey) fits(links []repository.Backup, disks []sourceDisk, cmd *messages.TakeBackup) *full {
	limit := messages.MaxChain
	if cmd.Mode == messages.ModeAuto {
		limit = cmd.ChainLimit()
	}
	parent := links[0].Manifest
	if len(links)+1 > limit {
		return fullBecause(messages.FullEvery, "the chain has %d backups already", len(links))
	}
	for _, l := range links {
		if l.Manifest.Encryption.LUKS != cmd.Details.Encryption {
			return fullBecause(messages.FullEncryptionChanged, "of the chain and the new backup one is encrypted and one is not")
		}
	}
	for _, d := range disks {
		if d.format != storaged.FormatQcow2 {
			continue // whole in each backup
		}
		if f := s.fitsDisk(parent, d); f != nil {
			return f
		}
	}
	return nil
}

func (s *survey) fitsDisk(parent repository.Manifest, d sourceDisk) *full {
	i := slices.IndexFunc(parent.Disks, func(p repository.Disk) bool { return p.Name == d.name })
	if i < 0 {
		return fullBecause(messages.FullDiskAdded, "disk %s is not in backup %s", d.name, parent.ID)
	}
	c := s.checkpoint(parent.Checkpoint)
	switch was := parent.Disks[i]; {
	case was.VirtualBytes != d.size:
		return fullBecause(messages.FullDiskResized, "disk %s has %d bytes and had %d in backup %s", d.name, d.size, was.VirtualBytes, parent.ID)
	case was.Source.Path != d.path || was.Source.Format != d.format:
		return fullBecause(messages.FullDiskReplaced, "disk %s is %s and was %s in backup %s", d.name, d.path, was.Source.Path, parent.ID)
	case !was.Bitmap || c == nil || !slices.Contains(c.Disks, d.name):
		return fullBecause(messages.FullBitmapBroken, "checkpoint %s has no bitmap of disk %s", parent.Checkpoint, d.name)
	}
	return nil
}
