package exec

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/nasfleet/nasfleet/internal/exec/bounded"
	"github.com/nasfleet/nasfleet/internal/exec/copier"
	"github.com/nasfleet/nasfleet/internal/exec/digest"
	"github.com/nasfleet/nasfleet/internal/exec/nbd"
	"github.com/nasfleet/nasfleet/internal/exec/storaged"
	"github.com/nasfleet/nasfleet/messages"
)

// disksAtOnce is how many disks of a job are copied side by side. Two keep the storage busy while
// one of them waits; more would only cost memory.
const disksAtOnce = 2

// checkEvery is how often a source is asked whether the copy may go on.
const checkEvery = time.Second

// lane is one disk's way from an NBD export to another; see the design's "one lane for the data".
type lane struct {
	name     string
	src, dst endpoint
	size     int64
	limiter  *copier.Limiter
	// unit is what the target takes whole, in bytes; 0 for any.
	unit int64
	// digests are written as the data passes (a backup); check is compared with it (a restore).
	digests *digest.Writer
	check   copier.Checker
	// zeroHoles writes zeroes where the source has holes: the target has old content.
	zeroHoles bool
	// changes is the name of the source's dirty bitmap that says what is to be copied; "" for all. Below
	// is what they are laid on.
	changes string
	below   copier.Below
	// stall bounds how long a side may be silent; stored says which of them are the repository's.
	stall  time.Duration
	stored side
	report Reporter
}

// side is an end of a lane, or both.
type side int

const (
	sourceSide side = 1 << iota
	targetSide
)

// endpoint is an export of an NBD server on a unix socket.
type endpoint struct {
	socket, export string
	// guest is that of a guest's QEMU; nil for a storage daemon.
	guest *handshakes
}

// runLane copies one disk.
func runLane(ctx context.Context, l lane) (copier.Stats, error) {
	src, err := dial(ctx, l.src, messages.CodeSourceReadFailed, nbd.BaseAllocation)
	if err != nil {
		return copier.Stats{}, fmt.Errorf("disk %s: %w", l.name, err)
	}
	defer func() { _ = src.Close() }()
	dst, err := dial(ctx, l.dst, messages.CodeTargetWriteFailed, nbd.BaseAllocation)
	if err != nil {
		return copier.Stats{}, fmt.Errorf("disk %s: %w", l.name, err)
	}
	defer func() { _ = dst.Close() }()
	if src.Size() != l.size {
		return copier.Stats{}, messages.Errorf(messages.CodeVMStateChanged, "disk %s has %d bytes now and had %d: it was resized", l.name, src.Size(), l.size)
	}
	options := copier.Options{
		Limiter: l.limiter, Unit: l.unit, Digests: l.digests, Check: l.check, ZeroHoles: l.zeroHoles, Stall: l.stall,
		Progress: func(done, total int64) { l.report.Disk(l.name, done, total) },
	}
	if l.changes != "" {
		options.Below = l.below
		meta := nbd.DirtyBitmap(l.changes)
		bitmap, err := dial(ctx, l.src, messages.CodeSourceReadFailed, meta)
		if err != nil {
			return copier.Stats{}, fmt.Errorf("disk %s: %w", l.name, err)
		}
		defer func() { _ = bitmap.Close() }()
		options.Changes = func(ctx context.Context, off, length int64) ([]nbd.Extent, error) {
			return bitmap.BlockStatus(ctx, meta, off, length)
		}
	}
	stats, err := copier.Copy(ctx, src, dst, options)
	if err != nil {
		return stats, fmt.Errorf("disk %s: %w", l.name, stalled(err, l.stored))
	}
	return stats, nil
}

// stalled says that a side which does not move is the repository, if it is that side.
func stalled(err error, stored side) error {
	var s *copier.Stalled
	if !errors.As(err, &s) {
		return err
	}
	at := sourceSide
	if s.Target {
		at = targetSide
	}
	if stored&at == 0 {
		return err
	}
	return messages.Errorf(messages.CodeRepositoryLost, "%w", s)
}

// died says whether a connection was lost because one of the storage daemons that serve the lane has ended.
func died(err error, daemons ...*storaged.Daemon) error {
	if !errors.Is(err, nbd.ErrDisconnected) {
		return err
	}
	for _, d := range daemons {
		if d == nil {
			continue // a side that is QEMU's own
		}
		if ended := d.Ended(); ended != nil {
			return messages.Errorf(messages.CodeStorageDaemonFailed, "%w: %w", ended, err)
		}
	}
	return err
}

// dialTimeout bounds connecting to a server on this host.
const dialTimeout = time.Minute

func withDial(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(ctx, dialTimeout,
		messages.Errorf(messages.CodeTimeout, "the export has not answered within %s", dialTimeout))
}

// dial connects to an export that has a metadata context.
func dial(ctx context.Context, e endpoint, code messages.Code, meta string) (*nbd.Conn, error) {
	ctx, cancel := withDial(ctx)
	defer cancel()
	connect := nbd.Dial
	if e.guest != nil {
		connect = e.guest.dial
	}
	c, err := connect(ctx, e.socket, nbd.Options{Export: e.export, MetaContexts: []string{meta}})
	return c, messages.EnsureCode(code, err)
}

// each runs f for every disk, a few at once. The first error ends the others.
func each[D any](ctx context.Context, disks []D, f func(context.Context, D) error) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(disksAtOnce)
	for _, d := range disks {
		g.Go(func() error { return bounded.Try(func() error { return f(ctx, d) }) })
	}
	return g.Wait()
}

// watched runs work while check is called about once a second, and once more when work is done.
// An error of check ends work, and is what counts: it says why the work failed.
func watched(ctx context.Context, check, work func(context.Context) error) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	look := func() error { return bounded.Try(func() error { return check(ctx) }) } // work never outlives the call
	var result error
	done := make(chan struct{})
	go func() {
		defer close(done)
		result = bounded.Try(func() error { return work(ctx) })
	}()
	tick := time.NewTicker(checkEvery)
	defer tick.Stop()
	for {
		select {
		case <-done:
			if err := look(); err != nil && ctx.Err() == nil {
				return err
			}
			return result
		case <-tick.C:
			if err := look(); err != nil {
				cancel(err)
				<-done
				return err
			}
		}
	}
}

// mismatch gives a block that is not what it was the code of the job that found it.
func mismatch(code messages.Code, disk string, err error) error {
	var m *digest.Mismatch
	if errors.As(err, &m) {
		return messages.Errorf(code, "disk %s: %w", disk, m)
	}
	return err
}
