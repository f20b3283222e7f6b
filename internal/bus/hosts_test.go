package bus

import (
	"errors"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/nasfleet/nasfleet/messages"
	"github.com/oklog/ulid/v2"
)

func newEntry(host, vm string) messages.CatalogEntry {
	id := ulid.Make().String()
	return messages.CatalogEntry{ID: id, JobID: id, Zone: testZone, Host: host, VM: vm, CreatedAt: time.Now().UTC()}
}

func TestHosts(t *testing.T) {
	t.Parallel()
	b, ctx := newBus(t, Config{}), t.Context()
	infos := []messages.HostInfo{
		{Zone: "zone-a", Host: "host-2", Slots: 2}, {Zone: "zone-a", Host: "host-1"}, {Zone: "zone-0", Host: "host-9"},
	}
	for _, h := range infos {
		if err := b.Announce(ctx, h); err != nil {
			t.Fatal(err)
		}
	}
	hosts, err := b.Hosts(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]messages.HostInfo{infos[2], infos[1], infos[0]}, hosts); diff != "" {
		t.Error(diff)
	}
	if h, err := b.Host(ctx, "zone-a", "host-2"); err != nil || h.Slots != 2 {
		t.Error(h, err)
	}
	if err := b.Withdraw(ctx, "zone-a", "host-2"); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"host-2", "host-3"} {
		if _, err := b.Host(ctx, "zone-a", name); !errors.Is(err, ErrNotFound) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if hosts, err := b.Hosts(ctx); err != nil || len(hosts) != 2 {
		t.Error(hosts, err)
	}
}

// A host may write its own key, and put into it what it likes: not another's name.
func TestForgedHost(t *testing.T) {
	t.Parallel()
	b, ctx := newBus(t, Config{}), t.Context()
	m, err := putMsg(messages.HostBucket, "zone-a.host-1", messages.HostInfo{Zone: "zone-a", Host: "host-2"})
	if err != nil {
		t.Fatal(err)
	}
	if err := b.storeOnce(ctx, m); err != nil {
		t.Fatal(err)
	}
	if hosts, err := b.Hosts(ctx); err != nil || len(hosts) != 0 {
		t.Error(hosts, err)
	}
	if _, err := b.Host(ctx, "zone-a", "host-1"); !errors.Is(err, ErrNotFound) {
		t.Error(err)
	}
}

func TestHostTTL(t *testing.T) {
	t.Parallel()
	b, ctx := newBus(t, Config{Layout: Layout{HostTTL: time.Second}}), t.Context()
	if err := b.Announce(ctx, messages.HostInfo{Zone: testZone, Host: testHost}); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Host(ctx, testZone, testHost); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() bool {
		_, err := b.Host(ctx, testZone, testHost)
		return errors.Is(err, ErrNotFound)
	})
}

func TestCatalog(t *testing.T) {
	t.Parallel()
	b, ctx := newBus(t, Config{}), t.Context()
	first, second, third := newEntry("host-2", "web"), newEntry("host-1", "db"), newEntry("host-1", "web")
	for _, e := range []messages.CatalogEntry{third, first, second, first} {
		if err := b.PutBackup(ctx, e); err != nil {
			t.Fatal(err)
		}
	}
	tests := []struct {
		name   string
		filter CatalogFilter
		want   []messages.CatalogEntry
	}{
		{"all, oldest first", CatalogFilter{}, []messages.CatalogEntry{first, second, third}},
		{"by host", CatalogFilter{Zone: testZone, Host: "host-1"}, []messages.CatalogEntry{second, third}},
		{"by VM", CatalogFilter{VM: "web"}, []messages.CatalogEntry{first, third}},
		{"by another zone", CatalogFilter{Zone: "zone-b"}, nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := b.Backups(ctx, tt.filter)
			if err != nil {
				t.Fatal(err)
			}
			if diff := cmp.Diff(tt.want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
	if e, err := b.Backup(ctx, second.ID); err != nil || len(e) != 1 || e[0].Host != "host-1" {
		t.Error(e, err)
	}
	for range 2 { // the second time there is nothing to remove
		if err := b.RemoveBackup(ctx, testZone, "host-1", second.ID); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := b.Backup(ctx, second.ID); !errors.Is(err, ErrNotFound) {
		t.Error(err)
	}
	if left, err := b.Backups(ctx, CatalogFilter{}); err != nil || len(left) != 2 {
		t.Error(left, err)
	}
}

func TestBucketsMissing(t *testing.T) {
	t.Parallel()
	url := startServer(t, t.TempDir(), "127.0.0.1:0").ClientURL()
	b, err := Connect(t.Context(), Config{URL: url, Timeout: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	_, hostsErr := b.Hosts(t.Context())
	_, hostErr := b.Host(t.Context(), testZone, testHost)
	_, backupsErr := b.Backups(t.Context(), CatalogFilter{})
	_, publishErr := b.Publish(t.Context(), testZone, testHost, newTake())
	_, watchErr := b.Watch(t.Context(), Filter{})
	_, eventErr := b.FinalEvent(t.Context(), testZone, testHost, "j")
	announceErr := b.Announce(t.Context(), messages.HostInfo{Zone: testZone, Host: testHost})
	checkErr := b.CheckZone(t.Context(), testZone)
	for i, err := range []error{hostsErr, hostErr, backupsErr, publishErr, watchErr, eventErr, announceErr, checkErr} {
		if !errors.Is(err, ErrNoStream) || Hint(err) == "" {
			t.Errorf("%d: %v", i, err)
		}
	}
}

// Names that would leave their subject or key are refused before anything is sent.
func TestHostileNames(t *testing.T) {
	t.Parallel()
	b, ctx := newBus(t, Config{}), t.Context()
	for _, bad := range []string{"", "*", ">", "a.b", "a b", "UPPER", "a\n", "a*"} {
		calls := map[string]error{
			"EnsureZone":      b.EnsureZone(ctx, bad),
			"CheckZone":       b.CheckZone(ctx, bad),
			"Announce zone":   b.Announce(ctx, messages.HostInfo{Zone: bad, Host: testHost}),
			"Announce host":   b.Announce(ctx, messages.HostInfo{Zone: testZone, Host: bad}),
			"Withdraw":        b.Withdraw(ctx, testZone, bad),
			"PutBackup":       b.PutBackup(ctx, messages.CatalogEntry{Zone: testZone, Host: testHost, ID: bad}),
			"RemoveBackup":    b.RemoveBackup(ctx, testZone, bad, ulid.Make().String()),
			"PublishProgress": b.PublishProgress(messages.Progress{Zone: testZone, Host: bad, JobID: "j"}),
			"PublishEvent":    b.PublishEvent(ctx, messages.Event{Zone: bad, Host: testHost, JobID: "j", Kind: "failed"}),
		}
		_, calls["Publish zone"] = b.Publish(ctx, bad, testHost, newTake())
		_, calls["Publish host"] = b.Publish(ctx, testZone, bad, newTake())
		_, calls["Commands"] = b.Commands(testZone, bad)
		_, calls["Host"] = b.Host(ctx, bad, testHost)
		_, calls["Backup"] = b.Backup(ctx, bad)
		_, calls["Command"] = b.Command(ctx, testZone, bad, "j")
		if bad != "UPPER" {
			event := newEvent(bad, messages.KindFailed, 1)
			calls["PublishEvent job"] = b.PublishEvent(ctx, event)
			_, calls["JobEvents"] = b.JobEvents(ctx, testZone, testHost, bad)
			_, calls["FinalEvent"] = b.FinalEvent(ctx, testZone, testHost, bad)
		}
		if bad != "" {
			_, calls["Watch"] = b.Watch(ctx, Filter{Host: bad})
			_, calls["Backups"] = b.Backups(ctx, CatalogFilter{Zone: bad})
		}
		for call, err := range calls {
			if messages.CodeOf(err) != messages.CodeInvalidMessage {
				t.Errorf("%s(%q): %v", call, bad, err)
			}
		}
	}
}
