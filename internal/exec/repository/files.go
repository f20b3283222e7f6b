package repository

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"regexp"
	"strings"
	"unicode"

	"golang.org/x/sys/unix"

	"github.com/nasfleet/nasfleet/messages"
)

// The suffixes of a backup's folder while it is built and while it is removed. Neither is a backup.
const (
	partialSuffix  = ".partial"
	deletingSuffix = ".deleting"
)

const (
	manifestName = "manifest.json"
	manifestTemp = "manifest.json.tmp"
)

var (
	errNotFolder  = errors.New("it is not a folder")
	errNotRegular = errors.New("it is not a regular file")
	errTooBig     = errors.New("it is too big")
)

// filePattern is what a backup's files are called: plain in every file system, and to every program.
var filePattern = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9._-]{0,199}$`)

// Location is where a backup lies below the repository's root.
type Location struct {
	// BackupPath is a clean relative path; "" is the root.
	BackupPath string
	VM         string
	ID         string
}

func locationOf(ref messages.BackupRef) Location {
	return Location{BackupPath: ref.BackupPath, VM: ref.VM, ID: ref.ID}
}

func (l Location) check() error {
	if err := checkBackupPath(l.BackupPath); err != nil {
		return err
	}
	if err := messages.CheckVM(l.VM); err != nil {
		return err
	}
	return messages.CheckID("backup id", l.ID)
}

// folder returns the path of the VM's folder below the root.
func (l Location) folder() string { return path.Join(l.BackupPath, l.VM) }

// String returns the path of the backup below the root.
func (l Location) String() string { return path.Join(l.folder(), l.ID) }

func checkBackupPath(p string) error {
	if p == "" {
		return nil
	}
	if p == "." || path.Clean(p) != p || !fs.ValidPath(p) || strings.ContainsFunc(p, unicode.IsControl) {
		return messages.Errorf(messages.CodeInvalidMessage, "backup_path %q is not a clean path below the repository", p)
	}
	return nil
}

// checkFile refuses what cannot be the name of one of a backup's files.
func checkFile(name string) error {
	if !filePattern.MatchString(name) || name == manifestName || name == manifestTemp {
		return messages.Errorf(messages.CodeInternal, "%q is not a name for a backup's file", name)
	}
	return nil
}

// openFolder opens a folder below root. Each element of the path must be a folder and not a link to one;
// otherwise the error is errNotFolder.
func openFolder(root *os.Root, p string) (*os.Root, error) {
	if err := checkFolders(root, p); err != nil {
		return nil, err
	}
	return root.OpenRoot(path.Join(".", p))
}

func checkFolders(root *os.Root, p string) error {
	for i := range len(p) + 1 {
		if i == 0 || i < len(p) && p[i] != '/' {
			continue
		}
		fi, err := root.Lstat(p[:i])
		if err != nil {
			return err
		}
		if !fi.IsDir() {
			return fmt.Errorf("%s: %w", p[:i], errNotFolder)
		}
	}
	return nil
}

// openRegular opens a regular file for reading. A link is refused although os.Root would keep it below the
// root, and a pipe does not block. The error is then errNotRegular.
func openRegular(dir *os.Root, name string) (*os.File, error) {
	before, err := lstatRegular(dir, name)
	if err != nil {
		return nil, err
	}
	f, err := dir.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	// What was opened must be what was looked at: os.Root follows a link even with O_NOFOLLOW.
	if now, err := f.Stat(); err != nil || !os.SameFile(before, now) {
		closeQuietly(f)
		return nil, fmt.Errorf("%s: %w", name, errNotRegular)
	}
	return f, nil
}

func lstatRegular(dir *os.Root, name string) (fs.FileInfo, error) {
	fi, err := dir.Lstat(name)
	if err != nil {
		return nil, err
	}
	if !fi.Mode().IsRegular() {
		return nil, fmt.Errorf("%s: %w", name, errNotRegular)
	}
	return fi, nil
}

// readLimited reads a regular file of at most limit bytes; a larger one is errTooBig.
func readLimited(dir *os.Root, name string, limit int64) ([]byte, error) {
	f, err := openRegular(dir, name)
	if err != nil {
		return nil, err
	}
	defer closeQuietly(f)
	data, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err != nil {
		return nil, err
	}
	if int64(len(data)) > limit {
		return nil, fmt.Errorf("%s: %w (more than %d bytes)", name, errTooBig, limit)
	}
	return data, nil
}

// writeNew writes a file that must not exist.
func writeNew(ctx context.Context, dir *os.Root, name string, src io.Reader) (err error) {
	f, err := dir.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	defer func() {
		err = errors.Join(err, f.Close())
		if err != nil {
			_ = dir.Remove(name)
		}
	}()
	_, err = io.Copy(f, contextReader{ctx, src})
	return err
}

// contextReader ends a long copy when its context ends.
type contextReader struct {
	ctx context.Context
	r   io.Reader
}

func (c contextReader) Read(b []byte) (int, error) {
	if err := c.ctx.Err(); err != nil {
		return 0, err
	}
	return c.r.Read(b)
}

// syncFile makes a file's content durable. It is opened for writing: some servers flush only what a
// writer has open.
func syncFile(dir *os.Root, name string) (err error) {
	f, err := dir.OpenFile(name, os.O_WRONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	return f.Sync()
}

// syncFolder makes a folder's names durable. Some network file systems have nothing to sync there and
// say so.
func syncFolder(root *os.Root, name string) error {
	d, err := root.Open(name)
	if err != nil {
		return err
	}
	defer closeQuietly(d)
	err = d.Sync()
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.ENOTSUP) {
		return nil
	}
	return err
}

// syncUp makes the names in a folder and in all those above it durable.
func syncUp(root *os.Root, p string) error {
	for ; ; p = path.Dir(p) {
		if err := syncFolder(root, p); err != nil || p == "." {
			return err
		}
	}
}

// removeTrees removes folders below a folder. What is not there is no error.
func removeTrees(ctx context.Context, root *os.Root, folder string, names ...string) error {
	dir, err := openFolder(root, folder)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer closeQuietly(dir)
	for _, name := range names {
		if err := removeTree(ctx, dir, name); err != nil {
			return err
		}
	}
	return nil
}

// removeTree removes a folder, its manifest first: what is left after a crash, or is renamed at that
// moment, is no backup. A link is removed, not what it points to.
//
// Between any two steps it looks at ctx. A repository that hung holds one of them until it is back, and
// the job's next attempt may have begun by then, with a folder of the same name.
func removeTree(ctx context.Context, dir *os.Root, name string) error {
	steps := []string{}
	if fi, err := dir.Lstat(name); err == nil && fi.IsDir() {
		steps = append(steps, path.Join(name, manifestName))
		entries, _ := readFolder(dir, name) // what cannot be read cannot be removed either, which says why
		for _, e := range entries {
			if e.Name() != manifestName {
				steps = append(steps, path.Join(name, e.Name()))
			}
		}
	}
	for _, step := range append(steps, name) {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := dir.RemoveAll(step); err != nil {
			return err
		}
	}
	return nil
}

// removeEmpty removes a folder that is empty. One that is not, or is not there, is no error.
func removeEmpty(root *os.Root, folder string) error {
	err := root.Remove(folder)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrExist) || errors.Is(err, unix.ENOTEMPTY) {
		return nil
	}
	return err
}

// writeError is the edge for what changes the repository.
func writeError(what string, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, errNotFolder), errors.Is(err, errNotRegular):
		return messages.Errorf(messages.CodeTargetExists, "%s: something else is in the way: %w", what, err)
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		return messages.Errorf(messages.CodeTargetFull, "%s: %w", what, err)
	}
	return messages.EnsureCode(messages.CodeTargetWriteFailed, fmt.Errorf("%s: %w", what, err))
}

// readError is the edge for what reads the repository.
func readError(what string, err error) error {
	var coded *messages.Error
	if err == nil || errors.As(err, &coded) {
		return err
	}
	return messages.Errorf(messages.CodeMountFailed, "%s: %w", what, err).
		WithHint("Reading the repository failed: check its storage and the network to it.")
}

func closeQuietly(c io.Closer) { _ = c.Close() }
