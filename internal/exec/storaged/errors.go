package storaged

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"syscall"

	"github.com/nasfleet/nasfleet/messages"
)

// purpose says what a graph is for, and so what its failures mean to a job.
type purpose struct {
	missing, unreadable, format, other messages.Code
}

var (
	// reading a disk: the source of a backup.
	reading = purpose{
		missing: messages.CodeDiskNotFound, format: messages.CodeDiskUnsupported,
		unreadable: messages.CodeSourceReadFailed, other: messages.CodeSourceReadFailed,
	}
	// overwriting a disk that exists: the target of a restore.
	overwriting = purpose{
		missing: messages.CodeDiskNotFound, format: messages.CodeDiskUnsupported,
		unreadable: messages.CodeTargetWriteFailed, other: messages.CodeTargetWriteFailed,
	}
	// writing a file of our own: a backup, or a restored disk.
	writing = purpose{
		missing: messages.CodeTargetWriteFailed, format: messages.CodeTargetWriteFailed,
		unreadable: messages.CodeTargetWriteFailed, other: messages.CodeTargetWriteFailed,
	}
	// opening a backup that exists.
	opening = purpose{
		missing: messages.CodeBackupNotFound, format: messages.CodeBackupCorrupt,
		unreadable: messages.CodeSourceReadFailed, other: messages.CodeBackupCorrupt,
	}
)

// The daemon's errors have no codes, only sentences. These are parts of QEMU's own and of
// strerror's (the child runs in the C locale).
const (
	sayWrongKey   = "Invalid password, cannot unlock any keyslot"
	sayNoCPUUsage = "Unable to get accurate CPU usage"
	sayKeyNeeded  = "encrypt.key-secret"
)

var (
	sayFull       = []string{syscall.ENOSPC.Error(), syscall.EDQUOT.Error()}
	sayMissing    = []string{syscall.ENOENT.Error(), syscall.ENXIO.Error()}
	sayInUse      = []string{`Failed to get "`, `Failed to get shared "`} // … lock
	sayUnreadable = []string{
		syscall.EIO.Error(), syscall.EACCES.Error(), syscall.EPERM.Error(), syscall.ENOTCONN.Error(), "stale file handle",
	}
	sayFormat = []string{"not in qcow2 format", "not in LUKS format"}
)

// classify gives an error its code, and says what was being done. An error that has a code keeps
// it; when ctx has ended, its cause is the error, whatever came of it.
func classify(ctx context.Context, p purpose, what string, err error) error {
	if err == nil {
		return nil
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	var e *messages.Error
	if !errors.As(err, &e) {
		e = p.code(err)
	} else if err == error(e) {
		err = e.Err // its code need not be said twice
	}
	return &messages.Error{Code: e.Code, Hint: e.Hint, Err: fmt.Errorf("%s: %w", what, err)}
}

// also adds a second error to one that is already there.
func also(err, second error) error {
	if second == nil {
		return err
	}
	return errors.Join(err, second)
}

func (p purpose) code(err error) *messages.Error {
	text := strings.ToLower(err.Error())
	says := func(parts ...string) bool {
		for _, part := range parts {
			if strings.Contains(text, strings.ToLower(part)) {
				return true
			}
		}
		return false
	}
	switch {
	case says(sayWrongKey):
		return messages.Errorf(messages.CodeWrongPassphrase, "%w", err)
	case says(sayKeyNeeded):
		return messages.Errorf(messages.CodeSourceEncrypted, "%w", err)
	case errors.Is(err, errInUse), says(sayInUse...):
		return messages.Errorf(messages.CodeVMRunning, "%w", err).
			WithHint("Stop the VM or the program that has the disk open, or try again when it is done.")
	case says(sayFull...):
		return messages.Errorf(messages.CodeTargetFull, "%w", err)
	case says(sayFormat...):
		return messages.Errorf(p.format, "%w", err)
	case errors.Is(err, fs.ErrNotExist), says(sayMissing...):
		return messages.Errorf(p.missing, "%w", err)
	case errors.Is(err, fs.ErrPermission), says(sayUnreadable...):
		e := messages.Errorf(p.unreadable, "%w", err)
		if p == opening {
			e = e.WithHint("Check the repository's storage: reading the backup failed.")
		}
		return e
	}
	return messages.Errorf(p.other, "%w", err)
}
