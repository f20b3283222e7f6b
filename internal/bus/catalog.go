package bus

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/nasfleet/nasfleet/messages"
	"github.com/nats-io/nats.go/jetstream"
)

// markerAge is how long the marker of a removed backup stays, for those who watch the bucket.
const markerAge = 24 * time.Hour

// CatalogFilter selects backups. An empty name is all of them.
type CatalogFilter struct {
	Zone string
	Host string
	VM   string
}

// PutBackup enters a backup in the catalog, or replaces its entry. It is tried until it is stored
// or ctx ends.
func (b *Bus) PutBackup(ctx context.Context, e messages.CatalogEntry) error {
	if err := checkBackup(e.Zone, e.Host, e.ID); err != nil {
		return err
	}
	m, err := putMsg(messages.CatalogBucket, catalogKey(e), e)
	if err != nil {
		return err
	}
	return b.store(ctx, m, 0)
}

// RemoveBackup takes a backup out of the catalog; that it was not there is not an error. It is
// tried until that is stored or ctx ends.
func (b *Bus) RemoveBackup(ctx context.Context, zone, host, id string) error {
	if err := checkBackup(zone, host, id); err != nil {
		return err
	}
	m := deleteMsg(messages.CatalogBucket, messages.CatalogKey(zone, host, id))
	m.Header.Set(jetstream.MsgTTLHeader, markerAge.String())
	return b.store(ctx, m, 0)
}

// Backups returns the catalog's entries, oldest first (a ULID begins with its time).
func (b *Bus) Backups(ctx context.Context, f CatalogFilter) ([]messages.CatalogEntry, error) {
	if err := checkFilter(f.Zone, f.Host, ""); err != nil {
		return nil, err
	}
	return b.backups(ctx, messages.CatalogKey(orAny(f.Zone), orAny(f.Host), "*"), f.VM)
}

// Backup returns the entries of one backup, or ErrNotFound. There is one, that of the host that took
// it, unless another host has entered a backup of that id too.
func (b *Bus) Backup(ctx context.Context, id string) ([]messages.CatalogEntry, error) {
	if err := messages.CheckID("backup id", id); err != nil {
		return nil, err
	}
	found, err := b.backups(ctx, messages.CatalogKey("*", "*", id), "")
	if err == nil && len(found) == 0 {
		err = fmt.Errorf("backup %s: %w", id, ErrNotFound)
	}
	return found, err
}

func (b *Bus) backups(ctx context.Context, filter, vm string) ([]messages.CatalogEntry, error) {
	var entries []messages.CatalogEntry
	err := b.list(ctx, messages.CatalogBucket, filter, func(key string, value []byte) {
		e, ok := decodeValue(b, key, value, catalogKey)
		if ok && (vm == "" || e.VM == vm) {
			entries = append(entries, e)
		}
	})
	slices.SortFunc(entries, func(x, y messages.CatalogEntry) int {
		return cmp.Or(cmp.Compare(x.ID, y.ID), cmp.Compare(x.Zone, y.Zone), cmp.Compare(x.Host, y.Host))
	})
	return entries, err
}

func catalogKey(e messages.CatalogEntry) string { return messages.CatalogKey(e.Zone, e.Host, e.ID) }
