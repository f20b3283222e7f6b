package exec

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/nasfleet/nasfleet/internal/exec/repository"
	"github.com/nasfleet/nasfleet/messages"
)

// systemFolders are never a command's to name, where the host does not say what is.
func systemFolders() []string {
	return []string{"/bin", "/boot", "/etc", "/lib", "/lib64", "/proc", "/root", "/run", "/sbin", "/sys", "/usr"}
}

// checkPaths refuses a command that names a folder, a device or a file of the host that it may not: images to
// back up, folders to restore to, repositories that are none on a server, files of mount options. Symbolic links
// are followed first. What libvirt says of a VM's disks is not the command's to choose, and not looked at.
func (e *Executor) checkPaths(ctx context.Context, cmd messages.Command) error {
	if c, ok := cmd.(*messages.RestoreBackup); ok {
		if err := e.checkPools(c.ToRBD); err != nil {
			return err
		}
	}
	paths, repo, known := pathsOf(cmd)
	if !known {
		return messages.Errorf(messages.CodeInternal, "nobody has said which paths a %T names", cmd)
	}
	address, credentials := repository.OfHost(repo)
	if len(paths) == 0 && address == "" && len(credentials) == 0 {
		return nil
	}
	_, err := onHost(ctx, messages.CodePathNotAllowed, "look at the paths of the command", func() (struct{}, error) {
		for _, p := range paths {
			if err := e.checkPath(p); err != nil {
				return struct{}{}, err
			}
		}
		for _, p := range credentials {
			if err := e.checkCredentials(p); err != nil {
				return struct{}{}, err
			}
		}
		return struct{}{}, e.checkAddress(address)
	})
	return err
}

// pathsOf returns the paths of the host that a command names, and its repository; known is false for a command of a type
// that it has not heard of.
func pathsOf(cmd messages.Command) (paths []string, repo messages.Repository, known bool) {
	switch c := cmd.(type) {
	case *messages.TakeBackup:
		for _, img := range c.Images {
			paths = append(paths, img.Path)
		}
		return paths, c.Repository, true
	case *messages.RestoreBackup:
		if c.ToDir != "" {
			paths = append(paths, c.ToDir)
		}
		return paths, c.Backup.Repository, true
	case *messages.VerifyBackup:
		return nil, c.Backup.Repository, true
	case *messages.DeleteBackup:
		return nil, c.Backup.Repository, true
	case *messages.RekeyBackup:
		return nil, c.Backup.Repository, true
	case *messages.ConsolidateBackup:
		return nil, c.Backup.Repository, true
	case *messages.ListBackups:
		return nil, c.Repository, true
	}
	return nil, messages.Repository{}, false
}

// checkAddress judges the address of a repository that is a folder or a disk of this host; "" is none.
func (e *Executor) checkAddress(address string) error {
	switch {
	case address == "":
		return nil
	case filepath.IsAbs(address):
		return e.checkPath(filepath.Clean(address))
	case len(e.cfg.AllowPaths) > 0:
		// A label, say, which can be that of any disk.
		return messages.Errorf(messages.CodePathNotAllowed, "repository address %q does not say where on this host it is", address).
			WithHint("Name the disk by its path, below a folder that the host allows (hostworker --allow-path).")
	}
	return nil
}

// checkCredentials judges a file that a mount option names: the mount reads it as root, and may send what it
// finds in it to a server of the command's choice.
func (e *Executor) checkCredentials(p string) error {
	if e.cfg.MountCredentials != "" && filepath.IsAbs(p) {
		real, err := resolve(filepath.Clean(p))
		if err != nil {
			return messages.Errorf(messages.CodePathNotAllowed, "%s cannot be followed to where it leads: %w", p, err)
		}
		if withinAny(real, []string{e.cfg.MountCredentials}) {
			return nil
		}
	}
	return messages.Errorf(messages.CodePathNotAllowed, "the mount options name the file %s, which is not below %q", p, e.cfg.MountCredentials).
		WithHint("Put it into that folder of the host, or name another one (hostworker --mount-credentials).")
}

// checkPools refuses RBD images of pools that this host does not allow.
func (e *Executor) checkPools(images map[string]string) error {
	for disk, image := range images {
		pool, _, _ := strings.Cut(image, "/")
		if !slices.Contains(e.cfg.AllowRBD, pool) {
			return messages.Errorf(messages.CodePathNotAllowed, "the image %s for disk %s is in no pool that this host allows: %q", image, disk, e.cfg.AllowRBD).
				WithHint("Name another pool, or allow this one on the host (hostworker --allow-rbd).")
		}
	}
	return nil
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
