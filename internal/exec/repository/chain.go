package repository

import (
	"context"
	"slices"

	"github.com/nasfleet/nasfleet/messages"
)

// Chain returns a backup and all that it continues, the newest first and a full one last. A chain
// that is not whole is CodeChainBroken; the backup itself is judged as by Find.
func (r *Repository) Chain(ctx context.Context, ref messages.BackupRef) ([]*Backup, error) {
	b, err := r.Find(ctx, ref)
	if err != nil {
		return nil, err
	}
	chain := []*Backup{b}
	for b.Manifest.Parent != "" {
		child := b.Manifest
		ref.ID = child.Parent
		if b, err = r.Find(ctx, ref); err != nil {
			if !Unusable(err) {
				return nil, err
			}
			return nil, errChain(child, "%w", err)
		}
		if err := b.Manifest.carries(child); err != nil {
			return nil, err
		}
		chain = append(chain, b)
	}
	return chain, nil
}

// Unusable tells the errors of Find for a backup that is no good from those for a repository that cannot be read.
func Unusable(err error) bool {
	return slices.Contains([]messages.Code{
		messages.CodeBackupNotFound, messages.CodeBackupCorrupt, messages.CodeUnsupportedVersion, messages.CodeInvalidMessage,
	}, messages.CodeOf(err))
}

func errChain(child Manifest, format string, args ...any) error {
	return messages.Errorf(messages.CodeChainBroken, "backup "+child.ID+" continues "+child.Parent+": "+format, args...).
		WithHint("Restore a backup whose chain is whole (publisher show tells the parent), and take a full one, which starts a new chain.")
}

// carries says whether a backup is one that the child can continue.
func (m Manifest) carries(child Manifest) error {
	if child.Links != max(m.Links, 1)+1 {
		// Also what keeps a chain from being a circle.
		return errChain(child, "they disagree on their places in the chain, %d and %d", m.Links, child.Links)
	}
	if m.UUID != child.UUID || m.Encryption.LUKS != child.Encryption.LUKS {
		return errChain(child, "they are not of one VM, or not both encrypted")
	}
	for _, d := range child.Disks {
		if !d.Incremental {
			continue
		}
		i := slices.IndexFunc(m.Disks, func(p Disk) bool { return p.Name == d.Name })
		if i < 0 || m.Disks[i].VirtualBytes != d.VirtualBytes {
			return errChain(child, "it has no disk %s of the same size", d.Name)
		}
	}
	return nil
}
