package repository

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"

	"github.com/nasfleet/nasfleet/messages"
)

// createTries bounds how often Create makes the VM's folder again when another job of the same name,
// on another host, removes it as empty at that moment.
const createTries = 5

// CommittedError says that the backup to be created exists already: an earlier attempt of the job
// committed it and could not report. Its code is CodeTargetExists.
type CommittedError struct {
	Backup *Backup
}

func (e *CommittedError) Error() string {
	return "backup " + e.Backup.Manifest.ID + " is already committed"
}

func (e *CommittedError) Unwrap() error { return &messages.Error{Code: messages.CodeTargetExists} }

// Partial is a backup that is being built: the folder <id>.partial. It ends with Commit or Discard.
// It holds no descriptor. Commit and Discard must not run beside another method.
type Partial struct {
	r    *Repository
	loc  Location
	made []string // the folders above it that Create made, outermost first
}

// Create makes the folder <backup path>/<vm>/<id>.partial, and those above it, with mode 0700. What a
// killed attempt left of the same backup is removed first. A backup that is committed already is a
// *CommittedError; CodeTargetExists as well is whatever else stands in the way.
func (r *Repository) Create(ctx context.Context, loc Location) (*Partial, error) {
	if err := loc.check(); err != nil {
		return nil, err
	}
	return call(ctx, r, long, "create "+loc.String(), func(ctx context.Context, root *os.Root) (*Partial, error) {
		if err := r.clearLeftovers(ctx, root, loc); err != nil {
			return nil, err
		}
		p := &Partial{r: r, loc: loc}
		if err := p.makeFolders(root); err != nil {
			return nil, writeError("create "+loc.String(), errors.Join(err, p.removeMade(root)))
		}
		return p, nil
	})
}

// clearLeftovers makes room for a backup that is taken again.
func (r *Repository) clearLeftovers(ctx context.Context, root *os.Root, loc Location) error {
	what := "create " + loc.String()
	switch b, err := r.load(root, loc); {
	case err == nil:
		// The attempt that renamed it may have died before it was durable.
		if err := syncUp(root, loc.folder()); err != nil {
			return writeError(what, err)
		}
		return &CommittedError{Backup: b}
	case errors.Is(err, errNotFolder):
		return writeError(what, err)
	case messages.CodeOf(err) != messages.CodeBackupNotFound:
		return err
	}
	// The folder <id> is only there without a manifest, and then it is no backup.
	return writeError(what, removeTrees(ctx, root, loc.folder(), loc.ID, loc.ID+partialSuffix))
}

func (p *Partial) makeFolders(root *os.Root) error {
	for try := 1; ; try++ {
		err := p.makeParents(root)
		if err == nil {
			err = root.Mkdir(p.path(), 0o700)
		}
		if !errors.Is(err, fs.ErrNotExist) || try == createTries {
			return err
		}
	}
}

func (p *Partial) makeParents(root *os.Root) error {
	for _, folder := range ancestors(p.loc.folder()) {
		err := root.Mkdir(folder, 0o700)
		if err == nil {
			p.made = append(p.made, folder)
			continue
		}
		if !errors.Is(err, fs.ErrExist) {
			return err
		}
		// Before going below it: os.Root would follow a link that stays inside.
		if fi, err := root.Lstat(folder); err != nil || !fi.IsDir() {
			return errors.Join(err, fmt.Errorf("%s: %w", folder, errNotFolder))
		}
	}
	return nil
}

// path returns the folder's path below the root.
func (p *Partial) path() string { return p.loc.String() + partialSuffix }

// Dir returns the folder's absolute path.
func (p *Partial) Dir() string { return filepath.Join(p.r.dir, p.path()) }

// Path returns the absolute path of a file to be written by a program such as QEMU, which needs a real one.
// It is refused if something else than a regular file is there, above all a link. The check is for what lies
// there now: whoever can write to the folder at this moment can still change it.
func (p *Partial) Path(ctx context.Context, file string) (string, error) {
	err := p.in(ctx, quick, "look at "+file, file, func(_ context.Context, dir *os.Root) error {
		if _, err := lstatRegular(dir, file); !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return nil
	})
	if err != nil {
		return "", err
	}
	return filepath.Join(p.Dir(), file), nil
}

// WriteFile writes a new file with mode 0600. It is durable after Commit.
func (p *Partial) WriteFile(ctx context.Context, file string, data []byte) error {
	return p.in(ctx, quick, "write "+file, file, func(ctx context.Context, dir *os.Root) error {
		return writeNew(ctx, dir, file, bytes.NewReader(data))
	})
}

// CopyIn copies a file of the host to a new file with mode 0600. It is durable after Commit.
func (p *Partial) CopyIn(ctx context.Context, localPath, file string) error {
	return p.in(ctx, long, "write "+file, file, func(ctx context.Context, dir *os.Root) error {
		src, err := os.Open(localPath)
		if err != nil {
			return messages.Errorf(messages.CodeInternal, "%w", err)
		}
		defer closeQuietly(src)
		return writeNew(ctx, dir, file, src)
	})
}

// in runs f in the partial folder.
func (p *Partial) in(ctx context.Context, b bound, what, file string, f func(context.Context, *os.Root) error) error {
	if err := checkFile(file); err != nil {
		return err
	}
	return do(ctx, p.r, b, what, func(ctx context.Context, root *os.Root) error {
		dir, err := openFolder(root, p.path())
		if err != nil {
			return writeError(what, err)
		}
		defer closeQuietly(dir)
		return writeError(what, f(ctx, dir))
	})
}

// Discard removes the folder, and those above it that Create made if they are empty. After Commit, or called
// again, it does nothing. It is for when the job's own context has ended, so give it another.
func (p *Partial) Discard(ctx context.Context) error {
	what := "discard " + p.loc.String()
	return do(ctx, p.r, long, what, func(ctx context.Context, root *os.Root) error {
		if err := removeTrees(ctx, root, p.loc.folder(), p.loc.ID+partialSuffix); err != nil {
			return writeError(what, err)
		}
		return writeError(what, p.removeMade(root))
	})
}

// removeMade removes the folders that Create made, as far as they are empty.
func (p *Partial) removeMade(root *os.Root) error {
	for i := len(p.made) - 1; i >= 0; i-- {
		if err := removeEmpty(root, p.made[i]); err != nil {
			return err
		}
	}
	return nil
}

// ancestors returns a path's prefixes and the path itself, outermost first.
func ancestors(p string) []string {
	if p == "." || p == "" {
		return nil
	}
	return append(ancestors(path.Dir(p)), p)
}
