package copier

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/nasfleet/nasfleet/internal/exec/nbd"
	"github.com/nasfleet/nasfleet/messages"
)

const (
	// stallLooks is how many looks in a row find a side busy and not moving before it is stalled. Looks are
	// counted, not seconds: a process that was stopped itself has not looked.
	stallLooks = 10
	// flushLooks is the same for a flush, which may have to write out all that the page cache holds.
	flushLooks = 10 * stallLooks
)

// Stalled says that one side of a copy has not done anything for Options.Stall although it was asked
// to: no request came back. A side that nobody asks anything, because the other side or the Limiter is
// waited for, is never stalled.
type Stalled struct {
	// Target says which side: the target, or else the source.
	Target bool
	// After is the time that was waited.
	After time.Duration
}

func (e *Stalled) Error() string {
	side := "source"
	if e.Target {
		side = "target"
	}
	return fmt.Sprintf("the %s has stalled: nothing came back for %s", side, e.After)
}

// pulse shows whether one side moves.
type pulse struct {
	busy, flushing atomic.Int32
	moves          atomic.Int64

	// The watch alone uses these.
	seen  int64
	still int
}

// during counts a request while f makes it.
func (p *pulse) during(f func() error) error {
	p.busy.Add(1)
	defer p.busy.Add(-1)
	defer p.moves.Add(1)
	return f()
}

// look says whether the side has stalled.
func (p *pulse) look() bool {
	now := p.moves.Load()
	if p.busy.Load() == 0 || now != p.seen {
		p.seen, p.still = now, 0
		return false
	}
	p.still++
	if p.flushing.Load() > 0 {
		return p.still >= flushLooks
	}
	return p.still >= stallLooks
}

// watchStall runs work, and ends it when one side of it stalls.
func (j *job) watchStall(ctx context.Context, work func(context.Context) error) error {
	if j.Stall <= 0 {
		return work(ctx)
	}
	src, dst := &pulsingSource{Source: j.src}, &pulsingTarget{Target: j.dst}
	j.src = src
	if j.dst != nil {
		j.dst = dst
	}
	if changes := j.Changes; changes != nil {
		j.Changes = func(ctx context.Context, off, length int64) (list []nbd.Extent, err error) {
			err = src.during(func() error {
				list, err = changes(ctx, off, length)
				return err
			})
			return list, err
		}
	}
	if j.Check != nil {
		j.Check = pulsingChecker{j.Check, &src.pulse}
	}
	if j.Below != nil {
		j.Below = pulsingBelow{j.Below, &src.pulse}
	}
	ctx, cancel := context.WithCancelCause(ctx)
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		tick := time.NewTicker(max(j.Stall/stallLooks, 1))
		defer tick.Stop()
		for {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			switch {
			case dst.look():
				cancel(&Stalled{Target: true, After: j.Stall})
			case src.look():
				cancel(&Stalled{After: j.Stall})
			}
		}
	}()
	err := work(ctx)
	cancel(nil)
	<-watched
	var s *Stalled
	if err == nil || !errors.As(context.Cause(ctx), &s) {
		return err
	}
	code := messages.CodeSourceReadFailed
	if s.Target {
		code = messages.CodeTargetWriteFailed
	}
	return messages.EnsureCode(code, s)
}

// pulsingSource is a Source with a pulse.
type pulsingSource struct {
	Source
	pulse
}

// ReadAt reads, and counts as a request.
func (s *pulsingSource) ReadAt(ctx context.Context, p []byte, off int64) error {
	return s.during(func() error { return s.Source.ReadAt(ctx, p, off) })
}

// BlockStatus asks, and counts as a request.
func (s *pulsingSource) BlockStatus(ctx context.Context, meta string, off, length int64) (list []nbd.Extent, err error) {
	err = s.during(func() error {
		list, err = s.Source.BlockStatus(ctx, meta, off, length)
		return err
	})
	return list, err
}

// pulsingChecker is a Checker whose reading counts as the source's.
type pulsingChecker struct {
	Checker
	pulse *pulse
}

// Check implements Checker.
func (c pulsingChecker) Check(ctx context.Context, index int64, block []byte) error {
	return c.pulse.during(func() error { return c.Checker.Check(ctx, index, block) })
}

// pulsingBelow is a Below whose reading counts as the source's.
type pulsingBelow struct {
	Below
	pulse *pulse
}

// Same implements Below.
func (b pulsingBelow) Same(ctx context.Context, index int64, block []byte) (same bool, err error) {
	err = b.pulse.during(func() error {
		same, err = b.Below.Same(ctx, index, block)
		return err
	})
	return same, err
}

// pulsingTarget is a Target with a pulse.
type pulsingTarget struct {
	Target
	pulse
}

// WriteAt writes, and counts as a request.
func (t *pulsingTarget) WriteAt(ctx context.Context, p []byte, off int64) error {
	return t.during(func() error { return t.Target.WriteAt(ctx, p, off) })
}

// WriteZeroes zeroes, and counts as a request.
func (t *pulsingTarget) WriteZeroes(ctx context.Context, off, n int64, flags nbd.ZeroFlags) error {
	return t.during(func() error { return t.Target.WriteZeroes(ctx, off, n, flags) })
}

// Flush flushes, and counts as a request that may take long.
func (t *pulsingTarget) Flush(ctx context.Context) error {
	t.flushing.Add(1)
	defer t.flushing.Add(-1)
	return t.during(func() error { return t.Target.Flush(ctx) })
}
