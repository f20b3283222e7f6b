package nbd_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/nasfleet/nasfleet/internal/exec/nbd"
	"github.com/nasfleet/nasfleet/internal/exec/nbd/nbdtest"
)

const (
	kib = 1 << 10
	mib = 1 << 20
)

func random(n int, seed uint64) []byte {
	b := make([]byte, n)
	_, _ = rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)}).Read(b)
	return b
}

// rawFile creates a sparse file.
func rawFile(t testing.TB, size int64) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk.raw")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, size); err != nil {
		t.Fatal(err)
	}
	return path
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestReadWriteZeroes(t *testing.T) {
	ctx := t.Context()
	path := rawFile(t, 64*mib)
	s := nbdtest.Raw(t, path, "writable=on")
	c := s.Dial(t)
	if c.Size() != 64*mib || c.ReadOnly() || !c.CanMultiConn() {
		t.Errorf("size %d, read-only %t, multi-conn %t", c.Size(), c.ReadOnly(), c.CanMultiConn())
	}
	if least, _, most := c.BlockSizes(); least != 1 || most != 32*mib {
		t.Errorf("block sizes from %d to %d", least, most)
	}
	want := random(4*mib, 1)
	must(t, c.WriteAt(ctx, want, 5*mib))
	must(t, c.WriteZeroes(ctx, 6*mib, mib, nbd.MayPunch))
	must(t, c.WriteZeroes(ctx, 20*mib, mib, nbd.NoHole))
	must(t, c.Flush(ctx))
	clear(want[mib : 2*mib])

	got := random(4*mib, 2)
	must(t, c.ReadAt(ctx, got, 5*mib))
	if !bytes.Equal(got, want) {
		t.Error("read back other bytes")
	}
	extents, err := c.BlockStatus(ctx, nbd.BaseAllocation, 0, 64*mib)
	must(t, err)
	// Whether allocated zeroes are seen as such depends on the file system.
	data := slices.DeleteFunc(extents, func(e nbd.Extent) bool { return e.Flags&nbd.FlagZero != 0 })
	if diff := cmp.Diff(data, []nbd.Extent{{Offset: 5 * mib, Length: mib}, {Offset: 7 * mib, Length: 2 * mib}}); diff != "" {
		t.Error(diff)
	}
	file, err := os.ReadFile(path)
	must(t, err)
	if !bytes.Equal(file[5*mib:9*mib], want) {
		t.Error("the file has other bytes")
	}
}

func TestManyRequestsInFlight(t *testing.T) {
	ctx := t.Context()
	c := nbdtest.Raw(t, rawFile(t, 64*mib), "writable=on").Dial(t)
	var wg sync.WaitGroup
	for w := range 64 {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(1, uint64(w)))
			base := int64(w) * mib
			model := make([]byte, mib)
			for i := range 4 {
				n := 1 + rng.IntN(mib-1)
				off := rng.IntN(mib - n)
				p := random(n, uint64(w*100+i))
				copy(model[off:], p)
				if err := c.WriteAt(ctx, p, base+int64(off)); err != nil {
					t.Error(err)
					return
				}
				got := make([]byte, mib)
				if err := c.ReadAt(ctx, got, base); err != nil {
					t.Error(err)
					return
				}
				if !bytes.Equal(got, model) {
					t.Errorf("worker %d: other bytes in round %d", w, i)
					return
				}
			}
		})
	}
	wg.Wait()
}

// A fragmented disk has more extents than fit into one answer of the server.
func TestBlockStatusFragmented(t *testing.T) {
	ctx := t.Context()
	path := filepath.Join(t.TempDir(), "disk.qcow2")
	nbdtest.CreateQcow2(t, path, 1<<40, "cluster_size=64k")
	c := nbdtest.Qcow2(t, path, "writable=on").Dial(t)
	var want []nbd.Extent
	for i := range int64(500) {
		must(t, c.WriteAt(ctx, []byte{1}, i*128*kib))
		want = append(want, nbd.Extent{Offset: i * 128 * kib, Length: 64 * kib},
			nbd.Extent{Offset: i*128*kib + 64*kib, Length: 64 * kib, Flags: nbd.FlagHole | nbd.FlagZero})
	}
	want[len(want)-1].Length = c.Size() - want[len(want)-1].Offset
	var got []nbd.Extent
	for off := int64(0); off < c.Size(); {
		list, err := c.BlockStatus(ctx, nbd.BaseAllocation, off, min(c.Size()-off, 1<<30))
		must(t, err)
		for _, e := range list {
			if e.Offset != off {
				t.Fatalf("extent at %d, want it at %d", e.Offset, off)
			}
			off += e.Length
			if k := len(got) - 1; k >= 0 && got[k].Flags == e.Flags {
				got[k].Length += e.Length
				continue
			}
			got = append(got, e)
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
}

func TestDirtyBitmap(t *testing.T) {
	ctx := t.Context()
	path := filepath.Join(t.TempDir(), "disk.qcow2")
	nbdtest.CreateQcow2(t, path, 64*mib, "")
	nbdtest.Run(t, "qemu-img", "bitmap", "--add", "-g", "65536", path, "b0")
	s := nbdtest.Qcow2(t, path, "writable=on,bitmaps.0=b0")
	const dirty = "qemu:dirty-bitmap:b0"
	c := s.Dial(t, dirty)
	extents, err := c.BlockStatus(ctx, dirty, 0, 64*mib)
	must(t, err)
	if diff := cmp.Diff(extents, []nbd.Extent{{Offset: 0, Length: 64 * mib}}); diff != "" {
		t.Error(diff)
	}
	must(t, c.WriteAt(ctx, random(mib, 1), 8*mib))
	must(t, c.Close())
	s.Stop(t)

	s = nbdtest.Qcow2(t, path, "writable=on,bitmaps.0=b0")
	c = s.Dial(t, dirty)
	extents, err = c.BlockStatus(ctx, dirty, 0, 64*mib)
	must(t, err)
	want := []nbd.Extent{{Offset: 0, Length: 8 * mib}, {Offset: 8 * mib, Length: mib, Flags: 1}, {Offset: 9 * mib, Length: 55 * mib}}
	if diff := cmp.Diff(extents, want); diff != "" {
		t.Error(diff)
	}
	if _, err := c.BlockStatus(ctx, "qemu:dirty-bitmap:other", 0, mib); !errors.Is(err, syscall.EINVAL) {
		t.Errorf("a context that was not negotiated: %v", err)
	}
}

func TestDialErrors(t *testing.T) {
	s := nbdtest.Raw(t, rawFile(t, mib), "")
	dir := nbdtest.ShortDir(t)
	for name, test := range map[string]struct {
		socket string
		o      nbd.Options
		want   string
	}{
		"no socket":    {filepath.Join(dir, "none"), nbd.Options{}, "no such file"},
		"no export":    {s.Socket, nbd.Options{Export: "other"}, "no such export"},
		"no context":   {s.Socket, nbd.Options{Export: nbdtest.ExportName, MetaContexts: []string{"qemu:dirty-bitmap:b"}}, "no metadata context"},
		"endless name": {s.Socket, nbd.Options{Export: strings.Repeat("x", 5000)}, "longer than"},
	} {
		t.Run(name, func(t *testing.T) {
			c, err := nbd.Dial(t.Context(), test.socket, test.o)
			if err == nil {
				t.Fatal("no error", c.Close())
			}
			if !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %q, want it to have %q", err, test.want)
			}
		})
	}
}

func TestReadOnlyExport(t *testing.T) {
	ctx := t.Context()
	c := nbdtest.Raw(t, rawFile(t, mib), "").Dial(t)
	if !c.ReadOnly() {
		t.Error("not read-only")
	}
	err := c.WriteAt(ctx, make([]byte, 4096), 8192)
	var e *nbd.Error
	if !errors.As(err, &e) || e.Errno != syscall.EPERM || e.Op != "write" || e.Offset != 8192 || e.Length != 4096 {
		t.Errorf("write to a read-only export: %v", err)
	}
	if err := c.WriteZeroes(ctx, 0, 4096, nbd.MayPunch); !errors.Is(err, syscall.EPERM) {
		t.Errorf("zeroes to a read-only export: %v", err)
	}
	must(t, c.ReadAt(ctx, make([]byte, 4096), 0))
}

func TestTargetFull(t *testing.T) {
	ctx := t.Context()
	dir := t.TempDir()
	must(t, syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=4m"))
	t.Cleanup(func() {
		if err := syscall.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
	})
	path := filepath.Join(dir, "disk.raw")
	must(t, os.WriteFile(path, nil, 0o600))
	must(t, os.Truncate(path, 64*mib))
	s := nbdtest.Raw(t, path, "writable=on")
	c := s.Dial(t)
	if err := c.WriteAt(ctx, random(16*mib, 1), 0); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("write to a full file system: %v", err)
	}
	must(t, c.ReadAt(ctx, make([]byte, mib), 32*mib))
	must(t, c.Close())
	s.Stop(t) // before the file system goes
}

func TestWrongRanges(t *testing.T) {
	ctx := t.Context()
	c := nbdtest.Raw(t, rawFile(t, mib), "writable=on").Dial(t)
	for _, r := range []struct{ off, n int64 }{{-1, 1}, {mib, 1}, {mib - 1, 2}, {1 << 62, 1 << 10}} {
		for op, err := range map[string]error{
			"read":         c.ReadAt(ctx, make([]byte, r.n), r.off),
			"write":        c.WriteAt(ctx, make([]byte, r.n), r.off),
			"write zeroes": c.WriteZeroes(ctx, r.off, r.n, nbd.MayPunch),
		} {
			if !errors.Is(err, syscall.EINVAL) {
				t.Errorf("%s of %d at %d: %v", op, r.n, r.off, err)
			}
		}
		if _, err := c.BlockStatus(ctx, nbd.BaseAllocation, r.off, r.n); !errors.Is(err, syscall.EINVAL) {
			t.Errorf("status of %d at %d: %v", r.n, r.off, err)
		}
	}
	must(t, c.ReadAt(ctx, nil, 0))
}

// slow serves a disk that does one request of 4 KiB and then hardly any more.
func slow(t testing.TB) *nbdtest.Server {
	return nbdtest.Start(t, "writable=on",
		"--object", "throttle-group,id=g,x-bps-total=4096",
		"--blockdev", "driver=file,node-name=file,filename="+rawFile(t, 64*mib),
		"--blockdev", "driver=throttle,node-name=top,throttle-group=g,file=file")
}

func TestServerKilled(t *testing.T) {
	s := slow(t)
	c := s.Dial(t)
	errs := make(chan error)
	for i := range int64(8) {
		go func() { errs <- c.ReadAt(context.Background(), make([]byte, mib), i*mib) }()
		go func() { errs <- c.WriteAt(context.Background(), make([]byte, mib), (i+8)*mib) }()
	}
	// One of them is under way when the server answers another kind of request.
	_, err := c.BlockStatus(t.Context(), nbd.BaseAllocation, 0, mib)
	must(t, err)
	s.Kill(t)
	failed := 0
	for range 16 {
		if err := <-errs; errors.Is(err, nbd.ErrDisconnected) {
			failed++
		} else if err != nil {
			t.Errorf("not a lost connection: %v", err)
		}
	}
	if failed < 8 {
		t.Errorf("only %d requests failed", failed)
	}
	if err := c.Flush(t.Context()); !errors.Is(err, nbd.ErrDisconnected) {
		t.Errorf("a request after the end: %v", err)
	}
}

func TestCancelInFlight(t *testing.T) {
	s := slow(t)
	defer s.Kill(t) // it would finish its requests first
	c := s.Dial(t)
	must(t, c.ReadAt(t.Context(), make([]byte, 64*kib), 0)) // spends the budget of many seconds
	cause := errors.New("enough")
	ctx, cancel := context.WithCancelCause(t.Context())
	errs := make(chan error)
	go func() { errs <- c.ReadAt(ctx, make([]byte, mib), 0) }()
	_, err := c.BlockStatus(t.Context(), nbd.BaseAllocation, 0, mib)
	must(t, err)
	cancel(cause)
	if err := <-errs; !errors.Is(err, cause) {
		t.Errorf("got %v", err)
	}
	// The connection is as good as before.
	_, err = c.BlockStatus(t.Context(), nbd.BaseAllocation, 0, mib)
	must(t, err)
}

func TestClose(t *testing.T) {
	s := nbdtest.Raw(t, rawFile(t, mib), "")
	c := s.Dial(t)
	start := time.Now()
	must(t, c.Close())
	if d := time.Since(start); d > time.Second {
		t.Errorf("the server took leave after %v", d)
	}
	must(t, c.Close())
	if err := c.ReadAt(t.Context(), make([]byte, 512), 0); !errors.Is(err, nbd.ErrClosed) {
		t.Errorf("a request after Close: %v", err)
	}
	// The server serves others.
	must(t, s.Dial(t).ReadAt(t.Context(), make([]byte, 512), 0))
}

func TestErrorText(t *testing.T) {
	err := &nbd.Error{Op: "read", Offset: 65536, Length: 4096, Errno: syscall.EIO, Message: "bad disk"}
	want := `nbd read of 4096 bytes at offset 65536: input/output error ("bad disk")`
	if got := fmt.Sprint(err); got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func BenchmarkRead(b *testing.B) {
	path := rawFile(b, 64*mib)
	must(b, os.WriteFile(path, random(64*mib, 1), 0o600))
	c := nbdtest.Raw(b, path, "").Dial(b)
	for _, size := range []int64{64 * kib, 256 * kib, 512 * kib, mib} {
		b.Run(fmt.Sprintf("%dKiB", size/kib), func(b *testing.B) {
			b.SetBytes(size)
			b.SetParallelism(8)
			b.RunParallel(func(pb *testing.PB) {
				p := make([]byte, size)
				for off := int64(0); pb.Next(); off = (off + size) % (64 * mib) {
					if err := c.ReadAt(context.Background(), p, off); err != nil {
						b.Error(err)
						return
					}
				}
			})
		})
	}
}
