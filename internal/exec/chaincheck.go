package exec

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/nasfleet/nasfleet/internal/exec/copier"
	"github.com/nasfleet/nasfleet/internal/exec/digest"
	"github.com/nasfleet/nasfleet/internal/exec/nbd"
	"github.com/nasfleet/nasfleet/messages"
)

// chainCheck compares what a disk's chain of backups shows with the digests of each link that it
// comes from. It is a copier.Checker.
//
// A link's digest of a block covers the pieces that the link holds of it. Those that a newer link
// hides are not in what is shown, so they are read from the link itself.
type chainCheck struct {
	size int64
	// links are the chain's, the newest first. The last one is whole, unless it is looked at alone.
	links   []checkedLink
	buffers sync.Pool
}

// checkedLink is one disk of one backup of a chain.
type checkedLink struct {
	own     reader
	digests *digest.Reader
	// incremental is false for a whole disk; has then counts for nothing.
	incremental bool
	// has says which pieces of each block the link holds.
	has []digest.Part
}

// reader reads a link's own content.
type reader interface {
	ReadAt(ctx context.Context, p []byte, off int64) error
}

// newChainCheck checks a disk of size bytes.
func newChainCheck(size int64, links ...checkedLink) *chainCheck {
	return &chainCheck{size: size, links: links, buffers: sync.Pool{New: func() any { return new([digest.BlockSize]byte) }}}
}

// Size implements copier.Checker.
func (c *chainCheck) Size() int64 { return c.size }

// Check implements copier.Checker. It goes down the chain until nothing of the block is left over.
func (c *chainCheck) Check(ctx context.Context, index int64, block []byte) error {
	n := min(digest.BlockSize, c.size-index*digest.BlockSize)
	whole := digest.Whole(n)
	buf := c.buffers.Get().(*[digest.BlockSize]byte)
	defer c.buffers.Put(buf)
	var hidden digest.Part // by the links above
	for _, l := range c.links {
		has := whole
		if l.incremental {
			has = l.has[index] & whole
		}
		own, err := l.content(ctx, index, block, buf[:n], has, hidden)
		if err != nil {
			return err
		}
		if l.incremental {
			err = l.digests.CheckPart(index, own, has)
		} else {
			err = l.digests.Check(ctx, index, own)
		}
		if err != nil {
			return err
		}
		if hidden |= has; hidden == whole {
			return nil
		}
	}
	return nil
}

// content returns what the link holds of a block: as it is shown where it is, zeroes for what the
// link does not have.
func (l checkedLink) content(ctx context.Context, index int64, shown, buf []byte, has, hidden digest.Part) ([]byte, error) {
	whole := digest.Whole(int64(len(buf)))
	if has == whole && hidden&whole == 0 && shown != nil {
		return shown, nil
	}
	clear(buf)
	for i := range digest.BlockSize / digest.PieceSize {
		start, end := i*digest.PieceSize, min((i+1)*digest.PieceSize, len(buf))
		switch bit := digest.Part(1) << i; {
		case has&bit == 0:
		case hidden&bit != 0:
			off := index*digest.BlockSize + int64(start)
			if err := l.own.ReadAt(ctx, buf[start:end], off); err != nil {
				return nil, messages.EnsureCode(messages.CodeSourceReadFailed, err)
			}
		case shown != nil:
			copy(buf[start:end], shown[start:end])
		}
	}
	return buf, nil
}

// pieces asks a link, as OpenBackup exports it, which pieces of each block it holds.
func pieces(ctx context.Context, c *nbd.Conn) ([]digest.Part, error) {
	has := make([]digest.Part, (c.Size()+digest.BlockSize-1)/digest.BlockSize)
	for off := int64(0); off < c.Size(); {
		list, err := c.BlockStatus(ctx, nbd.AllocationDepth, off, min(piecesAtOnce, c.Size()-off))
		if err != nil {
			return nil, messages.EnsureCode(messages.CodeSourceReadFailed, err)
		}
		for _, e := range list {
			off = e.Offset + e.Length
			if e.Flags == 0 {
				continue
			}
			for i := e.Offset / digest.PieceSize; i*digest.PieceSize < off; i++ {
				has[i/piecesOfBlock] |= 1 << (i % piecesOfBlock)
			}
		}
	}
	return has, nil
}

const (
	// piecesAtOnce is how much of a link is asked for at a time, in bytes.
	piecesAtOnce  = 256 << 20
	piecesOfBlock = digest.BlockSize / digest.PieceSize
)

// diskCheck is what a disk's content is compared with, and what is open for that.
type diskCheck struct {
	copier.Checker
	open []io.Closer
}

// openCheck opens the digests of links of a disk, and the exports of their own content. Each comparison is
// bounded by the timeout.
func openCheck(ctx context.Context, timeout time.Duration, disk storedDisk, links []storedLink, export func(link int) endpoint) (*diskCheck, error) {
	c := &diskCheck{}
	if err := c.fill(ctx, disk, links, export); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	c.Checker = patientChecker{c.Checker, timeout}
	return c, nil
}

func (c *diskCheck) fill(ctx context.Context, disk storedDisk, links []storedLink, export func(link int) endpoint) error {
	var all []checkedLink
	for i, l := range links {
		digests, err := disk.openDigests(ctx, l)
		if err != nil {
			return err
		}
		c.open = append(c.open, digests)
		if len(links) == 1 && !l.incremental {
			c.Checker = digests
			return nil
		}
		own, err := dial(ctx, export(i), messages.CodeSourceReadFailed, nbd.AllocationDepth)
		if err != nil {
			return fmt.Errorf("disk %s: %w", disk.name, err)
		}
		c.open = append(c.open, own)
		if own.Size() != disk.size {
			return errImageSize(disk, own.Size())
		}
		checked := checkedLink{own: own, digests: digests, incremental: l.incremental}
		if l.incremental {
			if checked.has, err = pieces(ctx, own); err != nil {
				return fmt.Errorf("disk %s: %w", disk.name, err)
			}
		}
		all = append(all, checked)
	}
	c.Checker = newChainCheck(disk.size, all...)
	return nil
}

// Close closes what is open. It may be called again.
func (c *diskCheck) Close() error {
	var errs []error
	for _, o := range c.open {
		errs = append(errs, o.Close())
	}
	c.open = nil
	return errors.Join(errs...)
}

// errImageSize: the manifest, the digests and the image come from the repository, and must agree.
func errImageSize(disk storedDisk, size int64) error {
	return messages.Errorf(messages.CodeBackupCorrupt, "disk %s: its image has %d bytes, the manifest says %d", disk.name, size, disk.size)
}
