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

// survey is what there is to continue: the VM's backups on this repository and its checkpoints.
type survey struct {
	dom         hypervisor.Domain
	description string
	backups     []repository.Backup // the newest first
	problems    []repository.Problem
	checkpoints []hypervisor.Checkpoint
	// orphans are the checkpoints of backups to this repository that are not there: they never were, or
	// somebody removed them.
	orphans []string
}

// survey looks around, and removes the checkpoints of attempts that never became backups.
func (e *Executor) survey(ctx context.Context, repo *repository.Repository, src liveSource, cmd *messages.TakeBackup) (*survey, error) {
	s := &survey{dom: src.domain(), description: checkpointOf(cmd)}
	var err error
	if s.checkpoints, err = src.checkpoints(ctx); err != nil {
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
		if s.holder(c.Name) == "" && !s.mayBeHeld() {
			s.orphans = append(s.orphans, c.Name)
			s.forget(ctx, e, c)
		}
	}
	return s, nil
}

// running says whether libvirt can make and remove the VM's checkpoints.
func (s *survey) running() bool { return s.dom.State.Active() }

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
		if strings.HasPrefix(c.Name, checkpointPrefix) && (c.Description == s.description || s.holder(c.Name) != "") {
			list = append(list, c)
		}
	}
	return list
}

// holder returns the id of a backup on the repository that holds a checkpoint, or seems to; "" if none does.
func (s *survey) holder(checkpoint string) string {
	for _, b := range s.backups {
		if holds(b.Manifest.ID, b.Manifest.Checkpoint, checkpoint) {
			return b.Manifest.ID
		}
	}
	for _, p := range s.problems {
		if holds(p.ID, p.Checkpoint, checkpoint) {
			return p.ID
		}
	}
	return ""
}

// mayBeHeld says that a backup which cannot be read just now may hold any checkpoint.
func (s *survey) mayBeHeld() bool {
	return slices.ContainsFunc(s.problems, func(p repository.Problem) bool { return messages.CodeOf(p.Err) == messages.CodeMountFailed })
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

// pick returns the backups that can be continued, the best first: those that hold the newest checkpoint
// that the VM still has. An error says that libvirt did not tell.
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
			return s.tips(b.Manifest.Checkpoint), nil, nil
		}
	}
	f := fullBecause(messages.FullNoChain, "the repository has no backup of the vm that an incremental can continue")
	switch {
	case newest == nil:
	case !s.running():
		f = fullBecause(messages.FullBitmapBroken, "the disks have no bitmap of checkpoint %s that can be trusted", newest.Manifest.Checkpoint)
	default:
		var err error
		if f, err = s.adopt(ctx, e, *newest, disks); err != nil {
			return nil, nil, err
		}
		if f == nil {
			return s.tips(newest.Manifest.Checkpoint), nil, nil
		}
	}
	if left := s.ours(); len(left) > 0 { // they are of backups that cannot be read
		name := left[len(left)-1].Name
		id := cmp.Or(s.holder(name), strings.TrimPrefix(name, checkpointPrefix))
		return nil, fullBecause(messages.FullParentBroken, "backup %s is damaged", id), nil
	}
	if len(s.orphans) > 0 {
		id := strings.TrimPrefix(s.orphans[len(s.orphans)-1], checkpointPrefix)
		return nil, fullBecause(messages.FullParentBroken, "backup %s is not on this repository", id), nil
	}
	return nil, f, nil
}

// tips are the backups of the VM that hold a checkpoint. The best is the one with the shortest chain: what
// its restore has to read is least, and what it was made of can go.
func (s *survey) tips(checkpoint string) []repository.Backup {
	tips := slices.DeleteFunc(slices.Clone(s.backups), func(b repository.Backup) bool {
		return b.Manifest.UUID != s.dom.UUID || b.Manifest.Checkpoint != checkpoint
	})
	slices.SortStableFunc(tips, func(a, b repository.Backup) int {
		return cmp.Compare(max(a.Manifest.Links, 1), max(b.Manifest.Links, 1))
	})
	return tips
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
