package repository

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"

	"github.com/nasfleet/nasfleet/messages"
)

// Backup is a committed backup. It holds no descriptor.
type Backup struct {
	// Dir is the folder's absolute path.
	Dir      string
	Manifest Manifest
	// Damaged says that it failed a verification, see MarkDamaged.
	Damaged bool

	r   *Repository
	loc Location
}

// Problem is something below a backup path that should be a backup and cannot be used as one. What is
// known of it elsewhere, such as a catalog entry, is neither confirmed nor refuted.
type Problem struct {
	VM string
	// ID is empty where a VM's whole folder cannot be read.
	ID string
	// Checkpoint is what its manifest names, as far as that can be read; "" for none.
	Checkpoint string
	Err        error
}

// Find returns a backup, judged by its manifest and the files it names. Its errors are CodeBackupNotFound,
// CodeBackupCorrupt, CodeUnsupportedVersion, and CodeMountFailed where reading failed. The reference's
// repository is not looked at: it is this one.
func (r *Repository) Find(ctx context.Context, ref messages.BackupRef) (*Backup, error) {
	loc := locationOf(ref)
	if err := loc.check(); err != nil {
		return nil, err
	}
	return call(ctx, r, quick, "find "+loc.String(), func(_ context.Context, root *os.Root) (*Backup, error) { return r.load(root, loc) })
}

func (r *Repository) load(root *os.Root, loc Location) (*Backup, error) {
	m, err := readManifest(root, loc)
	if err != nil {
		return nil, loadError(loc, err)
	}
	b := r.backup(loc, m)
	b.Damaged = isDamaged(root, loc)
	return b, nil
}

func (r *Repository) backup(loc Location, m Manifest) *Backup {
	return &Backup{Dir: filepath.Join(r.dir, loc.String()), Manifest: m, r: r, loc: loc}
}

func readManifest(root *os.Root, loc Location) (Manifest, error) {
	dir, err := openFolder(root, loc.String())
	if err != nil {
		return Manifest{}, err
	}
	defer closeQuietly(dir)
	data, err := readLimited(dir, manifestName, maxManifestBytes)
	if err != nil {
		return Manifest{}, err
	}
	m, err := DecodeManifest(data)
	if err != nil {
		return Manifest{}, err
	}
	if err := m.check(loc); err != nil {
		return Manifest{}, err
	}
	return m, m.checkFiles(dir)
}

func loadError(loc Location, err error) error {
	what := "backup " + loc.String()
	switch {
	case errors.Is(err, errNotFolder), errors.Is(err, errNotRegular), errors.Is(err, errTooBig):
		return messages.Errorf(messages.CodeBackupCorrupt, "%s: %w", what, err)
	case messages.CodeOf(err) != messages.CodeInternal:
		var e *messages.Error
		errors.As(err, &e)
		return &messages.Error{Code: e.Code, Hint: e.Hint, Err: fmt.Errorf("%s: %w", what, e.Err)}
	case errors.Is(err, fs.ErrNotExist):
		return messages.Errorf(messages.CodeBackupNotFound, "%s: %w", what, err)
	}
	return readError(what, err)
}

// Path returns the absolute path of one of the backup's files, for a program such as QEMU, which needs a real
// one. The file must be in the manifest and a regular one; the check is for what lies there now.
func (b *Backup) Path(ctx context.Context, file string) (string, error) {
	err := b.in(ctx, file, func(dir *os.Root) error {
		_, err := lstatRegular(dir, file)
		return err
	})
	if err != nil {
		return "", err
	}
	return filepath.Join(b.Dir, file), nil
}

// ReadFile reads one of the backup's files, of at most limit bytes.
func (b *Backup) ReadFile(ctx context.Context, file string, limit int64) ([]byte, error) {
	if err := b.has(file); err != nil {
		return nil, err
	}
	return call(ctx, b.r, quick, "read "+file, func(_ context.Context, root *os.Root) (data []byte, err error) {
		err = inFolder(root, b.loc.String(), func(dir *os.Root) error {
			data, err = readLimited(dir, file, limit)
			return err
		})
		if err != nil {
			return nil, loadError(b.loc, err)
		}
		return data, nil
	})
}

func (b *Backup) in(ctx context.Context, file string, f func(*os.Root) error) error {
	if err := b.has(file); err != nil {
		return err
	}
	return do(ctx, b.r, quick, "look at "+file, func(_ context.Context, root *os.Root) error {
		if err := inFolder(root, b.loc.String(), f); err != nil {
			return loadError(b.loc, err)
		}
		return nil
	})
}

func (b *Backup) has(file string) error {
	if !slices.Contains(b.Manifest.files(), file) {
		return messages.Errorf(messages.CodeInternal, "backup %s has no file %q", b.loc, file)
	}
	return nil
}

// List returns the backups below a backup path, of one VM or of all where vm is "", sorted by id; and what is
// wrong with those that cannot be used. Folders that are not named as a backup is are left alone. A backup
// path that is not there is CodeBackupNotFound, so that a misspelt one does not look empty; a VM that is not
// there has no backups.
func (r *Repository) List(ctx context.Context, backupPath, vm string) ([]Backup, []Problem, error) {
	if err := checkBackupPath(backupPath); err != nil {
		return nil, nil, err
	}
	if vm != "" {
		if err := messages.CheckVM(vm); err != nil {
			return nil, nil, err
		}
	}
	l, err := call(ctx, r, long, "list "+path.Join("/", backupPath), func(ctx context.Context, root *os.Root) (*listing, error) {
		l := &listing{r: r, root: root, backupPath: backupPath}
		return l, l.walk(ctx, vm)
	})
	if err != nil {
		return nil, nil, err
	}
	return l.backups, l.problems, nil
}

type listing struct {
	r          *Repository
	root       *os.Root
	backupPath string
	backups    []Backup
	problems   []Problem
}

func (l *listing) walk(ctx context.Context, vm string) error {
	entries, err := readFolder(l.root, l.backupPath)
	if errors.Is(err, fs.ErrNotExist) {
		return messages.Errorf(messages.CodeBackupNotFound, "backup path %q: %w", l.backupPath, err).
			WithHint("Check the backup path: the repository has no such folder.")
	}
	if err != nil {
		return readError("list "+l.backupPath, err)
	}
	for _, e := range entries {
		name := e.Name()
		if vm != "" && name != vm || messages.CheckVM(name) != nil {
			continue
		}
		// A file is somebody else's. A link is as well, but it may hide backups.
		if !e.IsDir() && e.Type()&fs.ModeSymlink == 0 {
			continue
		}
		if err := l.walkVM(ctx, name); err != nil {
			return err
		}
	}
	slices.SortFunc(l.backups, func(a, b Backup) int {
		return cmp.Or(cmp.Compare(a.loc.ID, b.loc.ID), cmp.Compare(a.loc.VM, b.loc.VM))
	})
	return nil
}

func (l *listing) walkVM(ctx context.Context, vm string) error {
	entries, err := readFolder(l.root, path.Join(l.backupPath, vm))
	if errors.Is(err, fs.ErrNotExist) {
		return nil // removed since
	}
	if err != nil {
		l.problems = append(l.problems, Problem{VM: vm, Err: loadError(Location{l.backupPath, vm, ""}, err)})
		return nil
	}
	for _, e := range entries {
		if err := ctx.Err(); err != nil {
			return err
		}
		if messages.CheckID("backup id", e.Name()) != nil {
			continue // <id>.partial and <id>.deleting as well
		}
		b, err := l.r.load(l.root, Location{l.backupPath, vm, e.Name()})
		if err != nil {
			s, _ := siblingOf(l.root, path.Join(l.backupPath, vm), e.Name())
			l.problems = append(l.problems, Problem{VM: vm, ID: e.Name(), Checkpoint: s.Checkpoint, Err: err})
			continue
		}
		l.backups = append(l.backups, *b)
	}
	return nil
}

func readFolder(root *os.Root, p string) ([]fs.DirEntry, error) {
	dir, err := openFolder(root, p)
	if err != nil {
		return nil, err
	}
	defer closeQuietly(dir)
	return fs.ReadDir(dir.FS(), ".")
}
