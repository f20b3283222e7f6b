package storaged

import (
	"errors"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// writerLock is the byte of an image that QEMU locks while it may write to it: 100 plus the bit
// of BLK_PERM_WRITE (QEMU's block/file-posix.c).
const writerLock = 100 + 1

var errInUse = errors.New("another process has the disk open for writing")

// checkUnused says whether a QEMU, or a VM, has a disk open for writing. An export shares its
// node with everybody, so that the daemon itself refuses a qcow2 disk in use but not a raw one.
func checkUnused(path string) error {
	// Something else may have come into its place: to open a pipe can take forever.
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	lock := unix.Flock_t{Type: unix.F_WRLCK, Whence: io.SeekStart, Start: writerLock, Len: 1}
	if err := unix.FcntlFlock(f.Fd(), unix.F_OFD_GETLK, &lock); err != nil {
		return nil // a file system without locks cannot tell
	}
	if lock.Type != unix.F_UNLCK {
		return errInUse
	}
	return nil
}
