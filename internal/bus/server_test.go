package bus

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/nasfleet/nasfleet/messages"
	"github.com/nats-io/nats-server/v2/server"
)

func TestServerInProcess(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "nats")
	s := startServer(t, dir, ListenNone)
	if s.ns.Addr() != nil {
		t.Errorf("listens on %v", s.ns.Addr())
	}
	if !s.ns.JetStreamConfig().SyncAlways {
		t.Error("writes are not synced")
	}
	info, err := os.Stat(dir)
	if err != nil || info.Mode().Perm() != 0o700 {
		t.Error(info, err)
	}
	b := connect(t, Config{Server: s})
	if b.ServerURL() != "embedded" || s.ClientURL() != "" {
		t.Errorf("%q, %q", b.ServerURL(), s.ClientURL())
	}
	job := publish(t, b, testHost)
	if d := next(t, queue(t, b, testHost)); d.JobID != job {
		t.Errorf("%+v", d)
	}
}

func TestServerLock(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := startServer(t, dir, ListenNone)
	if _, err := StartServer(t.Context(), ServerConfig{Dir: dir}); !errors.Is(err, ErrLocked) || !strings.Contains(err.Error(), dir) {
		t.Fatal(err)
	}
	s.Stop()
	s.Stop()
	startServer(t, dir, ListenNone)
}

func TestServerRefused(t *testing.T) {
	t.Parallel()
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = taken.Close() }()
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	for name, cfg := range map[string]ServerConfig{
		"port taken":          {Dir: dir, Listen: taken.Addr().String()},
		"no port":             {Dir: dir, Listen: "127.0.0.1"},
		"port not a number":   {Dir: dir, Listen: "127.0.0.1:nats"},
		"no folder":           {},
		"folder is a file":    {Dir: file},
		"folder below a file": {Dir: filepath.Join(file, "nats")},
	} {
		t.Run(name, func(t *testing.T) {
			if s, err := StartServer(t.Context(), cfg); err == nil {
				s.Stop()
				t.Fatal("started")
			}
		})
	}
	t.Run("cancelled", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if s, err := StartServer(ctx, ServerConfig{Dir: dir}); !errors.Is(err, context.Canceled) {
			t.Fatal(s, err)
		}
	})
	startServer(t, dir, ListenNone) // and the folder is free
}

// A server that cannot read a stream starts without it. Ours does not.
func TestServerLostStream(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := startServer(t, dir, ListenNone)
	b := connect(t, Config{Server: s})
	publish(t, b, testHost)
	b.Close()
	s.Stop()
	stream := messages.JobStream(testZone)
	meta := filepath.Join(dir, server.JetStreamStoreDir, server.DEFAULT_GLOBAL_ACCOUNT, "streams", stream, "meta.inf")
	if err := os.WriteFile(meta, []byte("not a stream"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := StartServer(t.Context(), ServerConfig{Dir: dir})
	if err == nil || !strings.Contains(err.Error(), stream) {
		t.Fatal(err)
	}
}
