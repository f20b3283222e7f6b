package copier

import (
	"context"
	"fmt"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"

	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"github.com/nasfleet/nasfleet/internal/exec/digest"
	"github.com/nasfleet/nasfleet/internal/exec/nbd"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// disk is a disk in memory, a Source and a Target.
type disk struct {
	extents []nbd.Extent // nil: all data
	least   int64        // block size; 0 is 1
	unit    int64        // what is written whole; 0 is 1
	cut     int64        // where a unit may end early
	fail    func(op string, off int64) error
	flushed atomic.Bool
	reads   atomic.Int64 // bytes

	mu   sync.Mutex
	data []byte
}

func (d *disk) failure(ctx context.Context, op string, off int64) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if d.fail == nil {
		return nil
	}
	return d.fail(op, off)
}

func (d *disk) Size() int64 { return int64(len(d.data)) }

func (d *disk) BlockSizes() (least, preferred, most int64) { return max(d.least, 1), 4096, 32 << 20 }

func (d *disk) ReadAt(ctx context.Context, p []byte, off int64) error {
	if err := d.failure(ctx, "read", off); err != nil {
		return err
	}
	d.reads.Add(int64(len(p)))
	d.mu.Lock()
	defer d.mu.Unlock()
	copy(p, d.data[off:off+int64(len(p))])
	return nil
}

// BlockStatus answers like a server that tells about a few extents at a time.
func (d *disk) BlockStatus(ctx context.Context, _ string, off, length int64) ([]nbd.Extent, error) {
	if err := d.failure(ctx, "status", off); err != nil {
		return nil, err
	}
	if d.extents == nil {
		return []nbd.Extent{{Offset: off, Length: length}}, nil
	}
	var list []nbd.Extent
	for _, e := range d.extents {
		start, end := max(e.Offset, off), min(e.Offset+e.Length, off+length)
		if start < end && len(list) < 3 {
			list = append(list, nbd.Extent{Offset: start, Length: end - start, Flags: e.Flags})
		}
	}
	return list, nil
}

func (d *disk) WriteAt(ctx context.Context, p []byte, off int64) error {
	if err := d.failure(ctx, "write", off); err != nil {
		return err
	}
	unit, end := max(d.unit, 1), off+int64(len(p))
	if off%unit != 0 || end%unit != 0 && end != d.cut {
		return fmt.Errorf("a write of %d bytes at %d breaks a unit of %d", len(p), off, unit)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	copy(d.data[off:end], p)
	return nil
}

func (d *disk) WriteZeroes(ctx context.Context, off, n int64, _ nbd.ZeroFlags) error {
	if err := d.failure(ctx, "zero", off); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	clear(d.data[off : off+n])
	return nil
}

func (d *disk) Flush(ctx context.Context) error {
	d.flushed.Store(true)
	return d.failure(ctx, "flush", 0)
}

func must(t rapid.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// digests creates a digests file, and opens it again when the copy is done.
func digests(t testing.TB, size int64) (w *digest.Writer, reopen func() *digest.Reader) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "d")
	w, err := digest.Create(path, size, nil)
	must(t, err)
	return w, func() *digest.Reader {
		t.Helper()
		must(t, w.Close())
		r, err := digest.Open(path, nil)
		must(t, err)
		t.Cleanup(func() { must(t, r.Close()) })
		return r
	}
}
