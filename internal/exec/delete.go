package exec

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/nasfleet/nasfleet/internal/exec/hypervisor"
	"github.com/nasfleet/nasfleet/internal/exec/repository"
	"github.com/nasfleet/nasfleet/messages"
)

// remove deletes a stored backup, and with cascade the incrementals that need it, which are a reason
// to refuse otherwise. One that is gone already is as good as deleted: what is left to do is to
// forget it. Interrupted, it tells what it has deleted: another attempt does not find those any more.
func (e *Executor) remove(ctx context.Context, ws *workspace, cmd *messages.DeleteBackup, r Reporter) (Outcome, error) {
	r.Phase(messages.PhaseMounting)
	repo, err := ws.repository(ctx, cmd.Backup.Repository)
	if err != nil {
		return Outcome{}, err
	}
	needing, err := repo.Dependents(ctx, cmd.Backup)
	if err != nil {
		return Outcome{}, err
	}
	if len(needing) > 0 && !cmd.Cascade {
		return Outcome{}, errNeeded(cmd.Backup.ID, needing)
	}
	r.Phase(messages.PhaseCommitting)
	self := repository.Sibling{ID: cmd.Backup.ID, Zone: e.cfg.Zone, Host: e.cfg.Host}
	if b, err := repo.Find(ctx, cmd.Backup); err == nil {
		self = repository.Sibling{ID: b.Manifest.ID, Zone: b.Manifest.Zone, Host: b.Manifest.Host, Checkpoint: b.Manifest.Checkpoint}
	}
	out := Outcome{BackupID: cmd.Backup.ID}
	// The children first: whatever interrupts this, each backup that is left has its chain.
	for _, d := range append(needing, self) {
		ref := cmd.Backup
		ref.ID = d.ID
		err := repo.Delete(ctx, ref)
		if messages.CodeOf(err) == messages.CodeBackupNotFound {
			out.Notes = append(out.Notes, fmt.Sprintf("backup %s was not on the repository any more", d.ID))
			err = nil
		}
		if err != nil {
			return Outcome{Deleted: out.Deleted}, err
		}
		// Whose it was may be told by nobody.
		out.Deleted = append(out.Deleted, Deleted{ID: d.ID, Zone: cmp.Or(d.Zone, e.cfg.Zone), Host: cmp.Or(d.Host, e.cfg.Host)})
		e.dropCheckpoint(ctx, repo, ref, d.Checkpoint)
	}
	if len(needing) > 0 {
		out.Notes = append(out.Notes, fmt.Sprintf("deleted with the incrementals that needed it: %s", idsOf(needing)))
	}
	return out, nil
}

func errNeeded(id string, needing []repository.Sibling) error {
	return messages.Errorf(messages.CodeBackupNeeded, "backup %s is needed by %s", id, idsOf(needing))
}

func idsOf(list []repository.Sibling) string {
	var ids []string
	for _, d := range list {
		ids = append(ids, d.ID)
	}
	return strings.Join(ids, ", ")
}

// dropCheckpoint removes the checkpoint of a backup that is gone, or never came to be, if its VM is on
// this host and no other backup holds it. The next backup of the VM would do so too.
func (e *Executor) dropCheckpoint(ctx context.Context, repo *repository.Repository, gone messages.BackupRef, name string) {
	// A manifest may name the checkpoint of another program.
	if !strings.HasPrefix(name, checkpointPrefix) || e.cfg.Hypervisor == nil {
		return
	}
	err := e.dropUnheld(ctx, repo, gone, name)
	if err != nil {
		e.cfg.Log.Warn().Err(err).Str("vm", gone.VM).Str("checkpoint", name).Msg("the checkpoint of a deleted backup stays")
	}
}

func (e *Executor) dropUnheld(ctx context.Context, repo *repository.Repository, gone messages.BackupRef, name string) error {
	others, err := repo.Siblings(ctx, gone)
	if err != nil {
		return err
	}
	if slices.ContainsFunc(others, func(s repository.Sibling) bool { return holds(s.ID, s.Checkpoint, name) }) {
		return nil
	}
	ctx, cancel := context.WithTimeoutCause(ctx, stateTimeout,
		messages.Errorf(messages.CodeHypervisorDown, "no answer in %s", stateTimeout))
	defer cancel()
	_, err = e.cfg.Hypervisor.DeleteCheckpoint(ctx, gone.VM, hypervisor.Checkpoint{Name: name})
	return err
}

// list reads the manifests of a repository. A broken one is noted and does not hide the others.
func (e *Executor) list(ctx context.Context, ws *workspace, cmd *messages.ListBackups, r Reporter) (Outcome, error) {
	r.Phase(messages.PhaseMounting)
	repo, err := ws.repository(ctx, cmd.Repository)
	if err != nil {
		return Outcome{}, err
	}
	backups, problems, err := repo.List(ctx, cmd.BackupPath, cmd.VM)
	if err != nil {
		return Outcome{}, err
	}
	if len(problems) > 0 {
		// A NAS that went away in the middle makes problems of all the rest.
		if err := repo.Check(ctx); err != nil {
			return Outcome{}, err
		}
	}
	out := Outcome{Listed: []messages.CatalogEntry{}}
	for _, b := range backups {
		out.Listed = append(out.Listed, b.Manifest.CatalogEntry(cmd.Repository, cmd.BackupPath))
	}
	for _, p := range problems {
		out.Notes = append(out.Notes, fmt.Sprintf("%s/%s cannot be used: %v", p.VM, p.ID, p.Err))
	}
	return out, nil
}
