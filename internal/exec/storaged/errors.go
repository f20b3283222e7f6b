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
type purpose int

const (
	reading     purpose = iota // a disk: the source of a backup
	overwriting                // a disk that exists: the target of a restore
	writing                    // a file of our own: a backup, or a restored disk
	opening                    // a backup that exists
)

// The daemon's errors have no codes, only sentences. These are parts of QEMU's own.
const (
	sayWrongKey     = "Invalid password, cannot unlock any keyslot"
	sayNoSlot       = "No keyslots match given (old) password for erase operation"
	sayNoCPUUsage   = "Unable to get accurate CPU usage"
	sayKeyNeeded    = "encrypt.key-secret"
	sayLocked       = `Failed to get "` // … lock
	saySharedLocked = `Failed to get shared "`
	sayNotQcow2     = "not in qcow2 format"
	sayNotLUKS      = "not in LUKS format"
	sayNoServer     = "Failed to connect to "
	sayNoDriver     = "Unknown driver"
	sayNoExport     = "export not available"
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
	var coded *messages.Error
	if !errors.As(err, &coded) {
		coded = p.code(err)
	}
	return &messages.Error{Code: coded.Code, Hint: coded.Hint, Err: fmt.Errorf("%s: %w", what, bare(err))}
}

// bare takes the code off an error that begins with one: it need not be said twice.
func bare(err error) error {
	if coded, ok := err.(*messages.Error); ok { //nolint:errorlint // the outermost alone
		return coded.Err
	}
	return err
}

// also adds a second error to one that is already there.
func also(err, second error) error {
	if second == nil {
		return err
	}
	return errors.Join(err, second)
}

// code finds out what a bare error is about.
func (p purpose) code(err error) *messages.Error {
	switch {
	case says(err, sayWrongKey):
		return messages.Errorf(messages.CodeWrongPassphrase, "%w", err)
	case says(err, sayKeyNeeded):
		return messages.Errorf(messages.CodeSourceEncrypted, "%w", err)
	case errors.Is(err, errInUse), says(err, sayLocked), says(err, saySharedLocked):
		return messages.Errorf(messages.CodeVMRunning, "%w", err).
			WithHint("Stop the VM or the program that has the disk open, or try again when it is done.")
	case is(err, syscall.ENOSPC), is(err, syscall.EDQUOT):
		return messages.Errorf(messages.CodeTargetFull, "%w", err)
	case says(err, sayNotQcow2), says(err, sayNotLUKS):
		return messages.Errorf(p.wrongFormat(), "%w", err)
	case is(err, syscall.ENOENT), is(err, syscall.ENXIO), errors.Is(err, fs.ErrNotExist):
		return messages.Errorf(p.missing(), "%w", err)
	case p == opening && unreadable(err):
		return messages.Errorf(messages.CodeSourceReadFailed, "%w", err).
			WithHint("Check the repository's storage: reading the backup failed.")
	}
	return messages.Errorf(p.failed(), "%w", err)
}

func (p purpose) missing() messages.Code {
	switch p {
	case reading, overwriting:
		return messages.CodeDiskNotFound
	case opening:
		return messages.CodeBackupNotFound
	}
	return messages.CodeTargetWriteFailed
}

func (p purpose) wrongFormat() messages.Code {
	switch p {
	case reading, overwriting:
		return messages.CodeDiskUnsupported
	case opening:
		return messages.CodeBackupCorrupt
	}
	return messages.CodeTargetWriteFailed
}

func (p purpose) failed() messages.Code {
	switch p {
	case reading:
		return messages.CodeSourceReadFailed
	case opening:
		return messages.CodeBackupCorrupt
	}
	return messages.CodeTargetWriteFailed
}

// unreadable tells a repository that cannot be read from a backup that makes no sense.
func unreadable(err error) bool {
	for _, errno := range []syscall.Errno{syscall.EIO, syscall.EACCES, syscall.EPERM, syscall.ENOTCONN, syscall.ETIMEDOUT} {
		if is(err, errno) {
			return true
		}
	}
	return says(err, "stale file handle") // Go's text of ESTALE is another
}

// is says whether an error is, or in the daemon's words quotes, an error of the system. Go and
// the C library (in the C locale) differ in the case of these texts only.
func is(err error, errno syscall.Errno) bool {
	return errors.Is(err, errno) || says(err, errno.Error())
}

func says(err error, part string) bool {
	return strings.Contains(strings.ToLower(err.Error()), strings.ToLower(part))
}
