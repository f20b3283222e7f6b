package bus

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/nasfleet/nasfleet/messages"
)

const (
	revisionA = "01K5XZ8M4RA0T5B7C9D1E3F5G7"
	revisionB = "01K5XZ8M4RA0T5B7C9D1E3F5G8"
)

func TestZoneSettingsAreKept(t *testing.T) {
	b := newBus(t, Config{})
	ctx := t.Context()
	none, revision, err := b.ZoneSettings(ctx, "z1")
	if err != nil || revision != 0 || none != (messages.ZoneSettings{Zone: "z1"}) {
		t.Fatalf("without a bucket: %+v, %d, %v", none, revision, err)
	}
	if list, err := b.AllZoneSettings(ctx); err != nil || list != nil {
		t.Errorf("without a bucket: %v, %v", list, err)
	}
	if kept, err := b.KeptPassphrases(ctx, "z1"); err != nil || kept != nil {
		t.Errorf("without a bucket: %v, %v", kept, err)
	}
	must(t, b.EnsureZoneBucket(ctx))
	must(t, b.EnsureZoneBucket(ctx))

	want := messages.ZoneSettings{Zone: "z1", Compression: true, Encryption: true, Passphrase: revisionA, BandwidthLimit: 7, IntegrityCheck: true, Recovery: revisionB}
	must(t, b.PutZoneSettings(ctx, want, 0))
	must(t, b.PutZoneSettings(ctx, messages.ZoneSettings{Zone: "a"}, 0))
	got, revision, err := b.ZoneSettings(ctx, "z1")
	if err != nil || got != want {
		t.Fatalf("%+v, %v", got, err)
	}
	want.Compression = false
	must(t, b.PutZoneSettings(ctx, want, revision))
	// What was read before somebody else wrote replaces nothing.
	for _, stale := range []uint64{revision, 0} {
		if err := b.PutZoneSettings(ctx, messages.ZoneSettings{Zone: "z1"}, stale); !errors.Is(err, ErrConflict) {
			t.Errorf("revision %d: %v", stale, err)
		}
	}
	list, err := b.AllZoneSettings(ctx)
	if diff := cmp.Diff([]messages.ZoneSettings{{Zone: "a"}, want}, list); diff != "" || err != nil {
		t.Errorf("%s, %v", diff, err)
	}
	// Somebody has written what is none.
	for key, value := range map[string]string{"z3": `"none"`, "z4": `{"zone":"z1"}`, "z5": `{"zone":"z5","nas.backup.encryption.enabled":true}`} {
		must(t, b.putZoneValue(ctx, key, json.RawMessage(value), 0))
	}
	list, err = b.AllZoneSettings(ctx)
	if diff := cmp.Diff([]messages.ZoneSettings{{Zone: "a"}, want}, list); diff != "" || !errors.Is(err, ErrUnreadable) || !strings.Contains(err.Error(), "z3, z4, z5") {
		t.Errorf("%s, %v", diff, err)
	}
	if err := b.PutZoneSettings(ctx, messages.ZoneSettings{Zone: "z2", Encryption: true}, 0); messages.CodeOf(err) != messages.CodePassphraseMissing {
		t.Errorf("encryption without a passphrase: %v", err)
	}
}

func TestPassphrasesAreKept(t *testing.T) {
	b := newBus(t, Config{})
	ctx := t.Context()
	must(t, b.EnsureZoneBucket(ctx))
	one := messages.KeptPassphrase{Zone: "z1", Revision: revisionA, KeptBy: "X", Kept: "kept1.a"}
	two := messages.KeptPassphrase{Zone: "z1", Revision: revisionB, Recovery: true, KeptBy: "X", Kept: "kept1.b"}
	other := messages.KeptPassphrase{Zone: "z2", Revision: revisionB, KeptBy: "X", Kept: "kept1.c"}
	for _, p := range []messages.KeptPassphrase{two, other, one} {
		must(t, b.KeepPassphrase(ctx, p, 0))
	}
	if err := b.KeepPassphrase(ctx, one, 0); !errors.Is(err, ErrConflict) {
		t.Errorf("a revision was taken twice: %v", err)
	}
	list, err := b.KeptPassphrases(ctx, "z1")
	if diff := cmp.Diff([]messages.KeptPassphrase{one, two}, list); diff != "" || err != nil {
		t.Errorf("%s, %v", diff, err)
	}
	got, revision, err := b.KeptPassphrase(ctx, "z1", revisionA)
	if err != nil || got != one {
		t.Errorf("%+v, %v", got, err)
	}
	one.Kept = "kept1.d"
	must(t, b.KeepPassphrase(ctx, one, revision))
	if got, _, err = b.KeptPassphrase(ctx, "z1", revisionA); err != nil || got != one {
		t.Errorf("%+v, %v", got, err)
	}
	if _, _, err = b.KeptPassphrase(ctx, "z2", revisionA); !errors.Is(err, ErrNotFound) {
		t.Errorf("another zone's: %v", err)
	}
	// The bucket gives nothing away for good: neither deleting nor purging is possible.
	s, err := b.js.Stream(ctx, bucketStream(messages.ZoneBucket))
	must(t, err)
	for name, remove := range map[string]func(context.Context) error{
		"delete": func(ctx context.Context) error { return s.DeleteMsg(ctx, 1) },
		"purge":  func(ctx context.Context) error { return s.Purge(ctx) },
	} {
		if err := remove(ctx); err == nil {
			t.Errorf("%s: a passphrase can be removed", name)
		}
	}
}

// A value that makes no sense is an error: to take it for the defaults would put backups in the clear.
func TestBrokenZoneSettings(t *testing.T) {
	b := newBus(t, Config{})
	ctx := t.Context()
	must(t, b.EnsureZoneBucket(ctx))
	kv, err := b.js.KeyValue(ctx, messages.ZoneBucket)
	must(t, err)
	for name, value := range map[string]string{
		"not JSON": "{", "another zone's": `{"zone":"z2"}`, "empty": "", "no passphrase": `{"zone":"z1","nas.backup.encryption.enabled":true}`,
	} {
		_, err := kv.Put(ctx, "z1", []byte(value))
		must(t, err)
		if s, _, err := b.ZoneSettings(ctx, "z1"); err == nil {
			t.Errorf("%s is taken for %+v", name, s)
		}
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
