package storaged

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"

	"github.com/nasfleet/nasfleet/internal/exec/nbd"
	"github.com/nasfleet/nasfleet/internal/exec/proc"
	"github.com/nasfleet/nasfleet/messages"
)

// TestOpenDisk reads disks of every kind, under names that mean something to QEMU's options.
func TestOpenDisk(t *testing.T) {
	d, _ := startDaemon(t, quick)
	want := content(2 << 20)
	for _, name := range []string{"plain", "with space", "a,b=c,driver=null-co", "-leading", `quo"te\n`, "nbd:localhost:1", "json:{}", "täst\nline"} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			raw := writeFile(t, filepath.Join(dir, name), want)
			qcow2 := raw + ".qcow2"
			run(t, "", "qemu-img", "convert", "-f", "raw", "-O", "qcow2", "file:"+raw, "file:"+qcow2)
			overlay := filepath.Join(dir, "overlay")
			run(t, "", "qemu-img", "create", "-q", "-f", "qcow2", "-b", "file:"+qcow2, "-F", "qcow2", overlay)
			for _, disk := range []Disk{
				{Path: raw, Format: FormatRaw},
				{Path: qcow2, Format: FormatQcow2},
				{Path: overlay, Format: FormatQcow2, Backing: []Image{{qcow2, FormatQcow2}}},
			} {
				mustDo(t, d.OpenDisk(t.Context(), "vda", disk))
				requireSame(t, copyOut(t, d, "vda"), want)
				if out, err := try(t, "", "qemu-io", "-f", "raw", "-c", "write 0 512", d.uri("vda")); err == nil && !strings.Contains(out, "failed") {
					t.Errorf("a source can be written to: %s", out)
				}
				mustDo(t, d.CloseExport(t.Context(), "vda"))
				requireEmpty(t, d)
			}
		})
	}
}

func TestBackingChain(t *testing.T) {
	d, _ := startDaemon(t, quick)
	dir := t.TempDir()
	want := content(2 << 20)
	base := writeFile(t, filepath.Join(dir, "base"), want)
	top := filepath.Join(dir, "top")
	run(t, "", "qemu-img", "create", "-q", "-f", "qcow2", "-b", base, "-F", "raw", top)
	run(t, "", "qemu-io", "-f", "qcow2", "-c", "write -P 0x42 4096 512", top)
	copy(want[4096:], strings.Repeat("B", 512))

	chain := Disk{Path: top, Format: FormatQcow2, Backing: []Image{{base, FormatRaw}}}
	mustDo(t, d.OpenDisk(t.Context(), "vda", chain))
	requireSame(t, copyOut(t, d, "vda"), want)
	mustDo(t, d.CloseExport(t.Context(), "vda"))
	requireEmpty(t, d)

	// What is written covers half a cluster: the rest of it comes from below.
	patch := writeFile(t, filepath.Join(dir, "patch"), want)
	mustDo(t, d.OpenForWrite(t.Context(), "vda", chain))
	copyIn(t, d, patch, "vda")
	mustDo(t, d.CloseExport(t.Context(), "vda"))
	mustDo(t, d.OpenDisk(t.Context(), "vda", chain))
	requireSame(t, copyOut(t, d, "vda"), want)
	mustDo(t, d.CloseExport(t.Context(), "vda"))
	requireEmpty(t, d)

	for _, disk := range []Disk{
		{Path: top, Format: FormatQcow2},
		{Path: dataFileImage(t, dir), Format: FormatQcow2},
		{Path: dataFileImage(t, dir), Format: FormatQcow2, Backing: []Image{{base, FormatRaw}}},
		{Path: top, Format: FormatQcow2, Backing: []Image{{top, FormatQcow2}}},
	} {
		for name, open := range map[string]func(context.Context, string, Disk) error{"read": d.OpenDisk, "write": d.OpenForWrite} {
			err := open(t.Context(), "vda", disk)
			if messages.CodeOf(err) != messages.CodeDiskUnsupported || !errors.Is(err, errReferences) {
				t.Errorf("%s %v: got %v", name, disk, err)
			}
			requireEmpty(t, d)
		}
	}
	err := d.OpenDisk(t.Context(), "vda", Disk{Path: base, Format: FormatRaw, Backing: []Image{{base, FormatRaw}}})
	if messages.CodeOf(err) != messages.CodeDiskUnsupported {
		t.Errorf("an image below a raw one: %v", err)
	}
}

// TestHeaderNamesNothing opens an overlay whose header names another file than the one that is said to lie
// below: only the latter is read.
func TestHeaderNamesNothing(t *testing.T) {
	d, _ := startDaemon(t, quick)
	dir := t.TempDir()
	want := content(1 << 20)
	victim := writeFile(t, filepath.Join(dir, "victim"), bytes.Repeat([]byte("secret of the host\n"), 60000))
	base := writeFile(t, filepath.Join(dir, "base"), want)
	top := filepath.Join(dir, "top")
	for _, format := range []string{FormatRaw, ""} {
		run(t, "", "qemu-img", "create", "-q", "-u", "-f", "qcow2", "-b", victim, "-F", "raw", top, "1M")
		if format == "" {
			data, err := os.ReadFile(top)
			mustDo(t, err)
			writeFile(t, top, bytes.Replace(data, []byte{0xE2, 0x79, 0x2A, 0xCA}, []byte{1, 2, 3, 4}, 1))
		}
		mustDo(t, d.OpenDisk(t.Context(), "vda", Disk{Path: top, Format: FormatQcow2, Backing: []Image{{base, FormatRaw}}}))
		requireSame(t, copyOut(t, d, "vda"), want)
		mustDo(t, d.CloseExport(t.Context(), "vda"))
	}
	// A guest has written the header of a qcow2 that names the victim into its raw disk, which lies below.
	writeFile(t, base, nil)
	run(t, "", "qemu-img", "create", "-q", "-u", "-f", "qcow2", "-b", victim, "-F", "raw", base, "1M")
	header, err := os.ReadFile(base)
	mustDo(t, err)
	want = append(header, make([]byte, 1<<20-len(header))...)
	writeFile(t, base, want)
	run(t, "", "qemu-img", "create", "-q", "-f", "qcow2", "-b", base, "-F", "raw", top)
	mustDo(t, d.OpenDisk(t.Context(), "vda", Disk{Path: top, Format: FormatQcow2, Backing: []Image{{base, FormatRaw}}}))
	requireSame(t, copyOut(t, d, "vda"), want)
	mustDo(t, d.CloseExport(t.Context(), "vda"))
	requireEmpty(t, d)
}

// A disk is exported with the bitmaps that say what was written since they were made; not with those of a writer that
// was killed, and not with other people's.
func TestBitmaps(t *testing.T) {
	d, _ := startDaemon(t, quick)
	path := filepath.Join(t.TempDir(), "disk")
	run(t, "", "qemu-img", "create", "-q", "-f", "qcow2", path, "4M")
	for _, name := range []string{"ours-a", "theirs", "ours-b"} {
		run(t, "", "qemu-img", "bitmap", "--add", path, name)
	}
	run(t, "", "qemu-img", "bitmap", "--disable", path, "ours-b")
	disk := Disk{Path: path, Format: FormatQcow2, ForceShare: true, Bitmaps: "ours-"}
	see := func() (names []string, dirty []nbd.Extent) {
		t.Helper()
		mustDo(t, d.OpenDisk(t.Context(), "vda", disk))
		names = d.Bitmaps("vda")
		meta := nbd.DirtyBitmap("ours-a")
		if len(names) > 0 {
			c, err := nbd.Dial(t.Context(), d.Socket(), nbd.Options{Export: "vda", MetaContexts: []string{meta}})
			if err != nil {
				t.Fatal(err)
			}
			if dirty, err = c.BlockStatus(t.Context(), meta, 0, 4<<20); err != nil {
				t.Fatal(err)
			}
			mustDo(t, c.Close())
		}
		mustDo(t, d.CloseExport(t.Context(), "vda"))
		requireEmpty(t, d)
		if left := d.Bitmaps("vda"); left != nil {
			t.Errorf("an export that is closed has %v", left)
		}
		return names, dirty
	}
	run(t, "", "qemu-io", "-f", "qcow2", "-c", "write 1M 64k", path)
	names, dirty := see()
	if !slices.Equal(names, []string{"ours-a"}) {
		t.Errorf("the bitmaps are %v", names)
	}
	want := []nbd.Extent{{Length: 1 << 20}, {Offset: 1 << 20, Length: 64 << 10, Flags: nbd.FlagDirty}, {Offset: 1<<20 + 64<<10, Length: 3<<20 - 64<<10}}
	if !slices.Equal(dirty, want) {
		t.Errorf("written were %v", dirty)
	}
	// It dies with its bitmaps in memory.
	if out, err := try(t, "", "qemu-io", "-f", "qcow2", "-c", "write 2M 64k", "-c", "abort", path); err == nil {
		t.Fatalf("qemu-io has not aborted: %s", out)
	}
	if names, _ := see(); len(names) != 0 {
		t.Errorf("of a writer that was killed: %v", names)
	}
}

func dataFileImage(t *testing.T, dir string) string {
	t.Helper()
	path := filepath.Join(dir, "with-data-file")
	run(t, "", "qemu-img", "create", "-q", "-f", "qcow2", "-o", "data_file="+path+".raw", path, "1M")
	return path
}

// TestStandsAlone is the second look at references, on what the daemon has open.
func TestStandsAlone(t *testing.T) {
	d, _ := startDaemon(t, quick)
	dir := t.TempDir()
	base := writeFile(t, filepath.Join(dir, "base"), content(1<<20))
	top := filepath.Join(dir, "top")
	run(t, "", "qemu-img", "create", "-q", "-f", "qcow2", "-b", base, "-F", "raw", top)
	for _, image := range []string{top, dataFileImage(t, dir)} {
		g := &graph{d: d}
		file, err := g.ownFile(t.Context(), image, object{"read-only": true})
		mustDo(t, err)
		node, err := g.node(t.Context(), object{"driver": "qcow2", "file": file, "backing": nil, "read-only": true})
		mustDo(t, err)
		if err := g.standsAlone(t.Context(), node); !errors.Is(err, errReferences) {
			t.Errorf("%s: got %v", image, err)
		}
		mustDo(t, g.unwind(t.Context()))
	}
	requireEmpty(t, d)
}

// TestBlockDevice restores to a loop device and reads it back.
func TestBlockDevice(t *testing.T) {
	d, _ := startDaemon(t, quick)
	want := content(2 << 20)
	source := writeFile(t, filepath.Join(t.TempDir(), "source"), want)
	disk := filepath.Join(t.TempDir(), "disk")
	writeFile(t, disk, make([]byte, 2<<20))
	loop := strings.TrimSpace(run(t, "", "losetup", "--find", "--show", disk))
	t.Cleanup(func() {
		if out, err := try(t, "", "losetup", "--detach", loop); err != nil {
			t.Errorf("detach: %v %s", err, out)
		}
	})
	mustDo(t, d.OpenForWrite(t.Context(), "vda", Disk{Path: loop, Format: FormatRaw}))
	copyIn(t, d, source, "vda")
	mustDo(t, d.CloseExport(t.Context(), "vda"))
	mustDo(t, d.OpenDisk(t.Context(), "vda", Disk{Path: loop, Format: FormatRaw}))
	requireSame(t, copyOut(t, d, "vda"), want)
	mustDo(t, d.CloseExport(t.Context(), "vda"))
	requireEmpty(t, d)
}

// TestRestoreTargets writes to new and existing disks of both formats.
func TestRestoreTargets(t *testing.T) {
	d, _ := startDaemon(t, quick)
	dir := t.TempDir()
	const size = 2<<20 + 512
	first, second := content(size), content(size)
	copy(second, "another beginning")
	sources := []string{writeFile(t, filepath.Join(dir, "first"), first), writeFile(t, filepath.Join(dir, "second"), second)}
	for _, format := range []string{FormatRaw, FormatQcow2} {
		path := filepath.Join(dir, "new, "+format)
		mustDo(t, d.CreateDisk(t.Context(), "vda", NewDisk{path, format, size}))
		copyIn(t, d, sources[0], "vda")
		mustDo(t, d.CloseExport(t.Context(), "vda"))
		compareDisk(t, sources[0], path, format)
		if info, err := os.Stat(path); err != nil || info.Mode() != 0o600 {
			t.Errorf("mode %v, %v", info.Mode(), err)
		}

		mustDo(t, d.OpenForWrite(t.Context(), "vda", Disk{Path: path, Format: format}))
		copyIn(t, d, sources[1], "vda")
		mustDo(t, d.CloseExport(t.Context(), "vda"))
		compareDisk(t, sources[1], path, format)
		requireEmpty(t, d)
	}
}

func compareDisk(t *testing.T, source, path, format string) {
	t.Helper()
	run(t, "", "qemu-img", "compare", "-f", "raw", "-F", format, source, path)
}

// TestInUse meets a disk that a VM has open.
func TestInUse(t *testing.T) {
	d, _ := startDaemon(t, quick)
	for _, format := range []string{FormatRaw, FormatQcow2} {
		path := filepath.Join(t.TempDir(), "disk")
		mustDo(t, d.CreateDisk(t.Context(), "vda", NewDisk{path, format, 1 << 20}))
		mustDo(t, d.CloseExport(t.Context(), "vda"))
		startVM(t, path, format)
		for _, open := range []func() error{
			func() error { return d.OpenForWrite(t.Context(), "vda", Disk{Path: path, Format: format}) },
			func() error { return d.OpenDisk(t.Context(), "vda", Disk{Path: path, Format: format}) },
		} {
			if err := open(); messages.CodeOf(err) != messages.CodeVMRunning {
				t.Errorf("%s: got %v", format, err)
			}
			requireEmpty(t, d)
		}
		mustDo(t, d.OpenDisk(t.Context(), "vda", Disk{Path: path, Format: format, ForceShare: true}))
		mustDo(t, d.CloseExport(t.Context(), "vda"))
	}
}

// startVM starts a VM that has a disk and no guest system.
func startVM(t *testing.T, disk, format string) {
	t.Helper()
	ours, theirs, err := socketPair()
	mustDo(t, err)
	vm, err := proc.Start(proc.Spec{
		Path: "qemu-system-x86_64",
		Args: []string{
			"-accel", "tcg", "-S", "-m", "64", "-nodefaults", "-display", "none",
			"-chardev", "socket,id=qmp,fd=3", "-mon", "chardev=qmp,mode=control",
			"-drive", "if=virtio,format=" + format + ",file=" + disk,
		},
		ExtraFiles: []*os.File{theirs},
	})
	_ = theirs.Close()
	mustDo(t, err)
	t.Cleanup(func() { mustDo(t, vm.Stop()) })
	qmp, err := newMonitor(t.Context(), ours, zerolog.Nop())
	if err != nil {
		t.Fatalf("%v: %v", err, vm.Err())
	}
	t.Cleanup(qmp.close)
}

func TestRefusals(t *testing.T) {
	d, _ := startDaemon(t, quick)
	dir := t.TempDir()
	there := writeFile(t, filepath.Join(dir, "there"), []byte("precious"))
	missing, fifo := filepath.Join(dir, "missing"), filepath.Join(dir, "fifo")
	mustDo(t, unix.Mkfifo(fifo, 0o600))
	encrypted := filepath.Join(dir, "encrypted")
	run(t, "", "qemu-img", "create", "-q", "--object", "secret,id=s,data=x", "-f", "qcow2",
		"-o", "encrypt.format=luks,encrypt.key-secret=s,encrypt.iter-time=10", encrypted, "1M")
	open := func(path, format string) func() error {
		return func() error { return d.OpenDisk(t.Context(), "vda", Disk{Path: path, Format: format}) }
	}
	tests := map[string]struct {
		do   func() error
		want messages.Code
	}{
		"missing disk":     {open(missing, FormatRaw), messages.CodeDiskNotFound},
		"missing target":   {func() error { return d.OpenForWrite(t.Context(), "vda", Disk{Path: missing, Format: FormatRaw}) }, messages.CodeDiskNotFound},
		"not qcow2":        {open(there, FormatQcow2), messages.CodeDiskUnsupported},
		"unknown format":   {open(there, "vmdk"), messages.CodeDiskUnsupported},
		"no format":        {open(there, ""), messages.CodeDiskUnsupported},
		"folder":           {open(dir, FormatRaw), messages.CodeDiskUnsupported},
		"fifo":             {open(fifo, FormatRaw), messages.CodeDiskUnsupported},
		"character device": {open("/dev/zero", FormatRaw), messages.CodeDiskUnsupported},
		"relative":         {open("disk", FormatRaw), messages.CodeDiskUnsupported},
		"not UTF-8":        {open("/tmp/\xff", FormatRaw), messages.CodeDiskUnsupported},
		"encrypted":        {open(encrypted, FormatQcow2), messages.CodeSourceEncrypted},
		"disk is there":    {func() error { return d.CreateDisk(t.Context(), "vda", NewDisk{there, FormatRaw, 512}) }, messages.CodeTargetExists},
		"backup is there":  {func() error { return d.CreateBackup(t.Context(), "vda", NewBackup{Path: there, Size: 512}) }, messages.CodeTargetExists},
		"no folder":        {func() error { return d.CreateBackup(t.Context(), "vda", NewBackup{Path: "/nonexistent/x", Size: 512}) }, messages.CodeTargetWriteFailed},
		"unknown compression": {func() error {
			return d.CreateBackup(t.Context(), "vda", NewBackup{Path: missing, Size: 512, Compression: "lzma", Passphrase: nil})
		}, messages.CodeTargetWriteFailed},
		"empty passphrase": {func() error {
			return d.CreateBackup(t.Context(), "vda", NewBackup{Path: missing, Size: 512, Compression: "", Passphrase: []byte{}})
		}, messages.CodePassphraseMissing},
		"unknown new format": {func() error { return d.CreateDisk(t.Context(), "vda", NewDisk{missing, "vmdk", 512}) }, messages.CodeDiskUnsupported},
		"odd size":           {func() error { return d.CreateDisk(t.Context(), "vda", NewDisk{missing, FormatRaw, 513}) }, messages.CodeInternal},
		"no such export":     {func() error { return d.CloseExport(t.Context(), "vda") }, messages.CodeInternal},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			err := test.do()
			if messages.CodeOf(err) != test.want {
				t.Errorf("got %v, want %s", err, test.want)
			}
			var coded *messages.Error
			if !errors.As(err, &coded) || strings.Count(err.Error(), string(test.want)) != 1 {
				t.Errorf("the code is not said once: %v", err)
			}
			requireEmpty(t, d)
			if _, err := os.Lstat(missing); err == nil {
				t.Error("a file was left")
			}
		})
	}
	if data, err := os.ReadFile(there); err != nil || string(data) != "precious" {
		t.Errorf("an existing file was touched: %q %v", data, err)
	}
}

func TestTwoExports(t *testing.T) {
	d, _ := startDaemon(t, quick)
	dir := t.TempDir()
	for i := range 3 {
		mustDo(t, d.CreateBackup(t.Context(), fmt.Sprint("vd", i), NewBackup{Path: filepath.Join(dir, fmt.Sprint(i)), Size: 1 << 20}))
	}
	again := filepath.Join(dir, "again")
	if err := d.CreateBackup(t.Context(), "vd1", NewBackup{Path: again, Size: 1 << 20}); err == nil {
		t.Error("one export name was given twice")
	}
	if _, err := os.Lstat(again); err == nil {
		t.Error("the file of a refused backup was left")
	}
	for i := range 3 {
		mustDo(t, d.CloseExport(t.Context(), fmt.Sprint("vd", i)))
	}
	requireEmpty(t, d)
}

// mountSmall mounts a memory file system of the given size (bytes). It is detached at the end: the
// kernel lets go of a loop device on it a little later.
func mountSmall(t *testing.T, size int) string {
	t.Helper()
	dir := t.TempDir()
	mustDo(t, unix.Mount("tmpfs", dir, "tmpfs", 0, fmt.Sprintf("size=%d", size)))
	t.Cleanup(func() {
		if err := unix.Unmount(dir, unix.MNT_DETACH); err != nil {
			t.Errorf("unmount: %v", err)
		}
	})
	return dir
}

// fill leaves no free byte in a file system.
func fill(t *testing.T, dir string) {
	t.Helper()
	f, err := os.Create(filepath.Join(dir, "filler"))
	mustDo(t, err)
	defer func() { _ = f.Close() }()
	page := make([]byte, 4096)
	for err == nil {
		_, err = f.Write(page)
	}
	if !errors.Is(err, syscall.ENOSPC) {
		t.Fatal(err)
	}
}

// TestFull runs out of space when a backup is written and when one is created.
func TestFull(t *testing.T) {
	d, _ := startDaemon(t, quick)
	for _, key := range [][]byte{nil, []byte(testPassphrase)} {
		dir := mountSmall(t, 4<<20)
		noise := content(8 << 20)
		source := writeFile(t, filepath.Join(t.TempDir(), "source"), noise)

		full := filepath.Join(dir, "full")
		mustDo(t, d.CreateBackup(t.Context(), "vda", NewBackup{Path: full, Size: 8 << 20, Compression: "", Passphrase: key}))
		if out, err := try(t, "", "nbdcopy", "--sparse=0", "--flush", source, d.uri("vda")); err == nil || !strings.Contains(out, "No space left") {
			t.Errorf("writing: %v %s", err, out)
		}
		// Its metadata may or may not have found room.
		if err := d.CloseExport(t.Context(), "vda"); err != nil && messages.CodeOf(err) != messages.CodeTargetFull {
			t.Errorf("closing: %v", err)
		}
		mustDo(t, os.Remove(full))

		fill(t, dir)
		none := filepath.Join(dir, "none")
		if err := d.CreateBackup(t.Context(), "vda", NewBackup{Path: none, Size: 8 << 20, Compression: "", Passphrase: key}); messages.CodeOf(err) != messages.CodeTargetFull {
			t.Errorf("creating: %v", err)
		}
		if _, err := os.Lstat(none); err == nil {
			t.Error("the file of a failed backup was left")
		}
		requireEmpty(t, d)
	}
}

// TestLastFlush loses the storage under a file system after everything was written to its cache:
// only the final flush can tell.
func TestLastFlush(t *testing.T) {
	d, _ := startDaemon(t, quick)
	for _, compression := range []string{"", "zstd"} {
		for _, key := range [][]byte{nil, []byte(testPassphrase)} {
			under := mountSmall(t, 24<<20)
			disk := filepath.Join(under, "disk")
			writeFile(t, disk, nil)
			mustDo(t, os.Truncate(disk, 64<<20))
			run(t, "", "mkfs.ext4", "-q", "-O", "^has_journal", disk)
			dir := t.TempDir()
			run(t, "", "mount", "-o", "loop", disk, dir)
			t.Cleanup(func() { run(t, "", "umount", dir) })

			path := filepath.Join(dir, "backup")
			mustDo(t, d.CreateBackup(t.Context(), "vda", NewBackup{Path: path, Size: 8 << 20, Compression: compression, Passphrase: key}))
			source := writeFile(t, filepath.Join(t.TempDir(), "source"), content(8<<20))
			run(t, "", "nbdcopy", "--sparse=0", "--no-extents", source, d.uri("vda"))
			fill(t, under)
			err := d.CloseExport(t.Context(), "vda")
			if code := messages.CodeOf(err); code != messages.CodeTargetWriteFailed && code != messages.CodeTargetFull {
				t.Errorf("closing: %v", err)
			}
			requireEmpty(t, d)
		}
	}
}
