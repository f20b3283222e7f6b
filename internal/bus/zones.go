package bus

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/nasfleet/nasfleet/messages"
)

// EnsureZoneBucket creates the bucket of the zones' settings where it is missing. Nothing in it can be
// deleted: a passphrase that is lost is lost with every backup that it opens.
func (b *Bus) EnsureZoneBucket(ctx context.Context) error {
	return b.ensure(ctx, b.zoneBucket())
}

// zoneBucket is the bucket of the management side alone; hosts are given no right to it.
func (b *Bus) zoneBucket() jetstream.StreamConfig {
	return jetstream.StreamConfig{
		Name:              bucketStream(messages.ZoneBucket),
		Description:       "nasfleet: settings and sealed passphrases of the zones",
		Subjects:          []string{BucketSubject(messages.ZoneBucket, ">")},
		Retention:         jetstream.LimitsPolicy,
		Storage:           jetstream.FileStorage,
		Duplicates:        b.cfg.Layout.DedupWindow,
		Replicas:          b.cfg.Layout.Replicas,
		MaxMsgsPerSubject: 1,
		Discard:           jetstream.DiscardNew,
		AllowDirect:       true,
		DenyDelete:        true,
		DenyPurge:         true,
	}
}

// ZoneSettings returns what is set for a zone, and a revision for PutZoneSettings. A zone that nothing
// was ever set for has the defaults, and the revision 0.
func (b *Bus) ZoneSettings(ctx context.Context, zone string) (messages.ZoneSettings, uint64, error) {
	none := messages.ZoneSettings{Zone: zone}
	if err := messages.CheckLabel("zone", zone); err != nil {
		return none, 0, err
	}
	s, revision, err := zoneValue(ctx, b, messages.ZoneKey(zone), zoneKey)
	if errors.Is(err, ErrNotFound) {
		return none, 0, nil
	}
	if err == nil {
		err = s.Validate()
	}
	return s, revision, err
}

// PutZoneSettings stores a zone's settings. Unless those of the revision are still the last ones it is
// ErrConflict, and nothing changes.
func (b *Bus) PutZoneSettings(ctx context.Context, s messages.ZoneSettings, revision uint64) error {
	if err := s.Validate(); err != nil {
		return err
	}
	return b.putZoneValue(ctx, messages.ZoneKey(s.Zone), s, revision)
}

// AllZoneSettings returns the settings of every zone that something was set for, by name. With those that can be read
// comes an error (ErrUnreadable) that names the others: such a zone has not the defaults.
func (b *Bus) AllZoneSettings(ctx context.Context) ([]messages.ZoneSettings, error) {
	var zones []messages.ZoneSettings
	var unreadable []string
	err := b.list(ctx, messages.ZoneBucket, "*", func(key string, value []byte) {
		s, ok := decodeValue(b, key, value, zoneKey)
		if !ok || s.Validate() != nil {
			unreadable = append(unreadable, key)
			return
		}
		zones = append(zones, s)
	})
	if errors.Is(err, jetstream.ErrBucketNotFound) {
		return nil, nil
	}
	slices.SortFunc(zones, func(x, y messages.ZoneSettings) int { return cmp.Compare(x.Zone, y.Zone) })
	if err == nil && len(unreadable) > 0 {
		slices.Sort(unreadable)
		err = fmt.Errorf("bucket %s: %w: %s", messages.ZoneBucket, ErrUnreadable, strings.Join(unreadable, ", "))
	}
	return zones, err
}

// KeptPassphrase returns a passphrase of a zone as it is kept, or ErrNotFound, and a revision for
// KeepPassphrase.
func (b *Bus) KeptPassphrase(ctx context.Context, zone, revision string) (messages.KeptPassphrase, uint64, error) {
	if err := errors.Join(messages.CheckLabel("zone", zone), messages.CheckID("revision", revision)); err != nil {
		return messages.KeptPassphrase{}, 0, err
	}
	return zoneValue(ctx, b, messages.PassphraseKey(zone, revision), passphraseKey)
}

// KeepPassphrase stores a passphrase of a zone: a new one with revision 0, and one that is to be kept
// by another key in place of the revision that KeptPassphrase returned. Otherwise it is ErrConflict.
func (b *Bus) KeepPassphrase(ctx context.Context, p messages.KeptPassphrase, revision uint64) error {
	if err := errors.Join(messages.CheckLabel("zone", p.Zone), messages.CheckID("revision", p.Revision)); err != nil {
		return err
	}
	return b.putZoneValue(ctx, passphraseKey(p), p, revision)
}

// KeptPassphrases returns all passphrases of a zone, oldest first.
func (b *Bus) KeptPassphrases(ctx context.Context, zone string) ([]messages.KeptPassphrase, error) {
	if err := messages.CheckLabel("zone", zone); err != nil {
		return nil, err
	}
	var kept []messages.KeptPassphrase
	err := b.list(ctx, messages.ZoneBucket, messages.PassphraseKey(zone, "*"), func(key string, value []byte) {
		if p, ok := decodeValue(b, key, value, passphraseKey); ok {
			kept = append(kept, p)
		}
	})
	if errors.Is(err, jetstream.ErrBucketNotFound) {
		return nil, nil
	}
	slices.SortFunc(kept, func(x, y messages.KeptPassphrase) int { return cmp.Compare(x.Revision, y.Revision) })
	return kept, err
}

// zoneValue reads a value of the bucket. One that cannot be read is an error, never a default: a
// zone's backups would be in the clear.
func zoneValue[T any](ctx context.Context, b *Bus, key string, keyOf func(T) string) (T, uint64, error) {
	var v T
	ctx, cancel := b.bounded(ctx)
	defer cancel()
	kv, err := b.js.KeyValue(ctx, messages.ZoneBucket)
	if errors.Is(err, jetstream.ErrBucketNotFound) {
		return v, 0, fmt.Errorf("%s: %w", key, ErrNotFound)
	}
	if err != nil {
		return v, 0, b.fail("bucket "+messages.ZoneBucket, err)
	}
	e, err := kv.Get(ctx, key)
	if errors.Is(err, jetstream.ErrKeyNotFound) {
		return v, 0, fmt.Errorf("%s: %w", key, ErrNotFound)
	}
	if err != nil {
		return v, 0, b.fail("bucket "+messages.ZoneBucket, err)
	}
	err = json.Unmarshal(e.Value(), &v)
	if err == nil && keyOf(v) != key {
		err = errors.New("the value claims to be another's")
	}
	if err != nil {
		return v, 0, fmt.Errorf("bucket %s, %s: %w", messages.ZoneBucket, key, err)
	}
	return v, e.Revision(), nil
}

func (b *Bus) putZoneValue(ctx context.Context, key string, value any, revision uint64) error {
	data, err := json.Marshal(value)
	if err != nil {
		return fmt.Errorf("%s: %w", key, err)
	}
	ctx, cancel := b.bounded(ctx)
	defer cancel()
	kv, err := b.js.KeyValue(ctx, messages.ZoneBucket)
	if err != nil {
		return b.fail("bucket "+messages.ZoneBucket, err)
	}
	if revision == 0 {
		_, err = kv.Create(ctx, key, data)
	} else {
		_, err = kv.Update(ctx, key, data, revision)
	}
	if errors.Is(err, jetstream.ErrKeyExists) || isCode(err, jetstream.JSErrCodeStreamWrongLastSequence, codeWrongLastSequence2) {
		return fmt.Errorf("%s: somebody else has changed it: %w", key, ErrConflict)
	}
	return b.fail("bucket "+messages.ZoneBucket, err)
}

func zoneKey(s messages.ZoneSettings) string { return messages.ZoneKey(s.Zone) }
func passphraseKey(p messages.KeptPassphrase) string {
	return messages.PassphraseKey(p.Zone, p.Revision)
}
