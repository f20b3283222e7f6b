package storaged

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/nasfleet/nasfleet/messages"
)

// Cluster sizes of the backups' qcow2 (bytes), the unit of compression and of allocation: QEMU's
// default, and a larger one for compressed backups. QEMU compresses each cluster by itself, and on
// 256 KiB zstd is a fifth faster than on 64 KiB and packs a system's files 8 % smaller; with what
// QEMU does for each cluster a backup takes a quarter less time. Still larger ones gain nothing more.
const (
	clusterSize           = 64 << 10
	compressedClusterSize = 256 << 10
)

// ContainerSuffix is added to the name of a backup's export for the export of its qcow2 bytes.
const ContainerSuffix = ".qcow2"

// NewBackup is a backup file to be written.
type NewBackup struct {
	Path string
	// Size of the disk's content, in bytes; a multiple of 512.
	Size int64
	// Compression is "", "zstd" or "zlib".
	Compression string
	// Passphrase opens the LUKS container; nil means that there is none. It is not kept.
	Passphrase []byte
	// Recovery opens the container as well, by a key slot of its own; nil means that there is none.
	Recovery []byte
}

// ClusterSize returns the size of the qcow2's clusters in bytes.
func (b NewBackup) ClusterSize() int64 {
	if b.Compression != "" {
		return compressedClusterSize
	}
	return clusterSize
}

// Backup is a backup file that exists.
type Backup struct {
	Path string
	// Passphrase opens the LUKS container; nil means that the file is a bare qcow2.
	Passphrase []byte
}

// CreateBackup makes a backup file of mode 0600 and exports it for writing. Nothing may be at its
// path yet (CodeTargetExists); after a failure nothing is.
//
// With compression each cluster can be written only once and must be written whole, by one aligned
// request (the last one may be cut off by the end of the disk): QEMU answers a second write with
// EIO. Writing zeroes, in any way, costs next to nothing.
func (d *Daemon) CreateBackup(ctx context.Context, export string, b NewBackup) error {
	if err := errors.Join(checkPassphrase(b.Passphrase), checkPassphrase(b.Recovery)); err != nil {
		return err
	}
	err := d.create(ctx, export, b.Path, b.Size, func(ctx context.Context, g *graph) error {
		base, err := g.ownFile(ctx, b.Path, object{"discard": "unmap"})
		if err != nil {
			return err
		}
		if b.Passphrase != nil {
			if base, err = g.newContainer(ctx, base, b.Passphrase, b.Recovery); err != nil {
				return err
			}
		}
		top, err := g.newQcow2(ctx, base, b)
		if err != nil {
			return err
		}
		return g.export(ctx, export, top, true)
	})
	return classify(ctx, writing, fmt.Sprintf("create backup %q", b.Path), err)
}

// newContainer makes an empty LUKS container in a node, which grows as it is written to.
func (g *graph) newContainer(ctx context.Context, file string, passphrase, recovery []byte) (node string, err error) {
	err = g.withSecret(ctx, passphrase, func(secret string) error {
		format := object{
			"driver": "luks", "file": file, "size": 0,
			"key-secret": secret, "iter-time": g.d.iterTime.Milliseconds(),
		}
		if err := timed(func() error { return g.d.format(ctx, format) }); err != nil {
			return err
		}
		node, err = g.node(ctx, object{"driver": "luks", "file": file, "key-secret": secret, "discard": "unmap"})
		if err != nil || recovery == nil {
			return err
		}
		return g.addKey(ctx, node, recoverySlot, recovery)
	})
	return node, err
}

// newQcow2 makes an image and returns the node to write to.
//
// The compress filter takes whole clusters only, so that QEMU refuses it for a disk that does not
// end on one. Such an image is made longer, written through a window of the right size, and cut
// when it is closed.
func (g *graph) newQcow2(ctx context.Context, base string, b NewBackup) (string, error) {
	format := object{"driver": FormatQcow2, "file": base, "size": b.Size, "cluster-size": b.ClusterSize()}
	var cut func(ctx context.Context, node string) error
	if b.Compression != "" {
		format["compression-type"] = b.Compression
		if over := b.Size % b.ClusterSize(); over != 0 {
			format["size"] = b.Size - over + b.ClusterSize()
			cut = func(ctx context.Context, node string) error {
				return g.d.qmp.execute(ctx, "block_resize", object{"node-name": node, "size": b.Size}, nil)
			}
		}
	}
	if err := g.d.format(ctx, format); err != nil {
		return "", err
	}
	top, err := g.writeNode(ctx, object{
		"driver": FormatQcow2, "file": base, "discard": "unmap", "detect-zeroes": "unmap",
	}, cut)
	if err != nil || b.Compression == "" {
		return top, err
	}
	if top, err = g.node(ctx, object{"driver": "compress", "file": top, "discard": "unmap"}); err != nil || cut == nil {
		return top, err
	}
	return g.node(ctx, object{"driver": "raw", "file": top, "size": b.Size, "discard": "unmap"})
}

// OpenBackup exports a backup's content for reading as export, and the bytes of its qcow2, out of
// the LUKS container, as export+ContainerSuffix: Check needs no passphrase. Of an incremental the
// content is what it holds itself, zeroes elsewhere; the metadata context qemu:allocation-depth
// tells the two apart. A backup that refers
// to any other file of this host is refused (CodeBackupCorrupt), and so is one that is encrypted
// or not against expectation: an attacker on the NAS must not pass a plain file off as ours.
func (d *Daemon) OpenBackup(ctx context.Context, export string, b Backup) error {
	err := d.build(ctx, export, func(ctx context.Context, g *graph) error {
		if err := onFile(ctx, func() error { return checkBackup(b) }); err != nil {
			return err
		}
		base, top, err := g.openBackup(ctx, b)
		if err != nil {
			return err
		}
		if err := g.export(ctx, export+ContainerSuffix, base, false); err != nil {
			return err
		}
		return g.exportDepths(ctx, export, top)
	})
	return classify(ctx, opening, fmt.Sprintf("open backup %q", b.Path), err)
}

// openBackup adds the nodes of a backup's file: that of the bytes of its qcow2, and that of its
// own content.
func (g *graph) openBackup(ctx context.Context, b Backup) (base, top string, err error) {
	if base, err = g.ownFile(ctx, b.Path, object{"read-only": true}); err != nil {
		return "", "", err
	}
	if b.Passphrase != nil {
		if base, err = g.openContainer(ctx, base, b.Passphrase); err != nil {
			return "", "", err
		}
	}
	if top, err = g.node(ctx, object{"driver": FormatQcow2, "file": base, "backing": nil, "read-only": true}); err != nil {
		return "", "", err
	}
	return base, top, g.standsAlone(ctx, top)
}

// checkPassphrase refuses an empty passphrase, which LUKS would take.
func checkPassphrase(passphrase []byte) error {
	if passphrase != nil && len(passphrase) == 0 {
		return messages.Errorf(messages.CodePassphraseMissing, "the passphrase is empty")
	}
	return nil
}

func checkBackup(b Backup) error {
	if err := checkPassphrase(b.Passphrase); err != nil {
		return err
	}
	if err := checkPath(b.Path); err != nil {
		return err
	}
	info, err := os.Lstat(b.Path)
	if err != nil {
		return err
	}
	if !info.Mode().IsRegular() {
		return messages.Errorf(messages.CodeBackupCorrupt, "it is not a regular file")
	}
	header, err := readHeader(b.Path)
	if err != nil {
		return err
	}
	if b.Passphrase != nil {
		return checkLUKS(header)
	}
	if checkLUKS(header) == nil {
		return messages.Errorf(messages.CodePassphraseMissing, "the backup is encrypted").
			WithHint("Give the passphrase the backup was taken with.")
	}
	return checkQcow2(header)
}

func (g *graph) openContainer(ctx context.Context, file string, passphrase []byte) (node string, err error) {
	err = g.withSecret(ctx, passphrase, func(secret string) error {
		node, err = g.node(ctx, object{"driver": "luks", "file": file, "key-secret": secret, "read-only": true})
		return err
	})
	return node, err
}

// ownFile adds the node of a file in a repository. It takes no locks: such a file has one writer,
// the one that made it, and locks are what network file systems do worst.
func (g *graph) ownFile(ctx context.Context, path string, options object) (string, error) {
	options["locking"] = "off"
	node, err := g.node(ctx, fileNode(path, options))
	if err != nil {
		return "", fmt.Errorf("open the file: %w", err)
	}
	return node, nil
}
