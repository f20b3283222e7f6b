package bus

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/nasfleet/nasfleet/messages"
)

// Announce says that a host is alive. It must be said again well within Layout.HostTTL, and is
// tried once.
func (b *Bus) Announce(ctx context.Context, h messages.HostInfo) error {
	if err := checkHost(h.Zone, h.Host); err != nil {
		return err
	}
	m, err := putMsg(messages.HostBucket, hostKey(h), h)
	if err != nil {
		return err
	}
	return b.storeOnce(ctx, m)
}

// Withdraw says that a host has stopped.
func (b *Bus) Withdraw(ctx context.Context, zone, host string) error {
	if err := checkHost(zone, host); err != nil {
		return err
	}
	return b.storeOnce(ctx, deleteMsg(messages.HostBucket, messages.HostKey(zone, host)))
}

// Hosts returns the hosts that are alive, by zone and name.
func (b *Bus) Hosts(ctx context.Context) ([]messages.HostInfo, error) {
	var hosts []messages.HostInfo
	err := b.list(ctx, messages.HostBucket, ">", func(key string, value []byte) {
		if h, ok := decodeValue(b, key, value, hostKey); ok {
			hosts = append(hosts, h)
		}
	})
	slices.SortFunc(hosts, func(x, y messages.HostInfo) int {
		return cmp.Or(cmp.Compare(x.Zone, y.Zone), cmp.Compare(x.Host, y.Host))
	})
	return hosts, err
}

// Host returns one host, or ErrNotFound where it is not alive.
func (b *Bus) Host(ctx context.Context, zone, host string) (messages.HostInfo, error) {
	if err := checkHost(zone, host); err != nil {
		return messages.HostInfo{}, err
	}
	key := messages.HostKey(zone, host)
	m, err := b.last(ctx, bucketStream(messages.HostBucket), BucketSubject(messages.HostBucket, key))
	if err != nil && !errors.Is(err, ErrNotFound) {
		return messages.HostInfo{}, fmt.Errorf("host %s: %w", key, err)
	}
	if err == nil && len(m.data) > 0 { // a marker of Withdraw has no data
		if h, ok := decodeValue(b, key, m.data, hostKey); ok {
			return h, nil
		}
	}
	return messages.HostInfo{}, fmt.Errorf("host %s: %w", key, ErrNotFound)
}

func hostKey(h messages.HostInfo) string { return messages.HostKey(h.Zone, h.Host) }
