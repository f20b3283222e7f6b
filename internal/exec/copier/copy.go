package copier

import (
	"bytes"
	"context"

	"golang.org/x/sync/errgroup"

	"github.com/nasfleet/nasfleet/internal/exec/bounded"
	"github.com/nasfleet/nasfleet/internal/exec/digest"
	"github.com/nasfleet/nasfleet/internal/exec/nbd"
)

const (
	// readSize is the most that is read by one request, in bytes. QEMU takes a buffer for each
	// request, and larger ones come fresh from the kernel every time.
	readSize = 512 << 10
	// zeroSize is the most that is zeroed by one request, in bytes: a server that must write the
	// zeroes out shall not be deaf for long.
	zeroSize = 64 << 20
)

// Copy copies src to dst and flushes dst. A target larger than the source keeps its rest, except
// that the source's end is filled with zeroes up to a multiple of the target's least block: 64
// KiB for QEMU's compress filter, which serves no disk of another size.
//
// Data is read in whole clusters of 64 KiB and written in whole units of the target. A unit that
// reads as zeroes is treated like a hole, whatever the source's block status says; and a block that
// is all zeroes gets no digest but the record Absent, or Zero with ZeroHoles.
//
// The error is the cause of ctx's end, a *digest.Mismatch, or a *messages.Error of the code
// source_read_failed, target_write_failed, target_full, target_too_small or backup_corrupt, with
// the offset and the *nbd.Error, or a *Stalled, in its chain.
func Copy(ctx context.Context, src Source, dst Target, o Options) (Stats, error) {
	j := &job{Options: o, src: src, dst: dst}
	err := j.watchStall(ctx, j.run)
	return j.stats, atEdge(ctx, err)
}

// Verify reads what src holds and compares it with its digests: blocks with a digest must have
// that content, all others must read as zeroes. Ranges that src's block status calls zeroes are
// not read. Of o it uses Limiter, Depth, Stall, Total and Progress; the error is as for Copy.
func Verify(ctx context.Context, src Source, check Checker, o Options) (Stats, error) {
	j := &job{Options: o, src: src}
	j.Digests, j.Changes, j.Check = nil, nil, check
	err := j.watchStall(ctx, j.run)
	return j.stats, atEdge(ctx, err)
}

// run plans the work and hands it to Depth workers.
func (j *job) run(ctx context.Context) error {
	if err := j.prepare(ctx); err != nil {
		return err
	}
	g, gctx := errgroup.WithContext(ctx)
	blocks := make(chan block)
	for range j.Depth {
		g.Go(func() error { return bounded.Try(func() error { return j.work(gctx, blocks) }) })
	}
	g.Go(func() error {
		defer close(blocks)
		return j.plan(gctx, visitor{
			data: func(b block) error { return j.hand(gctx, b, blocks) },
			hole: func(off, n int64) error { return j.handHole(gctx, off, n, blocks) },
		})
	})
	if err := g.Wait(); err != nil {
		return err
	}
	if j.dst == nil {
		return nil
	}
	if err := j.dst.Flush(ctx); err != nil {
		return targetError(err, j.src.Size())
	}
	return nil
}

// hand gives a block to a worker when the limiter allows it.
func (j *job) hand(ctx context.Context, b block, blocks chan<- block) error {
	if b.data != 0 {
		if err := j.Limiter.Wait(ctx, b.dataBytes()); err != nil {
			return err
		}
	}
	select {
	case blocks <- b:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// handHole gives out a range of zeroes in pieces of many blocks, if there is anything to do.
func (j *job) handHole(ctx context.Context, off, n int64, blocks chan<- block) error {
	if j.Check == nil && !j.ZeroHoles {
		return nil
	}
	for end := off + n; off < end; off += zeroSize {
		if err := j.hand(ctx, block{off: off, size: min(zeroSize, end-off)}, blocks); err != nil {
			return err
		}
	}
	return nil
}

// work does blocks until there are no more.
func (j *job) work(ctx context.Context, blocks <-chan block) error {
	var buf []byte
	for b := range blocks {
		if b.data == 0 && b.lacks == 0 {
			if err := j.hole(ctx, b); err != nil {
				return err
			}
			continue
		}
		if buf == nil {
			buf = make([]byte, blockSize)
		}
		if err := j.block(ctx, b, buf); err != nil {
			return err
		}
	}
	return nil
}

// block copies, or compares, one block. The buffer has room for a whole one.
func (j *job) block(ctx context.Context, b block, buf []byte) error {
	content := buf[:b.size]
	if err := j.read(ctx, b, content); err != nil {
		return err
	}
	if j.Check != nil {
		if err := j.Check.Check(ctx, b.index(), content); err != nil {
			return err
		}
	}
	done := Stats{DataBytes: b.dataBytes()}
	if j.dst != nil {
		b.data &^= zeroClusters(b, content)
		if err := j.record(b, content); err != nil {
			return err
		}
		b = j.pad(b)
		clear(buf[len(content):b.size])
		if err := j.write(ctx, b, buf, &done); err != nil {
			return err
		}
	}
	j.count(done)
	return nil
}

// pad extends what ends with the source to what is to be written.
func (j *job) pad(b block) block {
	if b.off+b.size == j.src.Size() {
		b.size = j.end - b.off
	}
	return b
}

// read fills buf with the block's content.
func (j *job) read(ctx context.Context, b block, buf []byte) error {
	for _, s := range b.spans(^b.data) {
		clear(buf[s.start:s.end])
	}
	for _, s := range b.spans(b.data) {
		for start := s.start; start < s.end; start += readSize {
			piece := buf[start:min(start+readSize, s.end)]
			if err := j.src.ReadAt(ctx, piece, b.off+start); err != nil {
				return sourceError(err, b.off+start)
			}
		}
	}
	return nil
}

// record stores the block's digest, or those of a range of zeroes: exactly what a reader of the
// target will see.
func (j *job) record(b block, buf []byte) error {
	switch {
	case j.Digests == nil:
		return nil
	case b.lacks != 0:
		return j.Digests.Put(b.index(), j.Digests.SumPart(buf, digest.Part(^b.lacks)))
	case b.data != 0:
		return j.Digests.Put(b.index(), j.Digests.Sum(buf))
	case j.ZeroHoles:
		return j.Digests.PutZeroes(b.index(), (b.size+blockSize-1)/blockSize)
	}
	return nil
}

func (j *job) write(ctx context.Context, b block, buf []byte, done *Stats) error {
	b.data = b.data.grow(j.Unit)
	for _, s := range b.spans(b.data) {
		if err := j.dst.WriteAt(ctx, buf[s.start:s.end], b.off+s.start); err != nil {
			return targetError(err, b.off+s.start)
		}
		done.WrittenBytes += s.end - s.start
	}
	if !j.ZeroHoles {
		return nil
	}
	// A unit that lacks does so to its end, which may lie beyond the source's.
	for _, s := range b.spans(^b.data &^ b.lacks.grow(j.Unit)) {
		if err := j.dst.WriteZeroes(ctx, b.off+s.start, s.end-s.start, nbd.MayPunch); err != nil {
			return targetError(err, b.off+s.start)
		}
		done.ZeroBytes += s.end - s.start
	}
	return nil
}

// hole deals with a range of whole blocks that read as zeroes.
func (j *job) hole(ctx context.Context, b block) error {
	if j.Check != nil {
		for i := b.index(); i*blockSize < b.off+b.size; i++ {
			if err := j.Check.Check(ctx, i, nil); err != nil {
				return err
			}
		}
	}
	if err := j.record(b, nil); err != nil {
		return err
	}
	if j.dst == nil || !j.ZeroHoles {
		return nil
	}
	b = j.pad(b)
	if err := j.dst.WriteZeroes(ctx, b.off, b.size, nbd.MayPunch); err != nil {
		return targetError(err, b.off)
	}
	j.count(Stats{ZeroBytes: b.size})
	return nil
}

// zeroClusters returns the clusters of b with data that are zeroes.
func zeroClusters(b block, buf []byte) clusters {
	var zero clusters
	for i := 0; i*clusterSize < len(buf); i++ {
		c := buf[i*clusterSize : min((i+1)*clusterSize, len(buf))]
		if b.data&(1<<i) != 0 && isZero(c) {
			zero |= 1 << i
		}
	}
	return zero
}

// isZero says whether b is all zero: its first byte is, and each byte equals the one before.
func isZero(b []byte) bool {
	return b[0] == 0 && bytes.Equal(b[1:], b[:len(b)-1])
}
