package copier

import (
	"context"
	"math/bits"

	"golang.org/x/sync/errgroup"

	"github.com/nasfleet/nasfleet/internal/exec/bounded"
	"github.com/nasfleet/nasfleet/internal/exec/digest"
	"github.com/nasfleet/nasfleet/internal/exec/nbd"
)

const (
	// blockSize is the unit of work, in bytes.
	blockSize = digest.BlockSize
	// clusterSize is the unit of reading, and of writing unless the target has a larger one, in
	// bytes.
	clusterSize = 64 << 10
	// window is how much block status is asked for at a time, in bytes.
	window = 256 << 20
	// windowsAhead is how many answers are fetched before they are needed.
	windowsAhead = 2
)

// block is an aligned block of the disk, short at the disk's end, with some data in it.
type block struct {
	off  int64
	size int64
	data clusters // the rest reads as zeroes
	// lacks are the clusters that are not to be copied; none unless changes alone are.
	lacks clusters
}

// clusters is a set of the clusters of a block: bit i is the one at i*clusterSize.
type clusters uint16

// span is a range in a block, in bytes.
type span struct{ start, end int64 }

func (b block) index() int64 { return b.off / blockSize }

// grow adds to each cluster of a set the others of its unit, in bytes: clusterSize times a power of
// two, at most blockSize.
func (c clusters) grow(unit int64) clusters {
	n := unit / clusterSize
	for mask := clusters(1<<n - 1); mask != 0; mask <<= n {
		if c&mask != 0 {
			c |= mask
		}
	}
	return c
}

// spans returns the runs of clusters in set, in order, within the block.
func (b block) spans(set clusters) []span {
	var list []span
	for set != 0 {
		first := bits.TrailingZeros16(uint16(set))
		n := bits.TrailingZeros16(^uint16(set >> first))
		set &^= (1<<n - 1) << first
		start := int64(first) * clusterSize
		if start >= b.size {
			break
		}
		list = append(list, span{start, min(start+int64(n)*clusterSize, b.size)})
	}
	return list
}

// dataBytes returns how many bytes of the block are to be read.
func (b block) dataBytes() int64 {
	var n int64
	for _, s := range b.spans(b.data) {
		n += s.end - s.start
	}
	return n
}

// visitor gets the parts of a disk in order: each block with data, and the ranges between them,
// which are whole blocks that read as zeroes.
type visitor struct {
	data func(b block) error
	hole func(off, n int64) error
}

// plan takes v through the disk. Block status is fetched ahead of the visits.
func plan(ctx context.Context, src Source, v visitor) error {
	g, ctx := errgroup.WithContext(ctx)
	windows := make(chan []nbd.Extent, windowsAhead)
	g.Go(func() error {
		defer close(windows)
		return bounded.Try(func() error { return fetch(ctx, src, windows) })
	})
	g.Go(func() error { return bounded.Try(func() error { return visit(v, src.Size(), windows) }) })
	return g.Wait()
}

// visit takes v through what was fetched.
func visit(v visitor, size int64, windows <-chan []nbd.Extent) error {
	p := planner{visitor: v, size: size}
	for list := range windows {
		for _, e := range list {
			if err := p.extent(e); err != nil {
				return err
			}
		}
	}
	return p.end()
}

// fetch asks for the status of the whole disk.
func fetch(ctx context.Context, src Source, windows chan<- []nbd.Extent) error {
	size := src.Size()
	for off := int64(0); off < size; {
		list, err := src.BlockStatus(ctx, nbd.BaseAllocation, off, min(window, size-off))
		if err != nil {
			return sourceError(err, off)
		}
		last := list[len(list)-1]
		off = last.Offset + last.Length
		select {
		case windows <- list:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return nil
}

// planner turns extents into blocks.
type planner struct {
	visitor
	size  int64
	known int64 // where the next extent begins
	done  int64 // where the next visit begins
	block block // being gathered, if it has data
}

// extent takes the next extent of the disk. One that is a hole and not known to be zero may have
// data in it: a backing file's, say.
func (p *planner) extent(e nbd.Extent) error {
	start, end := e.Offset, e.Offset+e.Length
	p.known = end
	if e.Flags&nbd.FlagZero != 0 {
		return nil
	}
	for start < end {
		off := start - start%blockSize
		if off != p.block.off || p.block.data == 0 {
			if err := p.begin(off); err != nil {
				return err
			}
		}
		stop := min(end, off+blockSize)
		first, last := (start-off)/clusterSize, (stop-off-1)/clusterSize
		p.block.data |= (1<<(last+1) - 1) &^ (1<<first - 1)
		start = stop
	}
	return nil
}

// begin ends the block before and begins the one at off.
func (p *planner) begin(off int64) error {
	if err := p.flush(off); err != nil {
		return err
	}
	p.block = block{off: off, size: min(blockSize, p.size-off)}
	return nil
}

// flush visits everything before next.
func (p *planner) flush(next int64) error {
	if p.block.data != 0 {
		if err := p.data(p.block); err != nil {
			return err
		}
		p.done = p.block.off + p.block.size
		p.block = block{}
	}
	if next == p.done {
		return nil
	}
	off := p.done
	p.done = next
	return p.hole(off, next-off)
}

// end visits the rest of the disk, unless fetching its status has failed.
func (p *planner) end() error {
	if p.known < p.size {
		return nil
	}
	return p.flush(p.size)
}
