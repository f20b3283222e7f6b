package copier

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/nasfleet/nasfleet/internal/exec/digest"
	"github.com/nasfleet/nasfleet/internal/exec/nbd"
	"github.com/nasfleet/nasfleet/messages"
)

// drawChanges draws which ranges of a disk have changed, as a bitmap of one granularity tells them.
func drawChanges(t *rapid.T, size int64) []nbd.Extent {
	grain := rapid.SampledFrom([]int64{512, 4096, 64 << 10, 256 << 10}).Draw(t, "grain")
	var list []nbd.Extent
	dirty := rapid.Bool().Draw(t, "first is dirty")
	for off := int64(0); off < size; dirty = !dirty {
		n := min(grain*rapid.Int64Range(1, 3*mib/grain).Draw(t, "run"), size-off)
		e := nbd.Extent{Offset: off, Length: n}
		if dirty {
			e.Flags = nbd.FlagDirty
		}
		list = append(list, e)
		off += n
	}
	return list
}

// Whole units with a change in them become the source's, nothing else is touched, nothing else is
// read, and the digests are those of exactly these pieces.
func TestChangesModel(t *testing.T) {
	dir := t.TempDir()
	rapid.Check(t, func(t *rapid.T) {
		src := drawDisk(t)
		unit := rapid.SampledFrom([]int64{clusterSize, 4 * clusterSize, blockSize}).Draw(t, "unit")
		changed := &disk{data: src.data, extents: drawChanges(t, src.Size())}
		dst := &disk{data: make([]byte, src.Size()), unit: unit, cut: src.Size()}
		_, _ = rand.NewChaCha8([32]byte{1}).Read(dst.data)
		want, parts, reads := applyChanges(src, changed.extents, dst.data, unit)

		path := filepath.Join(dir, "d")
		defer func() { _ = os.Remove(path) }()
		w, err := digest.Create(path, src.Size(), nil)
		if err != nil {
			t.Fatal(err)
		}
		var last, total int64
		stats, err := Copy(context.Background(), src, dst, Options{
			Depth: rapid.IntRange(0, 5).Draw(t, "depth"), Unit: unit, Digests: w,
			Changes: func(ctx context.Context, off, length int64) ([]nbd.Extent, error) {
				return changed.BlockStatus(ctx, "", off, length)
			},
			Progress: func(d, of int64) { last, total = d, of },
		})
		if err := errors.Join(err, w.Close()); err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(dst.data, want) {
			t.Error("the target has other bytes")
		}
		if stats.DataBytes != reads || last != reads || total != reads || src.reads.Load() != reads {
			t.Errorf("%+v, progress %d of %d, %d bytes read; want %d", stats, last, total, src.reads.Load(), reads)
		}
		r, err := digest.Open(path, nil)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = r.Close() }()
		checkParts(t, r, src.data, parts)
	})
}

// applyChanges says what a target becomes, which pieces are written, and how much is read for it.
func applyChanges(src *disk, changes []nbd.Extent, old []byte, unit int64) (want []byte, parts []digest.Part, reads int64) {
	size := src.Size()
	want, parts = bytes.Clone(old), make([]digest.Part, (size+blockSize-1)/blockSize)
	touches := func(list []nbd.Extent, start, end int64, yes func(nbd.Extent) bool) bool {
		return slices.ContainsFunc(list, func(e nbd.Extent) bool { return e.Offset < end && start < e.Offset+e.Length && yes(e) })
	}
	for start := int64(0); start < size; start += unit {
		end := min(start+unit, size)
		if !touches(changes, start, end, func(e nbd.Extent) bool { return e.Flags&nbd.FlagDirty != 0 }) {
			continue
		}
		copy(want[start:end], src.data[start:end])
		for at := start; at < end; at += clusterSize {
			stop := min(at+clusterSize, end)
			parts[at/blockSize] |= 1 << (at % blockSize / clusterSize)
			if touches(src.extents, at, stop, func(e nbd.Extent) bool { return e.Flags&nbd.FlagZero == 0 }) {
				reads += stop - at
			}
		}
	}
	return want, parts, reads
}

// checkParts compares the digests with the pieces that were copied, and with any other.
func checkParts(t *rapid.T, r *digest.Reader, data []byte, parts []digest.Part) {
	for i, part := range parts {
		block := bytes.Clone(data[i*blockSize : min((i+1)*blockSize, len(data))])
		for at := range block {
			if part&(1<<(at/clusterSize)) == 0 {
				block[at] = 0
			}
		}
		if err := r.CheckPart(int64(i), block, part); err != nil {
			t.Errorf("pieces %016b: %v", part, err)
		}
		for bit := range (len(block) + clusterSize - 1) / clusterSize {
			if r.CheckPart(int64(i), block, part^1<<bit) == nil {
				t.Errorf("pieces %016b pass for %016b", part^1<<bit, part)
			}
		}
	}
}

// A bitmap that cannot be read fails the copy: to take it for clean would lose data.
func TestChangesFail(t *testing.T) {
	src := &disk{data: bytes.Repeat([]byte{1}, 3*mib)}
	dst := &disk{data: make([]byte, 3*mib)}
	broken := func(context.Context, int64, int64) ([]nbd.Extent, error) { return nil, &nbd.Error{Op: "status"} }
	_, err := Copy(t.Context(), src, dst, Options{Changes: broken})
	if messages.CodeOf(err) != messages.CodeSourceReadFailed {
		t.Error(err)
	}
	src.fail = func(op string, _ int64) error {
		if op == "status" {
			return &nbd.Error{Op: op}
		}
		return nil
	}
	all := func(_ context.Context, off, length int64) ([]nbd.Extent, error) {
		return []nbd.Extent{{Offset: off, Length: length, Flags: nbd.FlagDirty}}, nil
	}
	if _, err = Copy(t.Context(), src, dst, Options{Changes: all}); messages.CodeOf(err) != messages.CodeSourceReadFailed {
		t.Error(err)
	}
	if !isZero(dst.data) {
		t.Error("something was written")
	}
}

// Where the target's end is filled up, a last unit that has not changed stays as it is: zeroes there
// would hide what the chain below holds.
func TestChangesLeaveTheEnd(t *testing.T) {
	const unit, size = 4 * clusterSize, 9 * clusterSize
	src := &disk{data: bytes.Repeat([]byte{1}, size)}
	dst := &disk{data: bytes.Repeat([]byte{2}, 3*unit), least: unit, unit: unit}
	first := func(_ context.Context, off, length int64) ([]nbd.Extent, error) {
		return []nbd.Extent{{Offset: 0, Length: 512, Flags: nbd.FlagDirty}, {Offset: 512, Length: size - 512}}, nil
	}
	stats, err := Copy(t.Context(), src, dst, Options{Unit: unit, Changes: first})
	must(t, err)
	if stats.WrittenBytes != unit || stats.ZeroBytes != 0 {
		t.Errorf("%+v", stats)
	}
	if !bytes.Equal(dst.data[unit:], bytes.Repeat([]byte{2}, 2*unit)) {
		t.Error("what has not changed was touched")
	}
}
