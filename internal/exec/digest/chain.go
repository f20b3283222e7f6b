package digest

import (
	"context"
	"errors"
)

// Chain is the digests of one disk in a chain of backups, the newest first. The last one is of a whole disk,
// the others are of incrementals. Its methods may be called from any goroutine.
type Chain []*Reader

// Same says whether the digests prove that the chain shows a block to have this content; a nil block stands for
// zeroes. False says no more than that they do not: a record of some pieces of a block proves nothing about
// the whole.
func (c Chain) Same(ctx context.Context, index int64, block []byte) (bool, error) {
	for i, r := range c {
		_, kind, err := r.Get(index)
		if err != nil {
			return false, err
		}
		if kind == Absent && i < len(c)-1 {
			continue // as the older ones have it
		}
		err = r.Check(ctx, index, block)
		if m := (*Mismatch)(nil); errors.As(err, &m) {
			return false, nil
		}
		return err == nil, err
	}
	return false, nil
}

// Close closes them all.
func (c Chain) Close() error {
	var errs []error
	for _, r := range c {
		errs = append(errs, r.Close())
	}
	return errors.Join(errs...)
}
