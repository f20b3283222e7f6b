package exec

import (
	"context"
	"fmt"

	"github.com/nasfleet/nasfleet/messages"
)

// remove deletes a stored backup.
func (e *Executor) remove(ctx context.Context, ws *workspace, cmd *messages.DeleteBackup, r Reporter) (Outcome, error) {
	r.Phase(messages.PhaseMounting)
	repo, err := ws.repository(ctx, cmd.Backup.Repository)
	if err != nil {
		return Outcome{}, err
	}
	r.Phase(messages.PhaseCommitting)
	if err := repo.Delete(ctx, cmd.Backup); err != nil {
		return Outcome{}, err
	}
	return Outcome{BackupID: cmd.Backup.ID, Deleted: true}, nil
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
	out := Outcome{Listed: []messages.CatalogEntry{}}
	for _, b := range backups {
		out.Listed = append(out.Listed, b.Manifest.CatalogEntry(cmd.Repository, cmd.BackupPath))
	}
	for _, p := range problems {
		out.Notes = append(out.Notes, fmt.Sprint(p))
	}
	return out, nil
}
