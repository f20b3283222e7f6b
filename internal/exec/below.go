package exec

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/nasfleet/nasfleet/internal/exec/digest"
	"github.com/nasfleet/nasfleet/internal/exec/repository"
	"github.com/nasfleet/nasfleet/messages"
)

// below finds the files of what an incremental of some disks continues.
func (t *taking) below(ctx context.Context, links []repository.Backup, names []string) ([]storedDisk, error) {
	chain := &storedBackup{keys: t.linkKeys}
	for i := range links {
		chain.chain = append(chain.chain, &links[i])
	}
	var disks []repository.Disk
	for _, d := range links[0].Manifest.Disks {
		if slices.Contains(names, d.Name) {
			disks = append(disks, d)
		}
	}
	return chain.disks(ctx, disks)
}

// checkBelow says why the digests of what an incremental would continue cannot be used. They are needed when
// the guest's disks are open already.
func (t *taking) checkBelow(ctx context.Context, links []repository.Backup, names []string) (*full, error) {
	disks, err := t.below(ctx, links, names)
	for _, d := range disks {
		var b *patientBelow
		if b, err = openBelow(ctx, t.e.cfg.StallTimeout, d); err != nil {
			break
		}
		if err = b.Close(); err != nil {
			break
		}
	}
	if repository.Unusable(err) {
		return fullBecause(messages.FullParentBroken, "%v", err), nil
	}
	return nil, err
}

// openBelow opens what an incremental of a disk is laid on.
func (t *taking) openBelow(ctx context.Context, d *takenDisk) (*patientBelow, error) {
	disks, err := t.below(ctx, t.links, []string{d.name})
	if err != nil {
		return nil, err
	}
	b, err := openBelow(ctx, t.e.cfg.StallTimeout, disks[0])
	if repository.Unusable(err) {
		return nil, t.chainGone(err)
	}
	return b, err
}

// patientBelow is a copier.Below: the digests of a disk's chain. They lie on the repository, whose reading
// may hang.
type patientBelow struct {
	digest.Chain
	timeout time.Duration
}

func openBelow(ctx context.Context, timeout time.Duration, d storedDisk) (*patientBelow, error) {
	b := &patientBelow{timeout: timeout}
	for _, l := range d.links {
		r, err := d.openDigests(ctx, l)
		if err != nil {
			return nil, errors.Join(err, b.Close())
		}
		b.Chain = append(b.Chain, r)
	}
	return b, nil
}

// Same implements copier.Below, in bounded time.
func (b *patientBelow) Same(ctx context.Context, index int64, block []byte) (bool, error) {
	return bound(ctx, b.timeout, messages.CodeRepositoryLost, "read the digests", func() (bool, error) {
		return b.Chain.Same(ctx, index, block)
	})
}
