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

// planChanges takes v through what has changed, by changes and by more: blocks of which some clusters
// lack, and ranges of whole blocks that read as zeroes now. What has not changed is not visited. A
// change makes its whole unit one. More is in order.
func planChanges(ctx context.Context, src Source, changes Changes, more []nbd.Extent, unit int64, v visitor) error {
	g, ctx := errgroup.WithContext(ctx)
	windows := make(chan *changeMap, windowsAhead)
	g.Go(func() error {
		defer close(windows)
		return bounded.Try(func() error { return fetchChanges(ctx, src, changes, more, unit, windows) })
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
func fetchChanges(ctx context.Context, src Source, changes Changes, more []nbd.Extent, unit int64, windows chan<- *changeMap) error {
	size := src.Size()
	for off := int64(0); off < size; off += window {
		m := &changeMap{off: off, size: min(window, size-off)}
		changed, err := m.fetchDirty(ctx, changes)
		if err != nil {
			return err
		}
		for len(more) > 0 && more[0].Offset < off+m.size {
			m.mark(&m.dirty, more[0])
			changed = true
			if more[0].Offset+more[0].Length > off+m.size {
				break // the rest is in the next
			}
			more = more[1:]
		}
		if !changed {
			continue
		}
		for i := range m.dirty {
			m.dirty[i] = m.dirty[i].grow(max(unit, clusterSize))
		}
		if err := m.fetchData(ctx, src); err != nil {
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

// fetchDirty asks what has changed in the window, and says whether anything has.
func (m *changeMap) fetchDirty(ctx context.Context, changes Changes) (changed bool, err error) {
	err = m.extents(ctx, changes, func(e nbd.Extent) {
		if e.Flags&nbd.FlagDirty != 0 {
			changed = true
			m.mark(&m.dirty, e)
		}
	})
	return changed, err
}

// fetchData asks what of the window is not known to be zeroes.
func (m *changeMap) fetchData(ctx context.Context, src Source) error {
	allocation := func(ctx context.Context, off, length int64) ([]nbd.Extent, error) {
		return src.BlockStatus(ctx, nbd.BaseAllocation, off, length)
	}
	return m.extents(ctx, allocation, func(e nbd.Extent) {
		if e.Flags&nbd.FlagZero == 0 {
			m.mark(&m.data, e)
		}
	})
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
