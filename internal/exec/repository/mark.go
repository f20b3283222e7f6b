package repository

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"os"
)

// damagedName is the file in a backup's folder that says that it failed a verification.
const damagedName = "damaged"

// MarkDamaged notes that the backup failed a verification, or with false that it passed one: no
// incremental continues a backup that failed. When it returns this is durable. Restoring it is still tried.
func (b *Backup) MarkDamaged(ctx context.Context, damaged bool) error {
	what := "mark " + b.loc.String()
	return do(ctx, b.r, quick, what, func(ctx context.Context, root *os.Root) error {
		return writeError(what, inFolder(root, b.loc.String(), func(dir *os.Root) error {
			return changeMark(ctx, dir, damaged)
		}))
	})
}

// changeMark leaves a mark that is there alone: while it is made anew there would be none.
func changeMark(ctx context.Context, dir *os.Root, damaged bool) error {
	var err error
	if damaged {
		err = writeNew(ctx, dir, damagedName, bytes.NewReader([]byte("a verification of this backup has failed\n")))
	} else {
		err = dir.Remove(damagedName)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, fs.ErrExist) {
		return err
	}
	if damaged {
		if err := syncFile(dir, damagedName); err != nil {
			return err
		}
	}
	return syncFolder(dir, ".")
}

// isDamaged says whether a backup's folder bears the mark.
func isDamaged(root *os.Root, loc Location) bool {
	_, err := root.Lstat(loc.String() + "/" + damagedName)
	return err == nil
}
