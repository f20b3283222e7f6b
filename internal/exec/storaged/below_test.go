package storaged

import (
	"bytes"
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/nasfleet/nasfleet/messages"
)

// TestBelow reads the headers that qemu-img makes.
func TestBelow(t *testing.T) {
	dir := t.TempDir()
	writeFile(t, filepath.Join(dir, "base"), content(1<<20))
	run(t, "", "qemu-img", "create", "-q", "-f", "qcow2", filepath.Join(dir, "base.qcow2"), "1M")
	long := strings.Repeat("./", 480) + "base"
	for _, c := range []struct {
		options []string
		want    Image
	}{
		{[]string{"-b", "base", "-F", "raw"}, Image{"base", "raw"}},
		{[]string{"-b", filepath.Join(dir, "base.qcow2"), "-F", "qcow2"}, Image{filepath.Join(dir, "base.qcow2"), "qcow2"}},
		{[]string{"-b", "base", "-F", "raw", "-o", "compat=0.10"}, Image{"base", "raw"}},
		{[]string{"-b", "base", "-F", "raw", "-o", "cluster_size=2M"}, Image{"base", "raw"}},
		{[]string{"-b", long, "-F", "raw"}, Image{long, "raw"}},
		{[]string{"1M"}, Image{}},
	} {
		path := filepath.Join(dir, "top")
		args := append([]string{"create", "-q", "-f", "qcow2"}, c.options...)
		if c.want != (Image{}) {
			args = append(args, path)
		} else {
			args = []string{"create", "-q", "-f", "qcow2", path, "1M"}
		}
		run(t, "", "qemu-img", args...)
		if got, err := Below(path); err != nil || got != c.want {
			t.Errorf("%v: got %v, %v", c.options, got, err)
		}
	}
}

func TestBelowRefused(t *testing.T) {
	dir := t.TempDir()
	writeFile(t, filepath.Join(dir, "base"), content(1<<20))
	top := filepath.Join(dir, "top")
	run(t, "", "qemu-img", "create", "-q", "-f", "qcow2", "-b", "base", "-F", "raw", top)
	good, err := os.ReadFile(top)
	mustDo(t, err)
	edit := func(at int, with ...byte) func() { return func() { writeFile(t, top, put(good, at, with...)) } }
	for name, c := range map[string]struct {
		make func()
		says string
	}{
		"no format": {func() { writeFile(t, top, bytes.Replace(good, []byte{0xE2, 0x79, 0x2A, 0xCA}, []byte{1, 2, 3, 4}, 1)) }, "which format"},
		"vmdk": {func() {
			writeFile(t, top, bytes.Replace(good, []byte("\x00\x00\x00\x03raw\x00"), []byte("\x00\x00\x00\x04vmdk"), 1))
		}, "vmdk"},
		"not UTF-8":     {func() { writeFile(t, top, bytes.ReplaceAll(good, []byte("base"), []byte("b\xffse"))) }, "UTF-8"},
		"NUL":           {func() { writeFile(t, top, bytes.ReplaceAll(good, []byte("base"), []byte("b\x00se"))) }, "UTF-8"},
		"name far away": {edit(8, 0x7f, 0xff, 0xff, 0xff), "not in its header"},
		"name too long": {edit(16, 0x7f, 0xff, 0xff, 0xff), "not in its header"},
		"clusters":      {edit(20, 0, 0, 0, 40), "2^40"},
		"data file":     {edit(79, 4), "data file"},
		"raw":           {func() { writeFile(t, top, content(1<<20)) }, "qcow2"},
		"cut off":       {func() { writeFile(t, top, good[:90]) }, "not in its header"},
		"header length": {edit(100, 0xff, 0xff, 0xff, 0xff), "which format"},
	} {
		c.make()
		_, err := Below(top)
		if messages.CodeOf(err) != messages.CodeDiskUnsupported || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: got %v", name, err)
		}
	}
}

// put returns a copy of data with other bytes at an offset.
func put(data []byte, at int, with ...byte) []byte {
	data = bytes.Clone(data)
	copy(data[at:], with)
	return data
}

func FuzzBelow(f *testing.F) {
	header := make([]byte, 200)
	copy(header, "QFI\xfb\x00\x00\x00\x03")
	header[15], header[19], header[23], header[103] = 144, 4, 16, 104
	binary.BigEndian.PutUint32(header[104:], qcow2FormatName)
	copy(header[108:], "\x00\x00\x00\x03raw")
	copy(header[144:], "base")
	f.Add(header)
	f.Fuzz(func(t *testing.T, cluster []byte) {
		if !errors.Is(checkQcow2(cluster), errBacking) {
			return // Below comes no further
		}
		image, err := parseBelow(cluster)
		if err == nil && (image.Path == "" || len(image.Path) > maxBackingName || image.Format != FormatRaw && image.Format != FormatQcow2) {
			t.Errorf("got %q", image)
		}
	})
}
