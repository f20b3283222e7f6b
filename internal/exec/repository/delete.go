package repository

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"strings"

	"github.com/nasfleet/nasfleet/messages"
)

// Delete removes a backup, whole or broken: its folder is renamed to <id>.deleting, which is no backup, and
// then removed, and the VM's folder too if it is empty. After a crash it goes on where it was, also with other
// backups of the VM whose removal was cut off: nobody asks for those again. A backup that is not there, and is
// not half removed either, is CodeBackupNotFound.
func (r *Repository) Delete(ctx context.Context, ref messages.BackupRef) error {
	loc := locationOf(ref)
	if err := loc.check(); err != nil {
		return err
	}
	return do(ctx, r, long, "delete "+loc.String(), func(ctx context.Context, root *os.Root) error {
		for _, s := range deleteSteps(ctx, loc) {
			if err := ctx.Err(); err != nil {
				return err
			}
			if err := s.run(root); err != nil {
				return writeError("delete "+loc.String()+": "+s.name, err)
			}
		}
		return nil
	})
}

func deleteSteps(ctx context.Context, loc Location) []step {
	backup, deleting := loc.String(), loc.String()+deletingSuffix
	return []step{
		{"find it", func(root *os.Root) error { return findDeletable(ctx, root, loc) }},
		{"rename it", func(root *os.Root) error {
			if err := root.Rename(backup, deleting); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return err
			}
			return nil
		}},
		{"sync its name", func(root *os.Root) error { return syncFolder(root, loc.folder()) }},
		{"remove it", func(root *os.Root) error { return removeDeleting(ctx, root, loc.folder()) }},
		{"remove the empty folder", func(root *os.Root) error { return removeEmpty(root, loc.folder()) }},
	}
}

// removeDeleting removes the VM's backups that are half removed. Another host may be at one of them too.
func removeDeleting(ctx context.Context, root *os.Root, folder string) error {
	entries, err := readFolder(root, folder)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	var half []string
	for _, e := range entries {
		if id, ok := strings.CutSuffix(e.Name(), deletingSuffix); ok && messages.CheckID("backup id", id) == nil {
			half = append(half, e.Name())
		}
	}
	return removeTrees(ctx, root, folder, half...)
}

// findDeletable makes sure that there is something to delete and that nothing is in the way of the rename.
func findDeletable(ctx context.Context, root *os.Root, loc Location) error {
	dir, err := openFolder(root, loc.folder())
	if errors.Is(err, errNotFolder) {
		return messages.Errorf(messages.CodeBackupCorrupt, "%w", err)
	}
	if err != nil {
		return notFound(loc, err)
	}
	defer closeQuietly(dir)
	if _, err := dir.Lstat(loc.ID); err == nil {
		return removeTrees(ctx, root, loc.folder(), loc.ID+deletingSuffix)
	}
	_, err = dir.Lstat(loc.ID + deletingSuffix)
	return notFound(loc, err)
}

func notFound(loc Location, err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return messages.Errorf(messages.CodeBackupNotFound, "backup %s: %w", loc, err)
	}
	return err
}

// Sweep removes what a killed attempt at one backup left: <id>.partial, <id>.deleting, and the VM's folder if
// it is then empty. A committed backup stays. Nothing to remove is no error.
func (r *Repository) Sweep(ctx context.Context, loc Location) error {
	if err := loc.check(); err != nil {
		return err
	}
	what := "sweep " + loc.String()
	return do(ctx, r, long, what, func(ctx context.Context, root *os.Root) error {
		err := removeTrees(ctx, root, loc.folder(), loc.ID+partialSuffix, loc.ID+deletingSuffix)
		if err != nil {
			return writeError(what, err)
		}
		return writeError(what, removeEmpty(root, loc.folder()))
	})
}
