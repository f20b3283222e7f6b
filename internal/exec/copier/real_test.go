package copier

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/nasfleet/nasfleet/internal/exec/digest"
	"github.com/nasfleet/nasfleet/internal/exec/nbd"
	"github.com/nasfleet/nasfleet/internal/exec/nbd/nbdtest"
	"github.com/nasfleet/nasfleet/messages"
)

// writeDisk writes a raw image of size bytes: text, noise, zeroes that are allocated, holes, and
// scattered small pieces.
func writeDisk(t testing.TB, path string, size int64) {
	t.Helper()
	f, err := os.Create(path)
	must(t, err)
	defer func() { must(t, f.Close()) }()
	must(t, f.Truncate(size))
	rng := rand.NewChaCha8([32]byte{9})
	part := make([]byte, size/8)
	for i := range part {
		part[i] = byte(i / 100 % 64)
	}
	put := func(p []byte, off int64) {
		_, err := f.WriteAt(p, off)
		must(t, err)
	}
	put(part, 0)
	_, _ = rng.Read(part)
	put(part, size/4)
	clear(part)
	put(part, size/2)
	for off := size * 3 / 4; off < size-100; off += 300 << 10 {
		put([]byte("a piece"), off)
	}
	put([]byte("end"), size-3)
}

func compare(t testing.TB, raw, qcow2 string) {
	t.Helper()
	nbdtest.Run(t, "qemu-img", "compare", "-q", "-f", "raw", "-F", "qcow2", raw, qcow2)
	nbdtest.Run(t, "qemu-img", "check", "-q", "-f", "qcow2", qcow2)
}

// backUp copies a raw image to a new qcow2 file, compressed or not.
func backUp(t testing.TB, raw, qcow2 string, compressed bool, o Options) {
	t.Helper()
	st, err := os.Stat(raw)
	must(t, err)
	size := (st.Size() + 511) &^ 511 // QEMU's disks have whole sectors
	if compressed {                  // the filter serves disks of whole clusters only
		const unit = 4 * clusterSize
		nbdtest.CreateQcow2(t, qcow2, (size+unit-1)/unit*unit, fmt.Sprintf("compression_type=zstd,cluster_size=%d", unit))
	} else {
		nbdtest.CreateQcow2(t, qcow2, size, "")
	}
	from := nbdtest.Raw(t, raw, "")
	to := nbdtest.Qcow2(t, qcow2, "writable=on")
	if compressed {
		to.Stop(t)
		to = nbdtest.Compressed(t, qcow2)
	}
	src, dst := from.Dial(t), to.Dial(t)
	if _, err := Copy(t.Context(), src, dst, o); err != nil {
		t.Fatal(err)
	}
	must(t, src.Close())
	must(t, dst.Close())
	to.Stop(t)
	from.Stop(t)
	if compressed {
		nbdtest.Run(t, "qemu-img", "resize", "-q", "--shrink", "-f", "qcow2", qcow2, fmt.Sprint(size))
	}
}

func TestBackupAndRestore(t *testing.T) {
	for _, size := range []int64{96 * mib, 33*mib + 512, 5*mib + 100} {
		for _, compressed := range []bool{false, true} {
			t.Run(fmt.Sprintf("%d compressed=%t", size, compressed), func(t *testing.T) {
				dir := t.TempDir()
				raw, qcow2 := filepath.Join(dir, "raw"), filepath.Join(dir, "qcow2")
				writeDisk(t, raw, size)
				w, reopen := digests(t, (size+511)&^511)
				backUp(t, raw, qcow2, compressed, Options{Digests: w})
				compare(t, raw, qcow2)
				if clusters := countClusters(t, qcow2); clusters.Compressed > 0 != compressed {
					t.Errorf("%+v", clusters)
				}
				r := reopen()
				s := nbdtest.Qcow2(t, qcow2, "")
				if _, err := Verify(t.Context(), s.Dial(t), r, Options{}); err != nil {
					t.Error(err)
				}
				restoreOver(t, s.Dial(t), raw, r)
			})
		}
	}
}

// restoreOver restores to a larger raw disk that is full of other data.
func restoreOver(t *testing.T, src *nbd.Conn, raw string, check *digest.Reader) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "restored")
	old := bytes.Repeat([]byte("old"), int(src.Size()+4*mib)/3)
	old = old[:len(old)&^511]
	must(t, os.WriteFile(path, old, 0o600))
	s := nbdtest.Raw(t, path, "writable=on")
	if _, err := Copy(t.Context(), src, s.Dial(t), Options{Check: check, ZeroHoles: true}); err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(path)
	must(t, err)
	want, err := os.ReadFile(raw)
	must(t, err)
	copy(old, make([]byte, src.Size()))
	copy(old, want)
	if !bytes.Equal(got, old) {
		t.Error("the restored disk has other bytes")
	}
}

type clusterCount struct {
	Allocated  int `json:"allocated-clusters"`
	Compressed int `json:"compressed-clusters"`
}

func countClusters(t testing.TB, qcow2 string) (c clusterCount) {
	t.Helper()
	must(t, json.Unmarshal([]byte(nbdtest.Run(t, "qemu-img", "check", "--output=json", "-f", "qcow2", qcow2)), &c))
	return c
}

// Data that is zeroes takes no room in the backup.
func TestZeroDataIsNotStored(t *testing.T) {
	dir := t.TempDir()
	raw, qcow2 := filepath.Join(dir, "raw"), filepath.Join(dir, "qcow2")
	must(t, os.WriteFile(raw, make([]byte, 32*mib), 0o600))
	backUp(t, raw, qcow2, false, Options{})
	compare(t, raw, qcow2)
	if c := countClusters(t, qcow2); c.Allocated != 0 {
		t.Errorf("%d clusters", c.Allocated)
	}
}

// A byte that is flipped in the backup file is found, with the offset on the disk.
func TestVerifyFindsFlippedByte(t *testing.T) {
	dir := t.TempDir()
	raw, qcow2 := filepath.Join(dir, "raw"), filepath.Join(dir, "qcow2")
	content := make([]byte, 16*mib)
	_, _ = rand.NewChaCha8([32]byte{5}).Read(content)
	must(t, os.WriteFile(raw, content, 0o600))
	w, reopen := digests(t, int64(len(content)))
	backUp(t, raw, qcow2, false, Options{Digests: w})

	const at = 9*mib + 12345
	file, err := os.ReadFile(qcow2)
	must(t, err)
	i := bytes.Index(file, content[at:at+64])
	if i < 0 {
		t.Fatal("the content is not in the file")
	}
	file[i] ^= 1
	must(t, os.WriteFile(qcow2, file, 0o600))
	nbdtest.Run(t, "qemu-img", "check", "-q", "-f", "qcow2", qcow2) // which does not find it
	var m *digest.Mismatch
	_, err = Verify(t.Context(), nbdtest.Qcow2(t, qcow2, "").Dial(t), reopen(), Options{})
	if !errors.As(err, &m) || *m != (digest.Mismatch{Offset: 9 * mib, Length: mib}) {
		t.Errorf("got %v", err)
	}
}

// A compressed cluster whose bytes were changed may be unreadable: QEMU then reports EIO, at an
// offset that the error has.
func TestVerifyDamagedCompression(t *testing.T) {
	dir := t.TempDir()
	raw, qcow2 := filepath.Join(dir, "raw"), filepath.Join(dir, "qcow2")
	must(t, os.WriteFile(raw, bytes.Repeat([]byte("compressible "), mib), 0o600))
	st, err := os.Stat(raw)
	must(t, err)
	w, reopen := digests(t, st.Size())
	backUp(t, raw, qcow2, true, Options{Digests: w})
	file, err := os.ReadFile(qcow2)
	must(t, err)
	magic := []byte{0x28, 0xb5, 0x2f, 0xfd} // of a zstd frame
	i := bytes.LastIndex(file, magic)
	if i < 0 {
		t.Fatal("no compressed data in the file")
	}
	file[i+5] ^= 0xff
	must(t, os.WriteFile(qcow2, file, 0o600))
	_, err = Verify(t.Context(), nbdtest.Qcow2(t, qcow2, "").Dial(t), reopen(), Options{})
	var m *digest.Mismatch
	var e *nbd.Error
	switch {
	case errors.As(err, &m):
	case errors.As(err, &e) && e.Errno == syscall.EIO && messages.CodeOf(err) == messages.CodeSourceReadFailed:
	default:
		t.Errorf("got %v", err)
	}
}

func TestTargetFull(t *testing.T) {
	dir := t.TempDir()
	raw, mount := filepath.Join(dir, "raw"), filepath.Join(dir, "mnt")
	writeDisk(t, raw, 64*mib)
	must(t, os.Mkdir(mount, 0o700))
	must(t, syscall.Mount("tmpfs", mount, "tmpfs", 0, "size=5m"))
	t.Cleanup(func() { must(t, syscall.Unmount(mount, 0)) })
	qcow2 := filepath.Join(mount, "qcow2")
	nbdtest.CreateQcow2(t, qcow2, 64*mib, "")
	to := nbdtest.Qcow2(t, qcow2, "writable=on")
	dst := to.Dial(t)
	_, err := Copy(t.Context(), nbdtest.Raw(t, raw, "").Dial(t), dst, Options{})
	if messages.CodeOf(err) != messages.CodeTargetFull {
		t.Errorf("got %v", err)
	}
	must(t, dst.Close())
	to.Stop(t) // before the file system goes
}

// A server that dies in the middle ends the copy, with the code of its side.
func TestServerKilled(t *testing.T) {
	for _, side := range []string{"source", "target"} {
		t.Run(side, func(t *testing.T) {
			dir := t.TempDir()
			raw, qcow2 := filepath.Join(dir, "raw"), filepath.Join(dir, "qcow2")
			writeDisk(t, raw, 64*mib)
			nbdtest.CreateQcow2(t, qcow2, 64*mib, "")
			from, to := nbdtest.Raw(t, raw, ""), nbdtest.Qcow2(t, qcow2, "writable=on")
			src, dst := from.Dial(t), to.Dial(t)
			victim, want := from, messages.CodeSourceReadFailed
			if side == "target" {
				victim, want = to, messages.CodeTargetWriteFailed
			}
			var once sync.Once
			_, err := Copy(t.Context(), src, dst, Options{Progress: func(_, _ int64) { once.Do(func() { victim.Kill(t) }) }})
			if messages.CodeOf(err) != want || !errors.Is(err, nbd.ErrDisconnected) {
				t.Errorf("got %v", err)
			}
		})
	}
}

// Two disks share a limit; it is lifted in the middle of the copy.
func TestLimitIsShared(t *testing.T) {
	dir := t.TempDir()
	l := NewLimiter(20)
	var wg sync.WaitGroup
	start := time.Now()
	for i := range 2 {
		raw := filepath.Join(dir, fmt.Sprint("raw", i))
		content := make([]byte, 10*mib)
		_, _ = rand.NewChaCha8([32]byte{byte(i)}).Read(content)
		must(t, os.WriteFile(raw, content, 0o600))
		wg.Go(func() { backUp(t, raw, raw+".qcow2", false, Options{Limiter: l}) })
	}
	wg.Wait()
	if d := time.Since(start); d < time.Second {
		t.Errorf("20 MiB at 20 MiB/s in %v", d)
	}
}

// Compare with nbdcopy between the same servers. The file systems' own speed matters least with
// TMPDIR=/dev/shm.
func BenchmarkCopyReal(b *testing.B) {
	const size = 512 * mib
	dir := b.TempDir()
	raw, qcow2 := filepath.Join(dir, "raw"), filepath.Join(dir, "qcow2")
	writeDisk(b, raw, size)
	copies := map[string]func(b *testing.B, from, to *nbdtest.Server){
		"nbdcopy": func(b *testing.B, from, to *nbdtest.Server) {
			nbdtest.Run(b, "nbdcopy", "--flush", from.URI(), to.URI())
		},
		"copy": func(b *testing.B, from, to *nbdtest.Server) { copyOnce(b, from, to, Options{}) },
		"copy+digests": func(b *testing.B, from, to *nbdtest.Server) {
			w, reopen := digests(b, size)
			copyOnce(b, from, to, Options{Digests: w})
			reopen()
		},
	}
	for _, compressed := range []bool{false, true} {
		for name, run := range copies {
			b.Run(fmt.Sprintf("%s compressed=%t", name, compressed), func(b *testing.B) {
				b.SetBytes(size / 2)
				for b.Loop() {
					b.StopTimer()
					_ = os.Remove(qcow2)
					nbdtest.CreateQcow2(b, qcow2, size, "compression_type=zstd")
					from := nbdtest.Raw(b, raw, "")
					start := nbdtest.Compressed
					if !compressed {
						start = func(t testing.TB, path string) *nbdtest.Server { return nbdtest.Qcow2(t, path, "writable=on") }
					}
					to := start(b, qcow2)
					b.StartTimer()
					run(b, from, to)
					b.StopTimer()
					to.Stop(b)
					from.Stop(b)
					b.StartTimer()
				}
			})
		}
	}
}

func copyOnce(b *testing.B, from, to *nbdtest.Server, o Options) {
	src, dst := from.Dial(b), to.Dial(b)
	if _, err := Copy(context.Background(), src, dst, o); err != nil {
		b.Fatal(err)
	}
	must(b, src.Close())
	must(b, dst.Close())
}
