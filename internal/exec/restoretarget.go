package exec

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/nasfleet/nasfleet/internal/exec/hypervisor"
	"github.com/nasfleet/nasfleet/internal/exec/repository"
	"github.com/nasfleet/nasfleet/messages"
)

// aimAtDir restores into new files beside their final names, so that what bears the name of a
// restored disk is always whole.
func (t *restoring) aimAtDir(disks []repository.Disk) error {
	format := t.cmd.Format
	if format == "" {
		format = "qcow2"
	}
	// Others may pass, because a restored VM's QEMU has to; the disks in it are 0600.
	if err := os.MkdirAll(t.cmd.ToDir, 0o711); err != nil {
		return messages.Errorf(messages.CodeTargetWriteFailed, "make the folder to restore to: %w", err)
	}
	for _, d := range disks {
		to := &restoreTarget{disk: d, format: format}
		to.path = filepath.Join(t.cmd.ToDir, d.Name+"."+format)
		to.tmp = filepath.Join(t.cmd.ToDir, "."+d.Name+"."+format+unfinishedSuffix(t.ws.job))
		to.restored = !t.cmd.Force && sameFile(to.tmp, to.path)
		if !to.restored {
			if err := t.makeWay(to); err != nil {
				return err
			}
		}
		t.ws.onClose("unfinished restore", func(ctx context.Context) error {
			return t.onTarget(ctx, func() error {
				if err := os.Remove(to.tmp); err != nil && !errors.Is(err, fs.ErrNotExist) {
					return err
				}
				return nil
			})
		})
		t.to = append(t.to, to)
	}
	return nil
}

// onTarget runs f, which works on files to restore to.
func (t *restoring) onTarget(ctx context.Context, f func() error) error {
	_, err := onHost(ctx, messages.CodeTargetWriteFailed, "the folder to restore to", func() (struct{}, error) { return struct{}{}, f() })
	return err
}

// makeWay makes sure that a disk may get its name, and removes what an earlier attempt left.
func (t *restoring) makeWay(to *restoreTarget) error {
	if err := t.mayReplace(to.path); err != nil {
		return err
	}
	if err := os.Remove(to.tmp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return messages.Errorf(messages.CodeTargetWriteFailed, "remove what an earlier attempt left: %w", err)
	}
	return nil
}

// sameFile says whether two names are one file's.
func sameFile(a, b string) bool {
	x, errA := os.Lstat(a)
	y, errB := os.Lstat(b)
	return errA == nil && errB == nil && os.SameFile(x, y)
}

// unfinishedSuffix ends the name of a file that a job restores.
func unfinishedSuffix(job string) string { return "." + job + ".partial" }

// mayReplace refuses a file that exists, unless forced; and one that a VM has open in any case.
func (t *restoring) mayReplace(path string) error {
	info, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return messages.Errorf(messages.CodeTargetWriteFailed, "look at the file to restore to: %w", err)
	}
	if !t.cmd.Force {
		return messages.Errorf(messages.CodeTargetExists, "%s exists", path)
	}
	if !info.Mode().IsRegular() {
		return messages.Errorf(messages.CodeTargetExists, "%s is not a regular file", path).
			WithHint("Choose another folder: only a regular file is ever replaced.")
	}
	used, err := inUse(path)
	if err != nil {
		return messages.Errorf(messages.CodeTargetWriteFailed, "look at the file to restore to: %w", err)
	}
	if used {
		return messages.Errorf(messages.CodeVMRunning, "%s is in use by a running VM", path)
	}
	return nil
}

// inUse asks whether a QEMU has the image open. QEMU holds locks on bytes from 100 for the rights
// it uses and from 200 for those it does not share (block/file-posix.c).
func inUse(path string) (bool, error) {
	f, err := os.Open(path)
	if err != nil {
		return false, err
	}
	defer func() { _ = f.Close() }()
	lock := unix.Flock_t{Type: unix.F_WRLCK, Start: 100, Len: 200}
	if err := unix.FcntlFlock(f.Fd(), unix.F_OFD_GETLK, &lock); err != nil {
		return false, err
	}
	return lock.Type != unix.F_UNLCK, nil
}

// aimAtVM restores over the disks of a stopped VM.
func (t *restoring) aimAtVM(ctx context.Context, disks []repository.Disk) error {
	if t.e.cfg.Hypervisor == nil {
		return messages.Errorf(messages.CodeVMNotFound, "vm %s: this host was set up without libvirt", t.cmd.ToVM)
	}
	dom, err := t.e.cfg.Hypervisor.Domain(ctx, t.cmd.ToVM)
	if err != nil {
		return err
	}
	if dom.State != hypervisor.Stopped {
		return messages.Errorf(messages.CodeVMRunning, "vm %s runs", t.cmd.ToVM)
	}
	for _, d := range disks {
		i := slices.IndexFunc(dom.Disks, func(v hypervisor.Disk) bool { return v.Target == d.Name })
		if i < 0 {
			return messages.Errorf(messages.CodeDiskNotFound, "vm %s has no disk %s", t.cmd.ToVM, d.Name)
		}
		v := dom.Disks[i]
		if err := v.CheckWrite(); err != nil {
			return err
		}
		backing, err := t.e.backing(ctx, v)
		if err != nil {
			return fmt.Errorf("disk %s of vm %s: %w", d.Name, t.cmd.ToVM, err)
		}
		to := &restoreTarget{disk: d, path: v.Path, format: v.Format, backing: backing}
		if v.Network != nil {
			to.remote = &v
			if err := t.e.checkRemoteUnused(ctx, v); err != nil {
				return err
			}
		}
		t.to = append(t.to, to)
	}
	return nil
}

// settle gives a restored file its name. Without force a name that was taken meanwhile is left alone, and the
// file keeps its first name beside the new one until the job cleans up: so the next attempt knows it for its own.
func (t *restoring) settle(to *restoreTarget) error {
	if to.tmp == "" || to.restored {
		return nil
	}
	if err := rename(to.tmp, to.path, t.cmd.Force); err != nil {
		code := messages.CodeTargetWriteFailed
		if errors.Is(err, fs.ErrExist) {
			code = messages.CodeTargetExists
		}
		return messages.Errorf(code, "name the restored disk %s: %w", to.path, err)
	}
	dir, err := os.Open(filepath.Dir(to.path))
	if err != nil {
		return messages.Errorf(messages.CodeTargetWriteFailed, "sync the folder: %w", err)
	}
	return messages.EnsureCode(messages.CodeTargetWriteFailed, errors.Join(dir.Sync(), dir.Close()))
}

// rename gives a file a name, which only with replace may be taken. Where it is not, and the file system knows
// links, the file keeps its old name as well.
func rename(from, to string, replace bool) error {
	if replace {
		return os.Rename(from, to)
	}
	err := os.Link(from, to)
	if errors.Is(err, unix.EPERM) || errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOSYS) {
		return renameNoReplace(from, to)
	}
	return err
}

// renameNoReplace is for file systems without links, such as FAT. Where they know no RENAME_NOREPLACE either
// the name is looked at before.
func renameNoReplace(from, to string) error {
	err := unix.Renameat2(unix.AT_FDCWD, from, unix.AT_FDCWD, to, unix.RENAME_NOREPLACE)
	if !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOSYS) {
		return err
	}
	if _, err := os.Lstat(to); !errors.Is(err, fs.ErrNotExist) {
		return errors.Join(err, fs.ErrExist)
	}
	return os.Rename(from, to)
}
