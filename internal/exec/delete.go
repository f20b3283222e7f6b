package exec

import (
	"context"
	"fmt"

	"github.com/nasfleet/nasfleet/messages"
)

// remove deletes a stored backup. One that is gone already is as good as deleted: what is left to
// do is to forget it.
func (e *Executor) remove(ctx context.Context, ws *workspace, cmd *messages.DeleteBackup, r Reporter) (Outcome, error) {
	r.Phase(messages.PhaseMounting)
	repo, err := ws.repository(ctx, cmd.Backup.Repository)
	if err != nil {
		return Outcome{}, err
	}
	r.Phase(messages.PhaseCommitting)
	out := Outcome{BackupID: cmd.Backup.ID, Deleted: &Deleted{Zone: e.cfg.Zone, Host: e.cfg.Host}}
	if b, err := repo.Find(ctx, cmd.Backup); err == nil {
		out.Deleted = &Deleted{Zone: b.Manifest.Zone, Host: b.Manifest.Host}
	}
	err = repo.Delete(ctx, cmd.Backup)
	if messages.CodeOf(err) == messages.CodeBackupNotFound {
		out.Notes = append(out.Notes, "the backup was not on the repository any more")
		err = nil
	}
	if err != nil {
		return Outcome{}, err
	}
	return out, nil
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
