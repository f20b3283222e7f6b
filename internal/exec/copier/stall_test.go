package copier

import (
	"bytes"
	"context"
	"errors"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nasfleet/nasfleet/messages"
)

// shortStall is far above what a request to a disk in memory takes, on a busy machine as well.
const shortStall = 2 * time.Second

// hangingTarget answers nothing of one kind of request until the copy is given up.
type hangingTarget struct {
	*disk
	op string
}

func (d hangingTarget) hang(ctx context.Context, op string) error {
	if op != d.op {
		return nil
	}
	<-ctx.Done()
	return context.Cause(ctx)
}

func (d hangingTarget) WriteAt(ctx context.Context, p []byte, off int64) error {
	if err := d.hang(ctx, "write"); err != nil {
		return err
	}
	return d.disk.WriteAt(ctx, p, off)
}

func (d hangingTarget) Flush(ctx context.Context) error {
	if err := d.hang(ctx, "flush"); err != nil {
		return err
	}
	return d.disk.Flush(ctx)
}

func (d hangingTarget) ReadAt(ctx context.Context, p []byte, off int64) error {
	if err := d.hang(ctx, "read"); err != nil {
		return err
	}
	return d.disk.ReadAt(ctx, p, off)
}

func data(mib int) *disk { return &disk{data: bytes.Repeat([]byte{7}, mib<<20)} }

func wantStalled(t *testing.T, err error, code messages.Code, target bool) {
	t.Helper()
	var s *Stalled
	if messages.CodeOf(err) != code || !errors.As(err, &s) || s.Target != target {
		t.Fatalf("want %s, target %t: %v", code, target, err)
	}
}

func TestAStalledSideEndsTheCopy(t *testing.T) {
	t.Parallel()
	for op, c := range map[string]struct {
		code   messages.Code
		target bool
		stall  time.Duration
	}{
		"write": {messages.CodeTargetWriteFailed, true, shortStall},
		"read":  {messages.CodeSourceReadFailed, false, shortStall},
		// A flush is given ten times as long.
		"flush": {messages.CodeTargetWriteFailed, true, shortStall / 10},
	} {
		t.Run(op, func(t *testing.T) {
			t.Parallel()
			began := time.Now()
			_, err := Copy(t.Context(), hangingTarget{data(40), op}, hangingTarget{data(40), op}, Options{Stall: c.stall})
			wantStalled(t, err, c.code, c.target)
			if took := time.Since(began); took < shortStall/2 {
				t.Errorf("given up after %s", took)
			}
		})
	}
	t.Run("verify", func(t *testing.T) {
		t.Parallel()
		w, reopen := digests(t, 4<<20)
		_, err := Copy(t.Context(), data(4), data(4), Options{Digests: w, Stall: shortStall})
		must(t, err)
		_, err = Verify(t.Context(), hangingTarget{data(4), "read"}, reopen(), Options{Stall: shortStall})
		wantStalled(t, err, messages.CodeSourceReadFailed, false)
	})
}

// A limiter that lets a block pass once in several stall timeouts is no stall of either side.
func TestALimitIsNoStall(t *testing.T) {
	t.Parallel()
	const stall = 500 * time.Millisecond
	_, err := Copy(t.Context(), data(3), data(3), Options{Limiter: NewLimiter(1), Stall: stall})
	must(t, err)
}

// slowSource takes several of the target's stall timeouts for a block, and answers in between.
type slowSource struct {
	*disk
	pause time.Duration
	reads atomic.Int64
}

func (d *slowSource) ReadAt(ctx context.Context, p []byte, off int64) error {
	d.reads.Add(1)
	select {
	case <-time.After(d.pause):
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	return d.disk.ReadAt(ctx, p, off)
}

// A source that hangs is never taken for a target that does, whatever the target has done before.
func TestASlowSourceIsNoStalledTarget(t *testing.T) {
	t.Parallel()
	src := &slowSource{disk: data(4), pause: time.Hour}
	dst := data(4)
	_, err := Copy(t.Context(), src, dst, Options{Stall: shortStall, Depth: 2})
	wantStalled(t, err, messages.CodeSourceReadFailed, false)

	// Slow but moving: each read takes half of the timeout, the whole copy many of them.
	src = &slowSource{disk: data(4), pause: shortStall / 4}
	_, err = Copy(t.Context(), src, dst, Options{Stall: shortStall / 2, Depth: 1})
	must(t, err)
	if src.reads.Load() < 4 {
		t.Errorf("%d reads", src.reads.Load())
	}
}

func TestPulse(t *testing.T) {
	var p pulse
	for range 5 * flushLooks {
		if p.look() {
			t.Fatal("an idle side has stalled")
		}
	}
	looks := func() (n int) {
		for n = 1; !p.look(); n++ {
		}
		return n
	}
	must(t, p.during(func() error {
		p.look() // sees that it moved before
		if n := looks(); n > stallLooks {
			t.Errorf("stalled after %d looks", n)
		}
		p.flushing.Add(1)
		if n := looks(); n < flushLooks/2 {
			t.Errorf("a flush has stalled after %d looks", n)
		}
		p.flushing.Add(-1)
		must(t, p.during(func() error { return nil })) // another request came back
		if p.look() {
			t.Error("a side that moves has stalled")
		}
		return nil
	}))
	if p.look() {
		t.Error("a side that is done has stalled")
	}
}
