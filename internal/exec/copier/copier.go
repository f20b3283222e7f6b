package copier

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"syscall"
	"time"

	"github.com/nasfleet/nasfleet/internal/exec/digest"
	"github.com/nasfleet/nasfleet/internal/exec/nbd"
	"github.com/nasfleet/nasfleet/messages"
)

// DefaultDepth is how many blocks are under way at a time. Each has a buffer of 1 MiB. It keeps a
// storage daemon's compression threads busy; with twice as many the blocks no longer fit into the
// processor's cache on their way, and a compressed backup takes a tenth longer.
const DefaultDepth = 8

// Source is a disk to read from; a *nbd.Conn with the context nbd.BaseAllocation is one. Its
// methods are called from many goroutines.
type Source interface {
	// Size returns the size in bytes.
	Size() int64
	ReadAt(ctx context.Context, p []byte, off int64) error
	BlockStatus(ctx context.Context, meta string, off, length int64) ([]nbd.Extent, error)
}

// Target is a disk to write to; a *nbd.Conn is one. Its methods are called from many goroutines.
type Target interface {
	// Size returns the size in bytes.
	Size() int64
	// BlockSizes returns what writes must be multiples of, in bytes, and two values more.
	BlockSizes() (least, preferred, most int64)
	WriteAt(ctx context.Context, p []byte, off int64) error
	WriteZeroes(ctx context.Context, off, n int64, flags nbd.ZeroFlags) error
	Flush(ctx context.Context) error
}

// Checker compares the content of blocks of digest.BlockSize with what it must be; a
// *digest.Reader is one. A nil block stands for zeroes. Its methods are called from many goroutines.
type Checker interface {
	// Size returns the size of the disk in bytes.
	Size() int64
	// Check returns a *digest.Mismatch for content that is another.
	Check(ctx context.Context, index int64, block []byte) error
}

// Changes tells which ranges have changed, by extents whose flags are nbd.FlagDirty there; for
// their order and number see nbd.Conn.BlockStatus.
type Changes func(ctx context.Context, off, length int64) ([]nbd.Extent, error)

// Options of Copy and Verify. The zero value copies a disk to an empty target.
type Options struct {
	// Limiter bounds the rate of reading; the disks of a job share it. Nil means no limit.
	Limiter *Limiter
	// Depth is how many blocks are under way at a time; 0 means DefaultDepth.
	Depth int
	// Stall is how long a side may leave all that it was asked unanswered, and ten times that for a flush;
	// 0 means for ever.
	Stall time.Duration
	// Unit is what the target takes whole, in bytes: the cluster size of a compressed qcow2. It is
	// a power of two of at most 1 MiB; 0 means 64 KiB, or the target's least block if that is more.
	Unit int64
	// Digests records the digest of each block that Copy copies. Its size is the source's.
	Digests *digest.Writer
	// Check is what Copy compares the source's content with, before it is written. Its size is
	// the source's.
	Check Checker
	// Changes makes Copy copy only what has changed: whole units of the target with a change in
	// them, what reads as zeroes in them as explicit zeroes. Nothing else of the target is touched,
	// and Digests says which pieces were.
	Changes Changes
	// Below is asked about the part of the disk in which Changes may have lost some; see untold. Nil
	// trusts them. The Limiter counts what is read for it, Stats and Progress do not.
	Below Below
	// ZeroHoles makes Copy write zeroes where the source reads as zeroes. Without it the target
	// must read as zeroes before the copy.
	ZeroHoles bool
	// Total is what Scan found, in bytes, for Progress. With 0 and a Progress, Copy and Verify
	// scan themselves before they begin.
	Total int64
	// Progress is called after each block with the bytes read so far and in total. It is never
	// called twice at a time, but from different goroutines.
	Progress func(done, total int64)
}

// Stats is what a copy has done, all in bytes. After an error it is what was done until then.
type Stats struct {
	// DataBytes were read from the source, in whole clusters of 64 KiB: what the Limiter counts.
	DataBytes int64
	// WrittenBytes were written to the target as data. Units that read as zeroes are not.
	WrittenBytes int64
	// ZeroBytes were written to the target as explicit zeroes.
	ZeroBytes int64
}

// Scan returns how many bytes Copy or Verify would read from src.
func Scan(ctx context.Context, src Source) (int64, error) {
	total, err := (&job{src: src}).scan(ctx)
	return total, atEdge(ctx, err)
}

func (j *job) scan(ctx context.Context) (total int64, err error) {
	err = j.plan(ctx, visitor{
		data: func(b block) error { total += b.dataBytes(); return nil },
		hole: func(_, _ int64) error { return nil },
	})
	return total, err
}

// plan takes v through what there is to do.
func (j *job) plan(ctx context.Context, v visitor) error {
	if j.Changes != nil {
		return planChanges(ctx, j.src, j.Changes, j.more, j.Unit, v)
	}
	return plan(ctx, j.src, v)
}

// job is what Copy and Verify have in common.
type job struct {
	Options
	src Source
	dst Target // nil: compare only
	end int64  // of what is written: the source's size, in the target's blocks
	// more is what has changed and Changes do not tell.
	more []nbd.Extent

	mu    sync.Mutex
	stats Stats
}

// prepare checks the sizes, and finds what has changed without a word and the total.
func (j *job) prepare(ctx context.Context) error {
	size := j.src.Size()
	if j.dst != nil {
		if j.dst.Size() < size {
			return messages.Errorf(messages.CodeTargetTooSmall, "the target has %d bytes, the source %d", j.dst.Size(), size)
		}
		least, _, _ := j.dst.BlockSizes()
		j.end = min((size+least-1)/least*least, j.dst.Size())
		j.Unit = max(j.Unit, least, clusterSize)
		if j.Unit > blockSize || j.Unit&(j.Unit-1) != 0 {
			return messages.Errorf(messages.CodeInternal, "the target wants %d bytes at a time", j.Unit)
		}
	}
	if j.Digests != nil && j.Digests.Size() != size {
		return messages.Errorf(messages.CodeInternal, "digests for a disk of %d bytes, the source has %d", j.Digests.Size(), size)
	}
	if j.Check != nil && j.Check.Size() != size {
		return messages.Errorf(messages.CodeBackupCorrupt, "the digests are those of a disk of %d bytes, this one has %d", j.Check.Size(), size)
	}
	var err error
	if j.Changes != nil {
		j.ZeroHoles = true
		if j.Below != nil {
			if j.more, err = j.untold(ctx); err != nil {
				return err
			}
		}
	}
	if j.Depth <= 0 {
		j.Depth = DefaultDepth
	}
	if j.Progress == nil || j.Total > 0 {
		return nil
	}
	j.Total, err = j.scan(ctx)
	return err
}

// count adds what was done and reports progress.
func (j *job) count(s Stats) {
	j.mu.Lock()
	defer j.mu.Unlock()
	j.stats.DataBytes += s.DataBytes
	j.stats.WrittenBytes += s.WrittenBytes
	j.stats.ZeroBytes += s.ZeroBytes
	if j.Progress != nil && s.DataBytes > 0 {
		j.Progress(j.stats.DataBytes, j.Total)
	}
}

// atEdge gives the end of ctx precedence over the errors that it has caused.
func atEdge(ctx context.Context, err error) error {
	if err != nil && ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return err
}

func sourceError(err error, off int64) error {
	return &messages.Error{Code: messages.CodeSourceReadFailed, Err: fmt.Errorf("read at offset %d: %w", off, err)}
}

func targetError(err error, off int64) error {
	code := messages.CodeTargetWriteFailed
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		code = messages.CodeTargetFull
	}
	return &messages.Error{Code: code, Err: fmt.Errorf("write at offset %d: %w", off, err)}
}
