package exec

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/nasfleet/nasfleet/messages"
)

// systemFolders are never a command's to name, where the host does not say what is.
func systemFolders() []string {
	return []string{"/bin", "/boot", "/etc", "/lib", "/lib64", "/proc", "/root", "/run", "/sbin", "/sys", "/usr"}
}

// checkPaths refuses a command that names a folder or an image of the host that it may not: images to
// back up, folders to restore to, repositories that are folders. Symbolic links are followed first.
// What libvirt says of a VM's disks is not the command's to choose, and not looked at.
func (e *Executor) checkPaths(ctx context.Context, cmd messages.Command) error {
	var paths []string
	add := func(r messages.Repository) {
		if r.Type == messages.RepositoryDir {
			paths = append(paths, r.Address)
		}
	}
	switch c := cmd.(type) {
	case *messages.TakeBackup:
		for _, img := range c.Images {
			paths = append(paths, img.Path)
		}
		add(c.Repository)
	case *messages.RestoreBackup:
		if c.ToDir != "" {
			paths = append(paths, c.ToDir)
		}
		add(c.Backup.Repository)
	case *messages.VerifyBackup:
		add(c.Backup.Repository)
	case *messages.DeleteBackup:
		add(c.Backup.Repository)
	case *messages.RekeyBackup:
		add(c.Backup.Repository)
	case *messages.ListBackups:
		add(c.Repository)
	}
	if len(paths) == 0 {
		return nil
	}
	_, err := onHost(ctx, messages.CodePathNotAllowed, "look at the paths of the command", func() (struct{}, error) {
		for _, p := range paths {
			if err := e.checkPath(p); err != nil {
				return struct{}{}, err
			}
		}
		return struct{}{}, nil
	})
	return err
}

func (e *Executor) checkPath(p string) error {
	real, err := resolve(p)
	if err != nil {
		return messages.Errorf(messages.CodePathNotAllowed, "%s cannot be followed to where it leads: %w", p, err)
	}
	if len(e.cfg.AllowPaths) == 0 {
		for _, dir := range append(systemFolders(), e.cfg.RunDir, e.cfg.ScratchDir, e.cfg.StateDir) {
			if dir != "" && within(real, dir) {
				return messages.Errorf(messages.CodePathNotAllowed, "%s is in %s, which is no place of backups", real, dir)
			}
		}
		return nil
	}
	if withinAny(real, e.cfg.AllowPaths) {
		return nil
	}
	return messages.Errorf(messages.CodePathNotAllowed, "%s is in none of the folders that this host allows: %s", real, strings.Join(e.cfg.AllowPaths, ", "))
}

// within says whether an absolute, clean path is a folder or lies below it.
func within(p, dir string) bool {
	return p == dir || dir == "/" || strings.HasPrefix(p, dir+"/")
}

// resolve follows the symbolic links of a path as far as it exists; what does not exist yet is no link,
// and a link to what does not exist yet is refused.
func resolve(p string) (string, error) {
	real, err := filepath.EvalSymlinks(p)
	if !errors.Is(err, fs.ErrNotExist) || p == "/" {
		return real, err
	}
	if _, lerr := os.Lstat(p); lerr == nil {
		return "", err
	}
	dir, err := resolve(filepath.Dir(p))
	return filepath.Join(dir, filepath.Base(p)), err
}
