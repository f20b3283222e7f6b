package access_test

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/nasfleet/nasfleet/internal/access"
	"github.com/nasfleet/nasfleet/internal/bus"
	"github.com/nasfleet/nasfleet/internal/secret"
	"github.com/nasfleet/nasfleet/messages"
)

func sealKey(t *testing.T) string {
	t.Helper()
	key, err := secret.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	public, err := key.Public()
	if err != nil {
		t.Fatal(err)
	}
	return public
}

// revoke revokes a host as publisher host revoke does.
func (f *testFleet) revoke(host string) {
	f.t.Helper()
	if _, err := access.NewHosts(f.keys).Revoke(zone, host, time.Now()); err != nil {
		f.t.Fatal(err)
	}
	if f.kind == access.NKey {
		f.reload()
		return
	}
	tokens, err := access.AccountJWTs(f.keys)
	if err != nil {
		f.t.Fatal(err)
	}
	system := f.connect(bus.Config{Creds: access.SystemCreds})
	for _, token := range tokens {
		if err := system.UpdateAccount(f.t.Context(), token); err != nil {
			f.t.Fatal(err)
		}
	}
}

// A host that is revoked is cut off at once and for good; the others are not.
func TestRevoke(t *testing.T) {
	forBoth(t, func(t *testing.T, f *testFleet) {
		a, b := f.raw("a"), f.worker("b")
		f.revoke("a")
		select {
		case <-a.closed:
		case <-time.After(patience):
			t.Fatal("a is still connected")
		}
		comeBack := func() error {
			r := &raw{t: t, errors: make(chan string, 16), closed: make(chan struct{}, 1)}
			nc, err := nats.Connect(f.url, append(f.options("a", r), nats.ClosedHandler(nil))...)
			if err == nil {
				nc.Close()
			}
			return err
		}
		err := comeBack()
		if !errors.Is(err, nats.ErrAuthorization) && !errors.Is(err, nats.ErrAuthRevoked) {
			t.Errorf("a came back: %v", err)
		}
		t.Logf("a comes back: %v", err)
		if err := b.Announce(t.Context(), messages.HostInfo{Zone: zone, Host: "b"}); err != nil {
			t.Errorf("b was touched: %v", err)
		}
		// It is still revoked when the server was started again.
		f.server.Shutdown()
		f.server.WaitForShutdown()
		f.start()
		if err := comeBack(); err == nil {
			t.Error("a came back after the server's restart")
		}
		f.publish = f.connect(bus.Config{Creds: access.PublisherCreds, NKey: access.PublisherNKey})
		// Added again it has other credentials.
		f.add("a")
		if err := f.worker("a").Announce(t.Context(), messages.HostInfo{Zone: zone, Host: "a"}); err != nil {
			t.Error(err)
		}
	})
}

func TestHosts(t *testing.T) {
	f := secret.NewFolder(filepath.Join(t.TempDir(), "keys"))
	hosts, now := access.NewHosts(f), time.Now()
	if key, err := hosts.Pinned(zone, "h1"); err != nil || key != "" {
		t.Errorf("without any host: %q, %v", key, err)
	}
	first, second := sealKey(t), sealKey(t)
	seed, err := hosts.Add(zone, "h1", first, now)
	if err != nil || !strings.HasPrefix(string(seed), "SU") {
		t.Fatalf("%q, %v", seed, err)
	}
	if _, err := hosts.Add(zone, "h1", second, now); !errors.Is(err, access.ErrAdded) {
		t.Errorf("added twice: %v", err)
	}
	if _, err := hosts.Pinned(zone, "h2"); !errors.Is(err, access.ErrUnknownHost) {
		t.Errorf("a host that was not added: %v", err)
	}
	if key, err := hosts.Pinned(zone, "h1"); err != nil || key != first {
		t.Errorf("%q, %v", key, err)
	}
	if _, err := hosts.Revoke(zone, "h1", now); err != nil {
		t.Fatal(err)
	}
	if _, err := hosts.Pinned(zone, "h1"); !errors.Is(err, access.ErrRevoked) {
		t.Errorf("a host that was revoked: %v", err)
	}
	if _, err := hosts.Revoke(zone, "h2", now); !errors.Is(err, access.ErrUnknownHost) {
		t.Errorf("revoke a host that was not added: %v", err)
	}
	if _, err := hosts.Add(zone, "h1", second, now); err != nil {
		t.Fatal(err)
	}
	list, err := hosts.List()
	if err != nil || len(list) != 1 || list[0].SealKey != second || len(list[0].OldUsers) != 1 || list[0].RevokedAt != nil {
		t.Errorf("%+v, %v", list, err)
	}
	for _, bad := range [][3]string{{"Z", "h", first}, {"z", "../h", first}, {"z", "h", "UNOTAKEY"}, {"z", "h", ""}} {
		if _, err := hosts.Add(bad[0], bad[1], bad[2], now); err == nil {
			t.Errorf("added %v", bad)
		}
	}
}

// What others may have written says nothing about a host.
func TestHostFiles(t *testing.T) {
	f := secret.NewFolder(filepath.Join(t.TempDir(), "keys"))
	hosts := access.NewHosts(f)
	if _, err := hosts.Add(zone, "h1", sealKey(t), time.Now()); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(f.Path("hosts"), zone+".h1.json")
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("%v, %v", info, err)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for what, spoil := range map[string]func() error{
		"others may write it": func() error { return os.Chmod(path, 0o666) },
		"it is another's": func() error {
			return os.WriteFile(path, []byte(strings.Replace(string(data), `"h1"`, `"h2"`, 1)), 0o600)
		},
		"it is cut":       func() error { return os.WriteFile(path, data[:len(data)/2], 0o600) },
		"its key is none": func() error { return os.WriteFile(path, []byte(strings.Replace(string(data), `"X`, `"Y`, 1)), 0o600) },
	} {
		if err := spoil(); err != nil {
			t.Fatal(err)
		}
		if key, err := hosts.Pinned(zone, "h1"); err == nil {
			t.Errorf("%s: %s", what, key)
		}
		if _, err := hosts.List(); err == nil {
			t.Errorf("%s: listed", what)
		}
		if err := errors.Join(os.Chmod(path, 0o600), os.WriteFile(path, data, 0o600)); err != nil {
			t.Fatal(err)
		}
	}
}

// A server's folder is written once; its files are for its owner's eyes.
func TestServerFolder(t *testing.T) {
	for _, kind := range []access.Kind{access.JWT, access.NKey} {
		dir := t.TempDir()
		f := secret.NewFolder(filepath.Join(dir, "keys"))
		s := access.Server{Dir: filepath.Join(dir, "server"), Name: "n", Listen: "127.0.0.1:-1", Names: []string{"n", "::1"}, Kind: kind}
		if err := s.Write(f, time.Now()); err != nil {
			t.Fatal(err)
		}
		if err := s.Write(f, time.Now()); !errors.Is(err, fs.ErrExist) {
			t.Errorf("%s: written over: %v", kind, err)
		}
		if got, err := access.KindOf(f); err != nil || got != kind {
			t.Errorf("%s: %s, %v", kind, got, err)
		}
		err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
			if err != nil || path == dir {
				return err
			}
			info, err := d.Info()
			if err == nil && info.Mode().Perm()&0o077 != 0 && d.Name() != access.CAFile {
				t.Errorf("%s: mode %v", path, info.Mode())
			}
			return err
		})
		if err != nil {
			t.Error(err)
		}
		// A second server of the fleet has the same authority and the same accounts.
		s.Dir = filepath.Join(dir, "second")
		if err := s.Write(f, time.Now()); err != nil {
			t.Error(err)
		}
		for _, name := range []string{access.CAFile} {
			a, _ := os.ReadFile(filepath.Join(dir, "server", name))
			b, err := os.ReadFile(filepath.Join(s.Dir, name))
			if err != nil || string(a) != string(b) || len(a) == 0 {
				t.Errorf("%s: the servers' %s differ: %v", kind, name, err)
			}
		}
	}
}
