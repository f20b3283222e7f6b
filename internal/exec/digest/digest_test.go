package digest

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"syscall"
	"testing"

	"github.com/zeebo/blake3"
	"github.com/zeebo/xxh3"
	"pgregory.net/rapid"

	"github.com/nasfleet/nasfleet/messages"
)

var testKey = bytes.Repeat([]byte{7}, KeySize)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func create(t testing.TB, size int64, key []byte) (*Writer, string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "vda.digests")
	w, err := Create(path, size, key)
	must(t, err)
	return w, path
}

func open(t testing.TB, path string, key []byte) *Reader {
	t.Helper()
	r, err := Open(path, key)
	must(t, err)
	t.Cleanup(func() { must(t, r.Close()) })
	return r
}

func TestFileLayout(t *testing.T) {
	block := bytes.Repeat([]byte("nasfleet"), BlockSize/8)
	w, path := create(t, 3*BlockSize+1, nil)
	must(t, w.Put(1, w.Sum(block)))
	must(t, w.PutZeroes(2, 1))
	must(t, w.Close())
	got, err := os.ReadFile(path)
	must(t, err)
	if len(got) != 64+4*16 {
		t.Fatalf("a file of %d bytes", len(got))
	}
	header := append([]byte("nasfleet digests"), 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 16, 0, 0, 0, 0, 0, 1, 0, 48, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0)
	if !bytes.Equal(got[:48], header) {
		t.Errorf("header %x", got[:48])
	}
	check, sum := xxh3.Hash128(header).Bytes(), xxh3.Hash128(block).Bytes()
	want := slices.Concat(check[:16], make([]byte, 16), sum[:16], bytes.Repeat([]byte{0xff}, 16), make([]byte, 16))
	if !bytes.Equal(got[48:], want) {
		t.Errorf("records\n%x, want\n%x", got[48:], want)
	}
}

// TestAlgorithms holds the hashes to what other programs compute: XXH3's published value for no
// bytes at all, and BLAKE3 in keyed mode.
func TestAlgorithms(t *testing.T) {
	plain, err := newHasher(nil)
	must(t, err)
	if got, want := fmt.Sprintf("%x", plain.sum(nil)), "99aa06d3014798d86001c324468d497f"; got != want {
		t.Errorf("%s of nothing is %s, want %s", Algorithm(false), got, want)
	}
	keyed, err := newHasher(testKey)
	must(t, err)
	reference, err := blake3.NewKeyed(testKey)
	must(t, err)
	if got, want := keyed.sum(nil), reference.Sum(nil)[:SumSize]; !bytes.Equal(got[:], want) {
		t.Errorf("%s of nothing is %x, want %x", Algorithm(true), got, want)
	}
}

// What is written is read back, whatever the order and the number of writers.
func TestRoundTrip(t *testing.T) {
	dir := t.TempDir()
	rapid.Check(t, func(t *rapid.T) {
		path := filepath.Join(dir, "d")
		size := rapid.Int64Range(0, 9000*BlockSize).Draw(t, "size")
		key := rapid.SampledFrom([][]byte{nil, testKey}).Draw(t, "key")
		w, err := Create(path, size, key)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = os.Remove(path) }()
		want := map[int64]Sum{}
		if n := blockCount(size); n > 0 {
			for _, i := range rapid.SliceOfN(rapid.Int64Range(0, n-1), 0, 50).Draw(t, "indexes") {
				want[i] = w.Sum(binary.LittleEndian.AppendUint64(nil, uint64(i)))
				if i%3 == 0 {
					want[i] = Sum(bytes.Repeat([]byte{0xff}, SumSize))
				}
			}
		}
		var wg sync.WaitGroup
		for i, s := range want {
			wg.Go(func() {
				if err := w.Put(i, s); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		r, err := Open(path, key)
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = r.Close() }()
		if r.Size() != size {
			t.Errorf("size %d, want %d", r.Size(), size)
		}
		last := int64(-1)
		for i, err := range r.Recorded() {
			if err != nil {
				t.Fatal(err)
			}
			s, kind, err := r.Get(i)
			if err != nil || s != want[i] || kind == Absent || i <= last {
				t.Errorf("block %d: %x, %d, %v; want %x", i, s, kind, err, want[i])
			}
			delete(want, i)
			last = i
		}
		if len(want) > 0 {
			t.Errorf("not recorded: %v", want)
		}
	})
}

func TestCheck(t *testing.T) {
	for name, key := range map[string][]byte{"plain": nil, "keyed": testKey} {
		t.Run(name, func(t *testing.T) {
			data, zero := bytes.Repeat([]byte{1}, BlockSize), make([]byte, BlockSize)
			w, path := create(t, 3*BlockSize+100, key)
			must(t, w.Put(0, w.Sum(data)))
			must(t, w.PutZeroes(1, 1))
			must(t, w.Put(3, w.Sum(data[:100])))
			must(t, w.Close())
			r := open(t, path, key)
			must(t, r.Check(t.Context(), 0, data))
			must(t, r.Check(t.Context(), 1, nil))
			must(t, r.Check(t.Context(), 1, zero))
			must(t, r.Check(t.Context(), 2, nil))
			must(t, r.Check(t.Context(), 2, zero))
			must(t, r.Check(t.Context(), 3, data[:100]))

			flipped := bytes.Clone(data)
			flipped[BlockSize-1] ^= 1
			for _, wrong := range []struct {
				index int64
				block []byte
				want  Mismatch
			}{
				{0, flipped, Mismatch{0, BlockSize}},
				{0, zero, Mismatch{0, BlockSize}},
				{0, nil, Mismatch{0, BlockSize}},
				{1, data, Mismatch{BlockSize, BlockSize}},
				{2, flipped, Mismatch{2 * BlockSize, BlockSize}},
				{3, data[:99], Mismatch{3 * BlockSize, 100}},
				{3, nil, Mismatch{3 * BlockSize, 100}},
			} {
				var m *Mismatch
				if err := r.Check(t.Context(), wrong.index, wrong.block); !errors.As(err, &m) || *m != wrong.want {
					t.Errorf("block %d: %v", wrong.index, err)
				}
			}
		})
	}
}

func TestKeyedSumsDiffer(t *testing.T) {
	plain, err := newHasher(nil)
	must(t, err)
	keyed, err := newHasher(testKey)
	must(t, err)
	other, err := newHasher(bytes.Repeat([]byte{8}, KeySize))
	must(t, err)
	block := []byte("content")
	if plain.sum(block) == keyed.sum(block) || keyed.sum(block) == other.sum(block) {
		t.Error("the key makes no difference")
	}
	if first, second := keyed.sum(block), keyed.sum(block); first != second {
		t.Error("sums of the same block differ")
	}
}

func TestOpenErrors(t *testing.T) {
	w, good := create(t, 5*BlockSize, nil)
	must(t, w.Close())
	content, err := os.ReadFile(good)
	must(t, err)
	w, keyed := create(t, 5*BlockSize, testKey)
	must(t, w.Close())
	h, err := newHasher(nil)
	must(t, err)
	change := func(at int, b ...byte) []byte {
		c := bytes.Clone(content)
		copy(c[at:], b)
		return c
	}
	// resum makes the header's own digest right again.
	resum := func(c []byte) []byte {
		sum := h.sum(c[:headerBody])
		copy(c[headerBody:], sum[:])
		return c
	}
	for name, file := range map[string][]byte{
		"empty":         nil,
		"short header":  content[:63],
		"no records":    content[:64],
		"short":         content[:len(content)-1],
		"long":          append(bytes.Clone(content), 0),
		"magic":         resum(change(0, 'N')),
		"version":       resum(change(16, 2)),
		"flag":          resum(change(20, 2)),
		"block size":    resum(change(26, 32)),
		"reserved":      resum(change(40, 1)),
		"exabytes":      resum(change(38, 0, 0x10)),
		"negative":      resum(change(39, 0xff)),
		"largest":       resum(change(32, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f)),
		"header damage": change(32, 1),
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "d")
			must(t, os.WriteFile(path, file, 0o600))
			expectCorrupt(t, path, nil)
		})
	}
	t.Run("none", func(t *testing.T) { expectCorrupt(t, good+"x", nil) })
	t.Run("no key", func(t *testing.T) { expectCorrupt(t, keyed, nil) })
	t.Run("wrong key", func(t *testing.T) { expectCorrupt(t, keyed, make([]byte, KeySize)) })
	t.Run("not keyed", func(t *testing.T) { expectCorrupt(t, good, testKey) })
	t.Run("short key", func(t *testing.T) {
		if _, err := Open(good, testKey[:31]); messages.CodeOf(err) != messages.CodeInternal {
			t.Errorf("got %v", err)
		}
	})
	t.Run("folder", func(t *testing.T) { expectCorrupt(t, t.TempDir(), nil) })
}

func expectCorrupt(t *testing.T, path string, key []byte) {
	t.Helper()
	r, err := Open(path, key)
	if err == nil {
		_ = r.Close()
	}
	if messages.CodeOf(err) != messages.CodeBackupCorrupt {
		t.Errorf("got %v", err)
	}
}

func TestCreateErrors(t *testing.T) {
	dir := t.TempDir()
	_, path := create(t, BlockSize, nil)
	for name, test := range map[string]struct {
		path string
		size int64
		key  []byte
		want messages.Code
	}{
		"exists":    {path, BlockSize, nil, messages.CodeTargetExists},
		"no folder": {filepath.Join(dir, "x", "d"), BlockSize, nil, messages.CodeTargetWriteFailed},
		"negative":  {filepath.Join(dir, "d"), -1, nil, messages.CodeInternal},
		"too large": {filepath.Join(dir, "d"), math.MaxInt64, nil, messages.CodeInternal},
		"short key": {filepath.Join(dir, "d"), 1, testKey[:5], messages.CodeInternal},
	} {
		if _, err := Create(test.path, test.size, test.key); messages.CodeOf(err) != test.want {
			t.Errorf("%s: %v", name, err)
		}
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

func TestPutZeroes(t *testing.T) {
	const blocks = 3*pageRecords + 10
	w, path := create(t, blocks*BlockSize, nil)
	must(t, w.PutZeroes(1, 2))
	must(t, w.PutZeroes(5, blocks-6))
	must(t, w.PutZeroes(4, 0))
	for _, r := range [][2]int64{{0, blocks + 1}, {1, blocks}, {0, -1}, {-1, 2}, {math.MaxInt64, 1}} {
		if err := w.PutZeroes(r[0], r[1]); messages.CodeOf(err) != messages.CodeInternal {
			t.Errorf("%d blocks from %d on: %v", r[1], r[0], err)
		}
	}
	must(t, w.Close())
	r := open(t, path, nil)
	for i := range int64(blocks) {
		want := Zero
		if i == 0 || i == 3 || i == 4 || i == blocks-1 {
			want = Absent
		}
		if _, kind, err := r.Get(i); err != nil || kind != want {
			t.Fatalf("block %d is of kind %d, %v", i, kind, err)
		}
	}
}

func TestIndexOutOfRange(t *testing.T) {
	w, path := create(t, 2*BlockSize, nil)
	for _, i := range []int64{-1, 2, math.MaxInt64, math.MinInt64} {
		if err := w.PutZeroes(i, 1); err == nil {
			t.Errorf("block %d was written", i)
		}
	}
	must(t, w.Close())
	r := open(t, path, nil)
	for _, i := range []int64{-1, 2, math.MaxInt64, math.MinInt64} {
		if _, _, err := r.Get(i); err == nil {
			t.Errorf("block %d was read", i)
		}
	}
}

func TestDiskFull(t *testing.T) {
	dir := t.TempDir()
	must(t, syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=8k"))
	defer func() { must(t, syscall.Unmount(dir, 0)) }()
	w, err := Create(filepath.Join(dir, "d"), 1<<40, nil)
	must(t, err)
	for i := int64(0); err == nil && i < 1<<20; i += 256 {
		err = w.PutZeroes(i, 1)
	}
	if messages.CodeOf(err) != messages.CodeTargetFull {
		t.Errorf("got %v", err)
	}
	must(t, w.Close())
}

// A disk of 10 TiB costs neither memory nor, as long as it is empty, storage.
func TestHugeDisk(t *testing.T) {
	const size = 10 << 40
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	w, path := create(t, size, testKey)
	must(t, w.PutZeroes(0, 1))
	must(t, w.PutZeroes(size/BlockSize-1, 1))
	must(t, w.Close())
	r := open(t, path, testKey)
	var got []int64
	for i, err := range r.Recorded() {
		must(t, err)
		got = append(got, i)
	}
	if !slices.Equal(got, []int64{0, size/BlockSize - 1}) {
		t.Errorf("got %v", got)
	}
	runtime.ReadMemStats(&after)
	if used := after.TotalAlloc - before.TotalAlloc; used > 1<<20 {
		t.Errorf("%d bytes were allocated", used)
	}
	st, err := os.Stat(path)
	must(t, err)
	if blocks := st.Sys().(*syscall.Stat_t).Blocks; blocks*512 > 1<<20 {
		t.Errorf("an empty file takes %d bytes", blocks*512)
	}
}

// TestOpenNoOtherFile: a link is not followed, and a pipe does not hang.
func TestOpenNoOtherFile(t *testing.T) {
	dir := t.TempDir()
	good, link, pipe := filepath.Join(dir, "good"), filepath.Join(dir, "link"), filepath.Join(dir, "pipe")
	w, err := Create(good, BlockSize, nil)
	must(t, err)
	must(t, w.Close())
	must(t, os.Symlink(good, link))
	must(t, syscall.Mkfifo(pipe, 0o600))
	for _, path := range []string{link, pipe, dir, "/dev/zero"} {
		if _, err := Open(path, nil); messages.CodeOf(err) != messages.CodeBackupCorrupt {
			t.Errorf("%s: %v", path, err)
		}
	}
}

func FuzzOpen(f *testing.F) {
	dir := f.TempDir()
	for i, key := range [][]byte{nil, testKey} {
		path := filepath.Join(dir, string(rune('a'+i)))
		w, err := Create(path, 3*BlockSize+5, key)
		must(f, err)
		must(f, w.PutZeroes(1, 1))
		must(f, w.Put(3, w.Sum([]byte("short"))))
		must(f, w.Close())
		content, err := os.ReadFile(path)
		must(f, err)
		f.Add(content, key != nil)
	}
	f.Fuzz(func(t *testing.T, content []byte, keyed bool) {
		path := filepath.Join(t.TempDir(), "d")
		must(t, os.WriteFile(path, content, 0o600))
		var key []byte
		if keyed {
			key = testKey
		}
		r, err := Open(path, key)
		if err != nil {
			if messages.CodeOf(err) != messages.CodeBackupCorrupt {
				t.Errorf("got %v", err)
			}
			return
		}
		defer func() { must(t, r.Close()) }()
		if r.Size() < 0 || fileSize(r.Size()) != int64(len(content)) {
			t.Errorf("a disk of %d bytes in a file of %d", r.Size(), len(content))
		}
		for i, err := range r.Recorded() {
			must(t, err)
			if _, kind, err := r.Get(i); err != nil || kind == Absent {
				t.Errorf("block %d: %d, %v", i, kind, err)
			}
		}
	})
}

func BenchmarkSum(b *testing.B) {
	for name, key := range map[string][]byte{"plain": nil, "keyed": testKey} {
		b.Run(name, func(b *testing.B) {
			h, err := newHasher(key)
			must(b, err)
			block := bytes.Repeat([]byte{3}, BlockSize)
			b.SetBytes(BlockSize)
			b.ReportAllocs()
			for b.Loop() {
				h.sum(block)
			}
		})
	}
}

// A block of which a file holds only some pieces: its digest tells a piece of zeroes from none.
func TestParts(t *testing.T) {
	const size = 2*BlockSize + 3*PieceSize + 5
	for _, key := range [][]byte{nil, testKey} {
		w, path := create(t, size, key)
		zero := make([]byte, BlockSize)
		data := bytes.Clone(zero)
		copy(data[PieceSize:], "second piece")
		short := make([]byte, size-2*BlockSize)
		must(t, w.Put(0, w.SumPart(data, 0b110)))
		must(t, w.PutZeroes(1, 1))
		must(t, w.Put(2, w.SumPart(short, 0xffff)))
		if w.SumPart(data, 0xffff) != w.Sum(data) {
			t.Error("a whole block has another digest as a part")
		}
		must(t, w.Close())
		r := open(t, path, key)
		for _, c := range []struct {
			index int64
			block []byte
			part  Part
			ok    bool
		}{
			{0, data, 0b110, true}, {0, data, 0b10, false}, {0, data, 0b111, false}, {0, data, 0, false}, {0, zero, 0b110, false},
			{1, zero, 0xffff, true}, {1, zero, 0x7fff, false}, {1, zero, 0, false}, {1, data, 0xffff, false},
			{2, short, 0b1111, true}, {2, short, 0xffff, true}, {2, short, 0b0111, false}, {2, short, 0, false},
		} {
			var m *Mismatch
			err := r.CheckPart(c.index, c.block, c.part)
			if (err == nil) != c.ok || err != nil && !errors.As(err, &m) {
				t.Errorf("block %d, pieces %b: %v", c.index, c.part, err)
			}
		}
	}
	w, path := create(t, BlockSize, nil)
	must(t, w.Close())
	r := open(t, path, nil)
	must(t, r.CheckPart(0, make([]byte, BlockSize), 0))
	if r.CheckPart(0, make([]byte, BlockSize), 1) == nil {
		t.Error("a piece of zeroes passes for none")
	}
	if Whole(BlockSize) != 0xffff || Whole(1) != 1 || Whole(PieceSize+1) != 3 {
		t.Error("the whole of a block is not all of its pieces")
	}
}
