package storaged

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"

	"github.com/nasfleet/nasfleet/messages"
)

// checkChain refuses a path that cannot be passed on, and an image below one that is no qcow2.
func checkChain(disk Disk) error {
	if err := checkPath(disk.Path); err != nil {
		return err
	}
	above := disk.Format
	for _, image := range disk.Backing {
		if above != FormatQcow2 {
			return messages.Errorf(messages.CodeDiskUnsupported, "an image of format %q cannot lie on %q", above, image.Path)
		}
		above = image.Format
	}
	return nil
}

// openBacking opens what lies below a disk for reading, and returns the nearest node; nil for nothing.
func (g *graph) openBacking(ctx context.Context, disk Disk) (below any, err error) {
	for i := len(disk.Backing) - 1; i >= 0; i-- {
		if below, err = g.openImage(ctx, disk.Backing[i], below, disk.ForceShare); err != nil {
			return nil, fmt.Errorf("backing file %q: %w", disk.Backing[i].Path, err)
		}
	}
	return below, nil
}

// openImage opens an image for reading on what lies below it.
func (g *graph) openImage(ctx context.Context, image Image, below any, share bool) (string, error) {
	options, err := imageFile(ctx, image, below == nil)
	if err != nil {
		return "", err
	}
	options["read-only"], options["force-share"] = true, share
	file, err := g.node(ctx, options)
	if err != nil {
		return "", err
	}
	node, err := g.node(ctx, onNode(image, file, below, object{"read-only": true, "force-share": share}))
	if err != nil {
		return "", err
	}
	return node, g.checkReferences(ctx, image, node, below == nil)
}

// onNode adds to options what makes a node of an image. QEMU is told what lies below, or that nothing
// does, and so opens no name in the image's header.
func onNode(image Image, file string, below any, options object) object {
	options["driver"], options["file"] = image.Format, file
	if image.Format == FormatQcow2 {
		options["backing"] = below
	}
	return options
}

// imageFile looks at an image that exists and returns the options of the node at its bottom. last says
// that nothing lies below it.
func imageFile(ctx context.Context, image Image, last bool) (object, error) {
	return ofFile(ctx, func() (object, error) { return lookAtImage(image, last) })
}

func lookAtImage(image Image, last bool) (object, error) {
	if image.Format != FormatRaw && image.Format != FormatQcow2 {
		return nil, errFormat(image.Format)
	}
	if err := checkPath(image.Path); err != nil {
		return nil, err
	}
	info, err := os.Stat(image.Path)
	if err != nil {
		return nil, err
	}
	options := fileNode(image.Path, object{})
	switch mode := info.Mode(); {
	case mode.IsRegular():
	case mode.Type() == fs.ModeDevice:
		options["driver"] = "host_device"
	default:
		return nil, messages.Errorf(messages.CodeDiskUnsupported, "it is neither a regular file nor a block device")
	}
	if image.Format != FormatQcow2 {
		return options, nil
	}
	// Looked at before it is opened too: opening a data file can have effects of its own.
	header, err := readHeader(image.Path)
	if err == nil {
		err = checkQcow2(header)
	}
	if !last && errors.Is(err, errBacking) {
		err = nil
	}
	return options, unsupported(err)
}

// checkReferences looks at what the daemon really opened: the file may have changed since its
// header was read.
func (g *graph) checkReferences(ctx context.Context, image Image, node string, last bool) error {
	if image.Format != FormatQcow2 {
		return nil
	}
	err := g.standsAlone(ctx, node)
	if !last && errors.Is(err, errBacking) {
		return nil
	}
	return unsupported(err)
}

func unsupported(err error) error {
	if errors.Is(err, errReferences) {
		return messages.Errorf(messages.CodeDiskUnsupported, "%w", err).
			WithHint("Convert the image into one that stands alone (qemu-img convert), or back it up as the disk of a VM that runs.")
	}
	return err
}
