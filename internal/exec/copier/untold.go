package copier

import (
	"context"
	"slices"

	"github.com/nasfleet/nasfleet/internal/exec/nbd"
)

// Below is what a target with changes alone is laid on; a digest.Chain is one. Its methods are called from
// many goroutines.
type Below interface {
	// Same says whether a block of digest.BlockSize is known to have this content there; a nil block stands
	// for zeroes.
	Same(ctx context.Context, index int64, block []byte) (bool, error)
}

// doubtful is how much of the disk below its tail is compared, in bytes: the largest cluster of a qcow2.
const doubtful = 2 << 20

// untold finds the blocks that may have changed although no bit of the dirty bitmap says so.
//
// QEMU cuts a bitmap with its disk. Of a disk that becomes smaller and then as large as it was, the part that
// was cut off reads as zeroes, and its bits are clean (whether the VM runs or qemu-img does it, and whatever
// lies below the image); what is written there later is dirty as usual. So from the cluster after the cut to
// the disk's end all is dirty, or a hole, or the zeroes around what was written to a cluster larger than the
// bitmap's grains. That is the disk's tail, which is looked for from its end on, and of which nothing is
// taken for unchanged unless the digests of the backups below say that it is.
//
// The cut's own cluster keeps its data. Yet what lies behind the cut is zeroed without a bit where a longer
// backing file would shine through, and where clusters are larger than the grains it keeps data whose bits are
// gone. So the blocks that such a cluster may reach into, of those below the tail, are compared as well.
//
// A disk that was not cut costs the block status of its tail, reading three blocks, and the digests of the tail: 16
// bytes for each MiB and backup. A block that cannot be told to be as it was is copied whole, and can be next time.
//
// What is not found: of a disk with clusters of more than 64 KiB that is cut twice between two backups, the
// second time within a cluster that was written since the first, what the first cut took before that cluster.
func (j *job) untold(ctx context.Context) ([]nbd.Extent, error) {
	w := tailWalk{job: j, left: -1}
	size := j.src.Size()
	for off := (size - 1) / window * window; off >= 0 && w.left != 0; off -= window {
		m := &changeMap{off: off, size: min(window, size-off)}
		if _, err := m.fetchDirty(ctx, j.Changes); err != nil {
			return nil, err
		}
		if err := m.fetchData(ctx, j.src); err != nil {
			return nil, err
		}
		if err := w.window(ctx, m); err != nil {
			return nil, err
		}
	}
	slices.Reverse(w.found)
	return w.found, nil
}

// tailWalk goes back through a disk, block by block.
type tailWalk struct {
	*job
	// left is how many blocks are still to be looked at; negative within the tail.
	left int
	buf  []byte
	// found are ranges of whole blocks, the last of the disk first.
	found []nbd.Extent
}

// window looks at the blocks of a window, the last first.
func (w *tailWalk) window(ctx context.Context, m *changeMap) error {
	for i := (m.size - 1) / blockSize; i >= 0 && w.left != 0; i-- {
		off := m.off + i*blockSize
		b := block{off: off, size: min(blockSize, m.off+m.size-off)}
		b.data = m.data[i] &^ m.dirty[i]
		content, err := w.clean(ctx, b)
		if err != nil {
			return err
		}
		if err := w.compare(ctx, b, m.dirty[i], content); err != nil {
			return err
		}
		written := m.dirty[i]|m.dirty[i^1] != 0 // since the backup below, in what may be one cluster
		switch {
		case w.left > 0:
			w.left--
		case content != nil && (!written || !isZero(content)): // where the tail ends
			w.left = doubtful / blockSize
		}
	}
	return nil
}

// clean reads the data of a block that is not dirty; nil for none.
func (w *tailWalk) clean(ctx context.Context, b block) ([]byte, error) {
	if b.data == 0 {
		return nil, nil
	}
	if w.buf == nil {
		w.buf = make([]byte, blockSize)
	}
	if err := w.Limiter.Wait(ctx, b.dataBytes()); err != nil {
		return nil, err
	}
	content := w.buf[:b.size]
	return content, w.read(ctx, b, content)
}

// compare adds a block unless it is known to be unchanged. One that is dirty in part is copied in any case:
// whole, it is told by its digest the next time.
func (w *tailWalk) compare(ctx context.Context, b block, dirty clusters, content []byte) error {
	if dirty == wholeBlock(b.size) {
		return nil
	}
	if dirty == 0 {
		if same, err := w.Below.Same(ctx, b.index(), content); same || err != nil {
			return err
		}
	}
	if n := len(w.found); n > 0 && w.found[n-1].Offset == b.off+b.size {
		w.found[n-1].Offset, w.found[n-1].Length = b.off, w.found[n-1].Length+b.size
		return nil
	}
	w.found = append(w.found, nbd.Extent{Offset: b.off, Length: b.size})
	return nil
}
