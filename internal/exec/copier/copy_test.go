package copier

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"sync/atomic"
	"syscall"
	"testing"

	"pgregory.net/rapid"

	"github.com/nasfleet/nasfleet/internal/exec/bounded"
	"github.com/nasfleet/nasfleet/internal/exec/digest"
	"github.com/nasfleet/nasfleet/internal/exec/nbd"
	"github.com/nasfleet/nasfleet/messages"
)

// drawDisk draws a disk of extents of any size: holes, zeroes, data, and data that is zeroes.
func drawDisk(t *rapid.T) *disk {
	size := rapid.Int64Range(0, 3*mib).Draw(t, "size")
	d := &disk{data: make([]byte, size), extents: []nbd.Extent{}}
	rng := rand.NewChaCha8([32]byte{rapid.Byte().Draw(t, "seed")})
	for off := int64(0); off < size; {
		unit := rapid.SampledFrom([]int64{1, 512, 4096, 64 << 10, mib}).Draw(t, "unit")
		n := min(unit*rapid.Int64Range(1, 20).Draw(t, "length"), size-off)
		e := nbd.Extent{Offset: off, Length: n}
		switch rapid.IntRange(0, 4).Draw(t, "kind") {
		case 0:
			e.Flags = nbd.FlagHole | nbd.FlagZero
		case 1:
			e.Flags = nbd.FlagZero
		case 2: // data that is zeroes
		case 3:
			e.Flags = nbd.FlagHole // of a backing file, say
			fallthrough
		default:
			_, _ = rng.Read(d.data[off : off+n])
		}
		d.extents = append(d.extents, e)
		off += n
	}
	return d
}

// dataClusters is the number of bytes in clusters that have data, by the extents.
func (d *disk) dataClusters() int64 {
	var n, end int64
	for _, e := range d.extents {
		if e.Flags&nbd.FlagZero != 0 {
			continue
		}
		start := max(end, e.Offset/clusterSize*clusterSize)
		end = min((e.Offset+e.Length+clusterSize-1)/clusterSize*clusterSize, d.Size())
		n += max(end-start, 0)
	}
	return n
}

// The target has the source's bytes, the digests are those of the content, progress adds up, and
// Verify agrees until a byte is flipped.
func TestCopyModel(t *testing.T) {
	dir := t.TempDir()
	rapid.Check(t, func(t *rapid.T) {
		src := drawDisk(t)
		rest := rapid.Int64Range(0, mib).Draw(t, "rest")
		dst := &disk{data: make([]byte, src.Size()+rest), least: rapid.SampledFrom([]int64{1, 512, clusterSize}).Draw(t, "least")}
		dst.data = dst.data[:dst.Size()/dst.least*dst.least]
		if dst.Size() < src.Size() {
			dst.data = append(dst.data, make([]byte, dst.least)...)
		}
		unit := rapid.SampledFrom([]int64{0, clusterSize, 4 * clusterSize, blockSize}).Draw(t, "unit")
		zeroHoles := rapid.Bool().Draw(t, "zero holes")
		if zeroHoles {
			_, _ = rand.NewChaCha8([32]byte{1}).Read(dst.data)
		}
		want := append(bytes.Clone(src.data), dst.data[src.Size():]...)
		padded := (src.Size() + dst.least - 1) / dst.least * dst.least
		clear(want[src.Size():padded])
		dst.unit, dst.cut = unit, padded
		dst.fail = aligned(t, src.Size())

		path := filepath.Join(dir, "d")
		defer func() { _ = os.Remove(path) }()
		w, err := digest.Create(path, src.Size(), nil)
		if err != nil {
			t.Fatal(err)
		}
		var last, total int64
		stats, err := Copy(context.Background(), src, dst, Options{
			Depth:     rapid.IntRange(0, 5).Draw(t, "depth"),
			Unit:      unit,
			Digests:   w,
			ZeroHoles: zeroHoles,
			Progress: func(d, of int64) {
				if d <= last || of < d {
					t.Errorf("progress from %d to %d of %d", last, d, of)
				}
				last, total = d, of
			},
		})
		if err := errors.Join(err, w.Close()); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(dst.data, want) {
			t.Error("the target has other bytes")
		}
		if n := src.dataClusters(); stats.DataBytes != n || last != n || total != n || src.reads.Load() != n {
			t.Errorf("%+v, progress %d of %d, %d bytes read; want %d", stats, last, total, src.reads.Load(), n)
		}
		if zeroHoles && stats.WrittenBytes+stats.ZeroBytes != padded {
			t.Errorf("%+v for %d bytes", stats, src.Size())
		}
		if !dst.flushed.Load() {
			t.Error("not flushed")
		}
		r, err := digest.Open(path, nil)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = r.Close() }()
		checkDigests(t, r, src.data, zeroHoles)

		dst.data, dst.fail = dst.data[:src.Size()], nil
		if rapid.Bool().Draw(t, "with extents") {
			dst.extents = src.extents
		}
		if _, err := Verify(context.Background(), dst, r, Options{}); err != nil {
			t.Errorf("verify: %v", err)
		}
		if src.Size() > 0 {
			checkFlip(t, dst, r, rapid.Int64Range(0, src.Size()-1).Draw(t, "flip"))
		}
	})
}

// aligned is a fault for writes that qcow2 could not compress.
func aligned(t *rapid.T, size int64) func(op string, off int64) error {
	return func(op string, off int64) error {
		if off%clusterSize != 0 || off > size {
			t.Errorf("%s at %d", op, off)
		}
		return nil
	}
}

func checkDigests(t *rapid.T, r *digest.Reader, data []byte, zeroHoles bool) {
	for i := int64(0); i*blockSize < int64(len(data)); i++ {
		block := data[i*blockSize : min((i+1)*blockSize, int64(len(data)))]
		if err := r.Check(context.Background(), i, block); err != nil {
			t.Error(err)
		}
		want := digest.Data
		if isZero(block) {
			want = digest.Absent
			if zeroHoles {
				want = digest.Zero
			}
		}
		if _, kind, err := r.Get(i); err != nil || kind != want {
			t.Errorf("record of block %d is of kind %d, want %d; %v", i, kind, want, err)
		}
	}
}

// checkFlip changes a byte and wants Verify and Copy to find its block.
func checkFlip(t *rapid.T, d *disk, r *digest.Reader, at int64) {
	d.extents = nil
	d.data[at] ^= 0x10
	defer func() { d.data[at] ^= 0x10 }()
	off := at - at%blockSize
	want := digest.Mismatch{Offset: off, Length: min(blockSize, d.Size()-off)}
	var m *digest.Mismatch
	if _, err := Verify(context.Background(), d, r, Options{}); !errors.As(err, &m) || *m != want {
		t.Errorf("verify after a flip at %d: %v", at, err)
	}
	target := &disk{data: make([]byte, d.Size())}
	if _, err := Copy(context.Background(), d, target, Options{Check: r}); !errors.As(err, &m) || *m != want {
		t.Errorf("copy after a flip at %d: %v", at, err)
	}
	if !isZero(target.data[off : off+want.Length]) {
		t.Error("the block that is wrong was written")
	}
}

// A hole where the digests have data is a mismatch too, in any block.
func TestLostData(t *testing.T) {
	src := &disk{data: bytes.Repeat([]byte{1}, 70*mib)}
	w, reopen := digests(t, src.Size())
	for i := range int64(70) {
		if i == 66 {
			must(t, w.Put(i, w.Sum(src.data[:mib])))
		}
	}
	r := reopen()
	empty := &disk{data: make([]byte, 70*mib), extents: []nbd.Extent{{Length: 200 * mib, Flags: nbd.FlagZero}}}
	var m *digest.Mismatch
	if _, err := Verify(t.Context(), empty, r, Options{}); !errors.As(err, &m) || m.Offset != 66*mib {
		t.Errorf("verify: %v", err)
	}
	target := &disk{data: make([]byte, 70*mib)}
	if _, err := Copy(t.Context(), empty, target, Options{Check: r}); !errors.As(err, &m) || m.Offset != 66*mib {
		t.Errorf("copy: %v", err)
	}
}

func TestErrors(t *testing.T) {
	const size = 4 * mib
	enospc := &nbd.Error{Op: "write", Offset: 2 * mib, Errno: syscall.ENOSPC}
	for name, test := range map[string]struct {
		op   string
		err  error
		want messages.Code
		text string
	}{
		"read":        {"read", &nbd.Error{Op: "read", Errno: syscall.EIO}, messages.CodeSourceReadFailed, "read at offset 2097152"},
		"source gone": {"read", nbd.ErrDisconnected, messages.CodeSourceReadFailed, "read at offset 2097152"},
		"status":      {"status", nbd.ErrDisconnected, messages.CodeSourceReadFailed, "read at offset 0"},
		"write":       {"write", &nbd.Error{Op: "write", Errno: syscall.EIO}, messages.CodeTargetWriteFailed, "write at offset 2097152"},
		"full":        {"write", enospc, messages.CodeTargetFull, "write at offset 2097152"},
		"quota":       {"write", syscall.EDQUOT, messages.CodeTargetFull, "write at offset 2097152"},
		"zero":        {"zero", nbd.ErrDisconnected, messages.CodeTargetWriteFailed, "write at offset 1048576"},
		"flush":       {"flush", enospc, messages.CodeTargetFull, "write at offset"},
	} {
		t.Run(name, func(t *testing.T) {
			fail := func(op string, off int64) error {
				if op == test.op && (op == "status" || op == "zero" || op == "flush" || off == 2*mib) {
					return test.err
				}
				return nil
			}
			src := &disk{data: bytes.Repeat([]byte{1}, size), fail: fail, extents: []nbd.Extent{
				{Offset: 0, Length: mib}, {Offset: mib, Length: mib, Flags: nbd.FlagZero}, {Offset: 2 * mib, Length: 2 * mib}}}
			dst := &disk{data: make([]byte, size), fail: fail}
			_, err := Copy(t.Context(), src, dst, Options{ZeroHoles: true})
			if messages.CodeOf(err) != test.want || !errors.Is(err, test.err) || !bytes.Contains([]byte(err.Error()), []byte(test.text)) {
				t.Errorf("got %v", err)
			}
			if test.op != "flush" && dst.flushed.Load() {
				t.Error("flushed after a failure")
			}
		})
	}
}

// A panic in one of a copy's goroutines is an error of the copy: nothing above them could catch it.
func TestAPanicEndsTheCopy(t *testing.T) {
	for _, at := range []string{"status", "read", "write", "zero"} {
		boom := func(op string, _ int64) error {
			if op == at {
				panic("boom")
			}
			return nil
		}
		src := &disk{data: bytes.Repeat([]byte{1}, 4*mib), fail: boom, extents: []nbd.Extent{
			{Length: mib}, {Offset: mib, Length: mib, Flags: nbd.FlagZero}, {Offset: 2 * mib, Length: 2 * mib}}}
		dst := &disk{data: make([]byte, 4*mib), fail: boom}
		changes := func(_ context.Context, off, length int64) ([]nbd.Extent, error) {
			return []nbd.Extent{{Offset: off, Length: length, Flags: nbd.FlagDirty}}, nil
		}
		for _, o := range []Options{{ZeroHoles: true}, {Changes: changes}} {
			var p *bounded.Panic
			if _, err := Copy(t.Context(), src, dst, o); !errors.As(err, &p) || messages.CodeOf(err) != messages.CodeInternal {
				t.Errorf("%s: %v", at, err)
			}
		}
	}
}

func TestWrongSizes(t *testing.T) {
	src := &disk{data: make([]byte, 2*mib)}
	same, small := &disk{data: make([]byte, 2*mib)}, &disk{data: make([]byte, mib)}
	w, reopen := digests(t, mib)
	if _, err := Copy(t.Context(), src, small, Options{}); messages.CodeOf(err) != messages.CodeTargetTooSmall {
		t.Errorf("small target: %v", err)
	}
	if _, err := Copy(t.Context(), src, same, Options{Digests: w}); messages.CodeOf(err) != messages.CodeInternal {
		t.Errorf("digests of another disk: %v", err)
	}
	r := reopen()
	if _, err := Copy(t.Context(), src, same, Options{Check: r}); messages.CodeOf(err) != messages.CodeBackupCorrupt {
		t.Errorf("digests of another disk: %v", err)
	}
	if _, err := Verify(t.Context(), src, r, Options{}); messages.CodeOf(err) != messages.CodeBackupCorrupt {
		t.Errorf("digests of another disk: %v", err)
	}
}

// The end of the context is what counts, wherever the copy is: reading, writing or waiting.
func TestCancel(t *testing.T) {
	cause := errors.New("enough")
	for _, where := range []string{"status", "read", "write", "zero", "flush", "limiter"} {
		t.Run(where, func(t *testing.T) {
			ctx, cancel := context.WithCancelCause(t.Context())
			fail := func(op string, _ int64) error {
				if op != where {
					return nil
				}
				cancel(cause)
				return syscall.EIO
			}
			src := &disk{data: bytes.Repeat([]byte{1}, 4*mib), fail: fail, extents: []nbd.Extent{
				{Offset: 0, Length: 2 * mib}, {Offset: 2 * mib, Length: 2 * mib, Flags: nbd.FlagZero}}}
			o := Options{ZeroHoles: true}
			if where == "limiter" {
				o.Limiter = NewLimiter(1)
				o.Progress = func(_, _ int64) { cancel(cause) }
				o.Total = 1
			}
			_, err := Copy(ctx, src, &disk{data: make([]byte, 4*mib), fail: fail}, o)
			if !errors.Is(err, cause) || messages.CodeOf(err) != messages.CodeInternal {
				t.Errorf("got %v", err)
			}
		})
	}
}

// pattern is a huge disk without memory.
type pattern struct{ size int64 }

func (p pattern) Size() int64                                                    { return p.size }
func (pattern) BlockSizes() (least, preferred, most int64)                       { return 1, 1, mib }
func (pattern) WriteAt(context.Context, []byte, int64) error                     { return nil }
func (pattern) WriteZeroes(_ context.Context, _, _ int64, _ nbd.ZeroFlags) error { return nil }
func (pattern) Flush(context.Context) error                                      { return nil }

func (pattern) ReadAt(_ context.Context, p []byte, off int64) error {
	p[0], p[len(p)-1] = byte(off>>20), 1
	return nil
}

// BlockStatus has some data in each GiB.
func (pattern) BlockStatus(_ context.Context, _ string, off, length int64) ([]nbd.Extent, error) {
	if off%(1<<30) != 0 {
		return []nbd.Extent{{Offset: off, Length: length, Flags: nbd.FlagZero}}, nil
	}
	return []nbd.Extent{{Offset: off, Length: mib}, {Offset: off + mib, Length: length - mib, Flags: nbd.FlagZero}}, nil
}

// Copying does not take memory by the size of the disk.
func TestMemory(t *testing.T) {
	p := pattern{128 << 30}
	w, reopen := digests(t, p.size)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	if _, err := Copy(t.Context(), p, p, Options{Digests: w, ZeroHoles: true, Progress: func(_, _ int64) {}}); err != nil {
		t.Fatal(err)
	}
	if _, err := Verify(t.Context(), p, reopen(), Options{}); err != nil {
		t.Fatal(err)
	}
	runtime.ReadMemStats(&after)
	if used := after.TotalAlloc - before.TotalAlloc; used > 2*(DefaultDepth+8)*mib {
		t.Errorf("%d MiB were allocated", used/mib)
	}
}

func TestScan(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		d := drawDisk(t)
		if n, err := Scan(context.Background(), d); err != nil || n != d.dataClusters() {
			t.Errorf("got %d, %v; want %d", n, err, d.dataClusters())
		}
	})
	broken := &disk{data: make([]byte, mib), fail: func(string, int64) error { return syscall.EIO }}
	if _, err := Scan(t.Context(), broken); messages.CodeOf(err) != messages.CodeSourceReadFailed {
		t.Errorf("got %v", err)
	}
}

// The limit is on what is read, for holes cost nothing, and it is shared.
func TestLimitedCopy(t *testing.T) {
	var charged atomic.Int64
	src := pattern{64 << 30} // 64 MiB of data
	l := NewLimiter(200)
	progress := func(done, total int64) { charged.Store(total) }
	if _, err := Copy(t.Context(), src, src, Options{Limiter: l, Progress: progress}); err != nil {
		t.Fatal(err)
	}
	if charged.Load() != 64*mib {
		t.Errorf("%d bytes", charged.Load())
	}
}

func BenchmarkCopyMemory(b *testing.B) {
	for _, sum := range []bool{false, true} {
		b.Run(fmt.Sprintf("digests=%t", sum), func(b *testing.B) {
			src, dst := &disk{data: bytes.Repeat([]byte{1, 2, 3, 4}, 16*mib)}, &disk{data: make([]byte, 64*mib)}
			o := Options{}
			if sum {
				o.Digests, _ = digests(b, src.Size())
			}
			b.SetBytes(src.Size())
			b.ReportAllocs()
			for b.Loop() {
				if _, err := Copy(context.Background(), src, dst, o); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
