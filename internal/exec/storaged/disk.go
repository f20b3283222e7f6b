package storaged

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"unicode/utf8"

	"github.com/nasfleet/nasfleet/messages"
)

// Formats of disks.
const (
	FormatRaw   = "raw"
	FormatQcow2 = "qcow2"
)

// sector is the unit of every size (bytes).
const sector = 512

// Disk is a disk that exists: a regular file or a block device.
type Disk struct {
	Path string
	// Format is FormatRaw or FormatQcow2. It is never guessed: a guest can write a qcow2 header
	// into its raw disk.
	Format string
	// ForceShare reads a disk that another process has open for writing, or opens meanwhile: what
	// is read may be torn. Without it a qcow2 disk stays locked, so that its VM cannot start.
	ForceShare bool
	// Backing is what lies below a qcow2 disk, the nearest first. It alone says so: no name in the header of
	// an image is ever opened, because whoever made the image has chosen it. An image at the end of
	// the chain that names a backing file, and any that has an external data file, is refused.
	Backing []Image
	// Bitmaps begins the names of the dirty bitmaps of a qcow2 disk that its export has as metadata contexts; "" for
	// none. Those that cannot be trusted, because whoever wrote the disk was killed, are left out: see Bitmaps.
	Bitmaps string
}

// Image is a file or block device below a disk, and the format it is in.
type Image struct{ Path, Format string }

// NewDisk is a disk to be made: a regular file of mode 0600.
type NewDisk struct {
	Path   string
	Format string
	// Size of the disk's content, in bytes; a multiple of 512.
	Size int64
}

// OpenDisk exports a disk for reading.
func (d *Daemon) OpenDisk(ctx context.Context, export string, disk Disk) error {
	err := d.build(ctx, export, func(ctx context.Context, g *graph) error {
		if err := checkChain(disk); err != nil {
			return err
		}
		if !disk.ForceShare {
			if err := onFile(ctx, func() error { return checkUnused(disk.Path) }); err != nil {
				return err
			}
		}
		below, err := g.openBacking(ctx, disk)
		if err != nil {
			return err
		}
		top, err := g.openImage(ctx, Image{disk.Path, disk.Format}, below, disk.ForceShare)
		if err != nil {
			return err
		}
		return g.exportBitmaps(ctx, export, top, disk.Bitmaps)
	})
	return classify(ctx, reading, fmt.Sprintf("open disk %q", disk.Path), err)
}

// OpenForWrite exports a disk that exists for writing over it. It refuses a disk that another
// process has open (CodeVMRunning).
func (d *Daemon) OpenForWrite(ctx context.Context, export string, disk Disk) error {
	err := d.build(ctx, export, func(ctx context.Context, g *graph) error {
		if err := checkChain(disk); err != nil {
			return err
		}
		below, err := g.openBacking(ctx, disk)
		if err != nil {
			return err
		}
		image := Image{disk.Path, disk.Format}
		options, err := imageFile(ctx, image, below == nil)
		if err != nil {
			return err
		}
		options["discard"] = "unmap"
		file, err := g.node(ctx, options)
		if err != nil {
			return err
		}
		top, err := g.writeNode(ctx, onNode(image, file, below, object{"discard": "unmap"}), nil)
		if err != nil {
			return err
		}
		if err := g.checkReferences(ctx, image, top, below == nil); err != nil {
			return err
		}
		return g.export(ctx, export, top, true)
	})
	return classify(ctx, overwriting, fmt.Sprintf("open disk %q for writing", disk.Path), err)
}

// CreateDisk makes a disk and exports it for writing. Nothing may be at its path yet
// (CodeTargetExists); after a failure nothing is.
func (d *Daemon) CreateDisk(ctx context.Context, export string, disk NewDisk) error {
	err := d.create(ctx, export, disk.Path, disk.Size, func(ctx context.Context, g *graph) error {
		if disk.Format != FormatRaw && disk.Format != FormatQcow2 {
			return errFormat(disk.Format)
		}
		if disk.Format == FormatRaw {
			if err := os.Truncate(disk.Path, disk.Size); err != nil {
				return err
			}
		}
		file, err := g.node(ctx, fileNode(disk.Path, object{"discard": "unmap"}))
		if err != nil {
			return err
		}
		if disk.Format == FormatQcow2 {
			if err := d.format(ctx, object{"driver": FormatQcow2, "file": file, "size": disk.Size}); err != nil {
				return err
			}
		}
		// The restored disk is as sparse as its content allows.
		top, err := g.writeNode(ctx, object{
			"driver": disk.Format, "file": file, "discard": "unmap", "detect-zeroes": "unmap",
		}, nil)
		if err != nil {
			return err
		}
		return g.export(ctx, export, top, true)
	})
	return classify(ctx, writing, fmt.Sprintf("create disk %q", disk.Path), err)
}

// create makes an empty file and builds a graph on it. If fn fails the file is removed.
func (d *Daemon) create(ctx context.Context, export, path string, size int64, fn func(context.Context, *graph) error) error {
	if size <= 0 || size%sector != 0 {
		return messages.Errorf(messages.CodeInternal, "a disk's size must be a positive multiple of %d bytes, not %d", sector, size)
	}
	if err := checkPath(path); err != nil {
		return err
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if err := onFile(ctx, func() error { return makeFile(path) }); err != nil {
		return err
	}
	if err := d.build(ctx, export, fn); err != nil {
		clean, cancel := d.linger(ctx)
		defer cancel()
		return also(err, onFile(clean, func() error { return os.Remove(path) }))
	}
	return nil
}

// makeFile makes an empty file.
func makeFile(path string) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return messages.Errorf(messages.CodeTargetExists, "%w", err)
	}
	if err != nil {
		return err
	}
	if err := f.Close(); err != nil {
		return also(err, os.Remove(path))
	}
	return nil
}

// fileNode adds to options what every node for a file has. The path is a string of JSON, so that
// commas, spaces and prefixes in it mean only themselves.
func fileNode(path string, options object) object {
	options["driver"] = "file"
	options["filename"] = path
	return options
}

// checkPath refuses a path that cannot be passed on unchanged.
func checkPath(path string) error {
	switch {
	case !filepath.IsAbs(path):
		return messages.Errorf(messages.CodeDiskUnsupported, "the path must be absolute")
	case !utf8.ValidString(path):
		return messages.Errorf(messages.CodeDiskUnsupported, "the path is not UTF-8")
	}
	return nil
}

func errFormat(format string) error {
	return messages.Errorf(messages.CodeDiskUnsupported, "unknown disk format %q", format)
}
