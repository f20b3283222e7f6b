package exec

import (
	"context"
	"path/filepath"
	"strings"

	"github.com/nasfleet/nasfleet/internal/exec/hypervisor"
	"github.com/nasfleet/nasfleet/internal/exec/storaged"
	"github.com/nasfleet/nasfleet/messages"
)

// maxBacking is how many images may lie below a disk: libvirt's own bound on a chain.
const maxBacking = 200

// backing finds out what lies below a disk of a VM that does not run: what its definition says, and where that
// says nothing more, what the headers of the images say, as libvirt does when it starts the VM.
func (e *Executor) backing(ctx context.Context, d hypervisor.Disk) ([]storaged.Image, error) {
	if d.Network != nil {
		return nil, nil // it stands alone, or whoever opens it refuses it
	}
	var stated []storaged.Image
	for _, b := range d.Backing {
		stated = append(stated, storaged.Image{Path: b.Path, Format: b.Format})
	}
	if d.BackingEnds {
		return stated, nil
	}
	pools := func() ([]string, error) { return e.cfg.Hypervisor.PoolFolders(ctx) }
	return e.follow(ctx, storaged.Image{Path: d.Path, Format: d.Format}, stated, pools)
}

// follow continues a chain by the headers of its images. Whoever made an image has written its header, and may
// want a file of this host read that he may not: a name in it is followed only to a regular file beside
// the image, or to what lies in one of the host's folders for it (AllowPaths, and those that more returns).
func (e *Executor) follow(ctx context.Context, top storaged.Image, stated []storaged.Image, more func() ([]string, error)) ([]storaged.Image, error) {
	chain := append([]storaged.Image{top}, stated...)
	for {
		last := chain[len(chain)-1]
		if last.Format != storaged.FormatQcow2 {
			return chain[1:], nil
		}
		if len(chain) > maxBacking {
			return nil, messages.Errorf(messages.CodeDiskUnsupported, "more than %d images lie below %s, or they go round in a ring", maxBacking, top.Path)
		}
		below, err := onHost(ctx, messages.CodeSourceReadFailed, "look at "+last.Path, func() (storaged.Image, error) { return e.below(last, more) })
		if err != nil {
			return nil, err
		}
		if below.Path == "" {
			return chain[1:], nil
		}
		chain = append(chain, below)
	}
}

// below returns what the header of an image says lies below it, if that may be read; nothing for an image at
// the end of its chain.
func (e *Executor) below(image storaged.Image, more func() ([]string, error)) (storaged.Image, error) {
	if _, err := lookAt(image.Path); err != nil {
		return storaged.Image{}, err
	}
	below, err := storaged.Below(image.Path)
	if err != nil || below.Path == "" {
		return storaged.Image{}, err
	}
	// QEMU takes what stands before the first colon for a protocol (nbd:, json:), unless a slash comes before it.
	if i := strings.IndexAny(below.Path, ":/"); i >= 0 && below.Path[i] == ':' {
		return storaged.Image{}, messages.Errorf(messages.CodeDiskUnsupported, "the header of %s names %q as its backing file, which is no path", image.Path, below.Path).
			WithHint("Back the VM up while it runs, or move the image to a file.")
	}
	if !filepath.IsAbs(below.Path) {
		below.Path = filepath.Join(filepath.Dir(image.Path), below.Path)
	}
	return below, e.checkBelow(image, below, more)
}

func (e *Executor) checkBelow(image, below storaged.Image, more func() ([]string, error)) error {
	real, err := resolve(below.Path)
	if err != nil {
		return messages.Errorf(messages.CodeDiskNotFound, "backing file %s of %s: %w", below.Path, image.Path, err)
	}
	beside, err := resolve(image.Path)
	if err != nil {
		return messages.Errorf(messages.CodeDiskNotFound, "image %s: %w", image.Path, err)
	}
	isFile, err := lookAt(real)
	if err != nil {
		return err
	}
	if isFile && filepath.Dir(real) == filepath.Dir(beside) || withinAny(real, e.cfg.AllowPaths) {
		return nil
	}
	if isFile && more != nil {
		folders, err := more()
		if err != nil || withinAny(real, folders) {
			return err
		}
	}
	return messages.Errorf(messages.CodePathNotAllowed, "the header of %s names %s as its backing file, which lies elsewhere on this host", image.Path, real).
		WithHint("If it is right, say so where no image can: <backingStore> in the VM's definition, or hostworker --allow-path.")
}

// withinAny says whether a path without links lies in one of some folders.
func withinAny(real string, folders []string) bool {
	for _, dir := range folders {
		if dir, err := resolve(dir); err == nil && within(real, dir) {
			return true
		}
	}
	return false
}
