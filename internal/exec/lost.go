package exec

import (
	"context"

	"github.com/nasfleet/nasfleet/messages"
)

// fullBelow is the free space (bytes) at which a repository counts as full where a write has failed and
// nobody said why. It is what the requests under way may need.
const fullBelow = 16 << 20

// explain finds out whether an attempt failed because its repository went away, or is full, where what
// failed could not know: a storage daemon says EIO, the SFTP protocol has no word for a full disk.
func (ws *workspace) explain(ctx context.Context, cmd messages.Command, err error) error {
	if ws.repo == nil || !mayBeLost(messages.CodeOf(err)) {
		return err
	}
	if lost := ws.repo.Check(ctx); lost != nil {
		return messages.Errorf(messages.CodeRepositoryLost, "%w: %w", lost, err)
	}
	if !makesBackup(cmd) || messages.CodeOf(err) != messages.CodeTargetWriteFailed {
		return err
	}
	if free, ferr := ws.repo.FreeBytes(ctx); ferr == nil && free < fullBelow {
		return messages.Errorf(messages.CodeTargetFull, "%d MiB are free on the repository: %w", free>>20, err)
	}
	return err
}

// makesBackup says whether a command's job writes a new backup.
func makesBackup(cmd messages.Command) bool {
	switch cmd.(type) {
	case *messages.TakeBackup, *messages.ConsolidateBackup:
		return true
	}
	return false
}

// mayBeLost says whether a failure of this code can come from a repository that went away.
func mayBeLost(code messages.Code) bool {
	switch code {
	case messages.CodeMountFailed, messages.CodeTargetWriteFailed, messages.CodeSourceReadFailed,
		messages.CodeBackupNotFound, messages.CodeBackupCorrupt, messages.CodeVerifyFailed,
		messages.CodeStorageDaemonFailed, messages.CodeTimeout, messages.CodeInternal:
		return true
	}
	return false
}
