package exec

import (
	"context"
	"io"
	"os"
	"time"

	"github.com/nasfleet/nasfleet/internal/exec/bounded"
	"github.com/nasfleet/nasfleet/internal/exec/copier"
	"github.com/nasfleet/nasfleet/messages"
)

// hostTimeout bounds what is done with a few names of the host's own storage, which can be a NAS as well.
const hostTimeout = 2 * time.Minute

// readThroughTimeout bounds reading a backup's file to its end, which is done when a block of it makes no sense.
const readThroughTimeout = 2 * time.Hour

// onHost runs f, which works on the host's storage and may hang in the kernel.
func onHost[T any](ctx context.Context, code messages.Code, what string, f func() (T, error)) (T, error) {
	return bound(ctx, hostTimeout, code, what, f)
}

// bound runs f, which may hang in the kernel, for at most a time.
func bound[T any](ctx context.Context, timeout time.Duration, code messages.Code, what string, f func() (T, error)) (T, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, timeout, messages.Errorf(code, "%s: no answer within %s", what, timeout))
	defer cancel()
	v, ok, err := bounded.Call(ctx, f)
	if !ok {
		return v, context.Cause(ctx)
	}
	return v, err
}

// patientChecker compares with digests that lie on the repository, whose reading may hang.
type patientChecker struct {
	copier.Checker
	timeout time.Duration
}

// Check compares, in bounded time.
func (c patientChecker) Check(ctx context.Context, index int64, block []byte) error {
	_, err := bound(ctx, c.timeout, messages.CodeRepositoryLost, "read the digests", func() (struct{}, error) {
		return struct{}{}, c.Checker.Check(ctx, index, block)
	})
	return err
}

// readThrough reads a file to its end.
func readThrough(ctx context.Context, path string) error {
	_, err := bound(ctx, readThroughTimeout, messages.CodeTimeout, "read "+path, func() (int64, error) {
		f, err := os.Open(path)
		if err != nil {
			return 0, err
		}
		defer func() { _ = f.Close() }()
		return io.Copy(io.Discard, readerOf(ctx, f))
	})
	return err
}
