package copier

import (
	"context"

	"golang.org/x/sync/errgroup"

	"github.com/nasfleet/nasfleet/internal/exec/bounded"
	"github.com/nasfleet/nasfleet/internal/exec/nbd"
)

// blocksAWindow is how many blocks a window of block status has.
const blocksAWindow = window / blockSize

// changeMap is what is known of the blocks of a window, by cluster.
type changeMap struct {
	off, size   int64 // of the window
	dirty, data [blocksAWindow]clusters
}

// planChanges takes v through what has changed: blocks of which some clusters lack, and ranges of
// whole blocks that read as zeroes now. What has not changed is not visited. A change makes its
// whole unit one.
func planChanges(ctx context.Context, src Source, changes Changes, unit int64, v visitor) error {
	g, ctx := errgroup.WithContext(ctx)
	windows := make(chan *changeMap, windowsAhead)
	g.Go(func() error {
		defer close(windows)
		return bounded.Try(func() error { return fetchChanges(ctx, src, changes, unit, windows) })
	})
	g.Go(func() error {
		for m := range windows {
			if err := bounded.Try(func() error { return m.visit(v) }); err != nil {
				return err
			}
		}
		return nil
	})
	return g.Wait()
}

// fetchChanges asks for the changes of the whole disk, and for the status of what has some.
func fetchChanges(ctx context.Context, src Source, changes Changes, unit int64, windows chan<- *changeMap) error {
	size := src.Size()
	for off := int64(0); off < size; off += window {
		m := &changeMap{off: off, size: min(window, size-off)}
		changed := false
		err := m.extents(ctx, changes, func(e nbd.Extent) {
			if e.Flags&nbd.FlagDirty != 0 {
				changed = true
				m.mark(&m.dirty, e)
			}
		})
		if err != nil {
			return err
		}
		if !changed {
			continue
		}
		for i := range m.dirty {
			m.dirty[i] = m.dirty[i].grow(max(unit, clusterSize))
		}
		allocation := func(ctx context.Context, off, length int64) ([]nbd.Extent, error) {
			return src.BlockStatus(ctx, nbd.BaseAllocation, off, length)
		}
		err = m.extents(ctx, allocation, func(e nbd.Extent) {
			if e.Flags&nbd.FlagZero == 0 {
				m.mark(&m.data, e)
			}
		})
		if err != nil {
			return err
		}
		select {
		case windows <- m:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return nil
}

// extents calls each for the extents of the window.
func (m *changeMap) extents(ctx context.Context, status Changes, each func(nbd.Extent)) error {
	for off, end := m.off, m.off+m.size; off < end; {
		list, err := status(ctx, off, end-off)
		if err != nil {
			return sourceError(err, off)
		}
		for _, e := range list {
			each(e)
			off = e.Offset + e.Length
		}
	}
	return nil
}

// mark adds the clusters that an extent touches, within the window, to a set.
func (m *changeMap) mark(set *[blocksAWindow]clusters, e nbd.Extent) {
	start, end := max(e.Offset-m.off, 0), min(e.Offset+e.Length-m.off, m.size)
	for start < end {
		i := start / blockSize
		stop := min(end, (i+1)*blockSize)
		first, last := start%blockSize/clusterSize, (stop-1)%blockSize/clusterSize
		set[i] |= (1<<(last+1) - 1) &^ (1<<first - 1)
		start = stop
	}
}

// visit takes v through the window. Whole blocks of zeroes that follow each other are one range.
func (m *changeMap) visit(v visitor) error {
	var hole block
	flush := func() error {
		off, n := hole.off, hole.size
		hole = block{}
		if n == 0 {
			return nil
		}
		return v.hole(off, n)
	}
	for i, dirty := range m.dirty {
		off := m.off + int64(i)*blockSize
		if dirty == 0 || off >= m.off+m.size {
			continue
		}
		b := block{off: off, size: min(blockSize, m.off+m.size-off)}
		whole := wholeBlock(b.size)
		b.data, b.lacks = m.data[i]&dirty&whole, whole&^dirty
		if b.data == 0 && b.lacks == 0 {
			if hole.size == 0 || hole.off+hole.size != off {
				if err := flush(); err != nil {
					return err
				}
				hole.off = off
			}
			hole.size += b.size
			continue
		}
		if err := flush(); err != nil {
			return err
		}
		if err := v.data(b); err != nil {
			return err
		}
	}
	return flush()
}

// wholeBlock returns the clusters of a block of size bytes.
func wholeBlock(size int64) clusters {
	return clusters(1<<((size+clusterSize-1)/clusterSize) - 1)
}
