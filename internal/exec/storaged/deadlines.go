package storaged

import (
	"context"
	"time"

	"github.com/nasfleet/nasfleet/internal/exec/bounded"
	"github.com/nasfleet/nasfleet/messages"
)

// What is known to hang, a repository, is watched by whoever opened it. These are for everything else, and
// far above what it takes.
const (
	// fileTimeout bounds a look at a file, and its making or removal.
	fileTimeout = 2 * time.Minute
	// startTimeout bounds the start of a daemon.
	startTimeout = time.Minute
	// graphTimeout bounds making an export or closing it. A LUKS header may ask for minutes (maxRounds).
	graphTimeout = 15 * time.Minute
	// checkTimeout bounds qemu-img check, which reads the tables of a qcow2: 1.5 GiB for a disk of 10 TiB.
	checkTimeout = time.Hour
)

// onFile runs f, which works on a file and may hang in the kernel.
func onFile(ctx context.Context, f func() error) error {
	return bounded.Do(ctx, fileTimeout, messages.Errorf(messages.CodeTimeout, "its file system has not answered within %s", fileTimeout), f)
}

// ofFile is onFile for what has a result.
func ofFile[T any](ctx context.Context, f func() (T, error)) (T, error) {
	result := make(chan T, 1)
	err := onFile(ctx, func() error {
		v, err := f()
		result <- v
		return err
	})
	if err != nil {
		var none T
		return none, err
	}
	return <-result, nil
}

// within bounds a step of the daemon.
func within(ctx context.Context, timeout time.Duration) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(ctx, timeout, messages.Errorf(messages.CodeTimeout, "not done within %s", timeout))
}
