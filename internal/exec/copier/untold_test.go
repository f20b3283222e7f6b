package copier

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"pgregory.net/rapid"

	"github.com/nasfleet/nasfleet/internal/exec/digest"
	"github.com/nasfleet/nasfleet/internal/exec/nbd"
)

// image is a qcow2 with a dirty bitmap as QEMU has them, seen to be so on QEMU 7.2.
type image struct {
	cluster, grain int64
	// shines says that a backing file is longer than the image ever gets.
	shines bool
	data   []byte
	// holds says which clusters have data, dirty which grains have changed.
	holds, dirty []bool
}

func ceil(n, unit int64) int64 { return (n + unit - 1) / unit }

func newImage(cluster, size int64, shines bool) *image {
	m := &image{cluster: cluster, grain: min(max(cluster, 4<<10), 64<<10), shines: shines}
	m.data = make([]byte, size)
	m.holds, m.dirty = make([]bool, ceil(size, cluster)), make([]bool, ceil(size, m.grain))
	return m
}

func (m *image) size() int64 { return int64(len(m.data)) }

func (m *image) touch(off, n int64) {
	for i := off / m.grain; i*m.grain < off+n; i++ {
		m.dirty[i] = true
	}
}

func (m *image) write(off, n int64, pattern byte) {
	copy(m.data[off:off+n], bytes.Repeat([]byte{pattern}, int(n)))
	for i := off / m.cluster; i*m.cluster < off+n; i++ {
		m.holds[i] = true
	}
	m.touch(off, n)
}

// discard gives whole clusters back.
func (m *image) discard(off, n int64) {
	clear(m.data[off : off+n])
	m.touch(off, n)
	for i := off / m.cluster; i*m.cluster < off+n; i++ {
		m.holds[i] = false
	}
}

// cut makes the image smaller and then as large as it was.
func (m *image) cut(to int64) {
	whole := min(ceil(to, m.cluster)*m.cluster, m.size())
	clear(m.data[whole:])
	clear(m.holds[ceil(to, m.cluster):])
	clear(m.dirty[ceil(to, m.grain):])
	if m.shines {
		clear(m.data[to:whole])
	}
}

// extents tells one thing about each of the image's parts.
func (m *image) extents(unit int64, of func(i int64) uint32) []nbd.Extent {
	var list []nbd.Extent
	for i := range ceil(m.size(), unit) {
		flags := of(i)
		if n := len(list); n > 0 && list[n-1].Flags == flags {
			list[n-1].Length += unit
		} else {
			list = append(list, nbd.Extent{Offset: i * unit, Length: unit, Flags: flags})
		}
	}
	last := &list[len(list)-1]
	last.Length = m.size() - last.Offset
	return list
}

func (m *image) allocation() []nbd.Extent {
	return m.extents(m.cluster, func(i int64) uint32 {
		if m.holds[i] {
			return 0
		}
		return nbd.FlagZero | nbd.FlagHole
	})
}

func (m *image) changes() []nbd.Extent {
	return m.extents(m.grain, func(i int64) uint32 {
		if m.dirty[i] {
			return nbd.FlagDirty
		}
		return 0
	})
}

// chain is backups of an image: what they show together, and their digests.
type chain struct {
	dir     string
	unit    int64
	shown   *disk
	digests digest.Chain
}

// add takes a backup, and returns what was read for it.
func (c *chain) add(t rapid.TB, m *image) Stats {
	w, err := digest.Create(filepath.Join(c.dir, fmt.Sprint(len(c.digests))), m.size(), nil)
	must(t, err)
	src, bitmap := &disk{data: m.data, extents: m.allocation()}, &disk{data: m.data, extents: m.changes()}
	o := Options{Unit: c.unit, Digests: w}
	if len(c.digests) > 0 {
		o.Below = c.digests
		o.Changes = func(ctx context.Context, off, length int64) ([]nbd.Extent, error) {
			return bitmap.BlockStatus(ctx, "", off, length)
		}
	}
	stats, err := Copy(context.Background(), src, c.shown, o)
	must(t, err)
	must(t, w.Close())
	r, err := digest.Open(filepath.Join(c.dir, fmt.Sprint(len(c.digests))), nil)
	must(t, err)
	c.digests = append(digest.Chain{r}, c.digests...)
	clear(m.dirty)
	return stats
}

func newChain(t rapid.TB, m *image, unit int64) *chain {
	dir, err := os.MkdirTemp("", "untold")
	must(t, err)
	return &chain{dir: dir, unit: unit, shown: &disk{data: make([]byte, m.size()), unit: unit, cut: m.size()}}
}

func (c *chain) close(t rapid.TB) {
	must(t, c.digests.Close())
	must(t, os.RemoveAll(c.dir))
}

// Whatever was written, discarded and cut off between two backups, the newer one shows the image as it is.
func TestUntoldModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		cluster := int64(1) << rapid.SampledFrom([]int{9, 12, 15, 16, 17, 20, 21}).Draw(t, "cluster bits")
		size := rapid.Int64Range(1, 20*mib/512).Draw(t, "sectors") * 512
		m := newImage(cluster, size, rapid.Bool().Draw(t, "a longer backing file"))
		sector := func(name string, from, to int64) int64 { return rapid.Int64Range(from/512, to/512).Draw(t, name) * 512 }
		write := func(t *rapid.T) (off, n int64) {
			off = sector("offset", 0, size-512)
			n = sector("length", 512, min(size-off, 3*mib))
			m.write(off, n, rapid.Byte().Draw(t, "pattern"))
			return off, n
		}
		cuts := 0
		cut := func(to int64) {
			if cuts++; cuts > 1 && cluster > 64<<10 {
				to = to / cluster * cluster // what is not found
			}
			m.cut(to)
		}
		if rapid.Bool().Draw(t, "full of data") {
			m.write(0, size, 0xbb)
		}
		c := newChain(t, m, rapid.SampledFrom([]int64{64 << 10, 256 << 10, mib}).Draw(t, "unit"))
		defer c.close(t)
		c.add(t, m)
		t.Repeat(map[string]func(*rapid.T){
			"write": func(t *rapid.T) { write(t) },
			"cut what was written": func(t *rapid.T) {
				off, n := write(t)
				cut(sector("to", off, off+n-512))
			},
			"discard": func(t *rapid.T) {
				first := rapid.Int64Range(0, int64(len(m.holds))-1).Draw(t, "first")
				off := first * cluster
				m.discard(off, min(rapid.Int64Range(1, max(1, 2*mib/cluster)).Draw(t, "clusters")*cluster, size-off))
			},
			"cut": func(t *rapid.T) { cut(sector("to", 0, size-512)) },
			"backup": func(t *rapid.T) {
				cuts = 0
				c.add(t, m)
				if i := slices.Index(differences(m.data, c.shown.data), true); i >= 0 {
					t.Errorf("the chain shows something else in the sector at %d", i*512)
				}
			},
		})
	})
}

// differences says which sectors differ.
func differences(a, b []byte) []bool {
	var list []bool
	for i := 0; i < len(a); i += 512 {
		list = append(list, !bytes.Equal(a[i:i+512], b[i:i+512]))
	}
	return list
}

// A disk that was not cut costs three blocks' reading, and nothing is written.
func TestUntoldOfAnIdleDisk(t *testing.T) {
	for name, fill := range map[string]func(*image){
		"empty":           func(*image) {},
		"full":            func(m *image) { m.write(0, m.size(), 7) },
		"half":            func(m *image) { m.write(0, m.size()/2+clusterSize, 7) },
		"last cluster":    func(m *image) { m.write(m.size()-512, 512, 7) },
		"zeroes, no hole": func(m *image) { m.write(0, m.size(), 0) },
	} {
		t.Run(name, func(t *testing.T) {
			m := newImage(clusterSize, 600*mib, false)
			fill(m)
			c := newChain(t, m, clusterSize)
			defer c.close(t)
			c.add(t, m)
			for range 2 {
				if s := c.add(t, m); s != (Stats{}) {
					t.Errorf("an incremental of nothing: %+v", s)
				}
			}
		})
	}
}

// After a first change near the tail, whose blocks are copied whole once, an idle disk costs nothing again.
func TestUntoldSettles(t *testing.T) {
	m := newImage(clusterSize, 64*mib, false)
	m.write(0, 40*mib, 7)
	c := newChain(t, m, clusterSize)
	defer c.close(t)
	c.add(t, m)
	m.write(39*mib, 512, 9)
	if s := c.add(t, m); s.DataBytes != mib || s.WrittenBytes != mib {
		t.Errorf("an incremental of one block near the tail: %+v", s)
	}
	m.write(10*mib, 512, 9)
	if s := c.add(t, m); s.DataBytes != clusterSize {
		t.Errorf("an incremental of one cluster elsewhere: %+v", s)
	}
	if s := c.add(t, m); s != (Stats{}) {
		t.Errorf("an incremental of nothing: %+v", s)
	}
}
