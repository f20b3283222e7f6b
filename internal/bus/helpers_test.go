package bus

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/nasfleet/nasfleet/messages"
	"github.com/oklog/ulid/v2"
	"github.com/rs/zerolog"
	"go.uber.org/goleak"
)

const (
	testZone = "zone-a"
	testHost = "host-1"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// startServer starts an embedded server on a free loopback port.
func startServer(t testing.TB, dir, listen string) *Server {
	t.Helper()
	return startServerWith(t, ServerConfig{Dir: dir, Listen: listen})
}

func startServerWith(t testing.TB, cfg ServerConfig) *Server {
	t.Helper()
	cfg.Log = testLog(t)
	s, err := StartServer(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Stop)
	return s
}

func testLog(t testing.TB) zerolog.Logger {
	if !testing.Verbose() {
		return zerolog.Nop()
	}
	return zerolog.New(zerolog.NewTestWriter(t)).Level(zerolog.InfoLevel)
}

// connect connects with short times and sets the zone up.
func connect(t testing.TB, cfg Config) *Bus {
	t.Helper()
	cfg.Log = testLog(t)
	if cfg.heartbeat == 0 {
		cfg.heartbeat = 500 * time.Millisecond
	}
	b, err := Connect(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.Close)
	if err := b.EnsureZone(t.Context(), testZone); err != nil {
		t.Fatal(err)
	}
	return b
}

// memoryDir is a folder in memory where there is one: the server syncs every write, and most
// tests are not about that.
func memoryDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "nasfleet-bus")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// newBus is a connection over TCP to a new server.
func newBus(t testing.TB, cfg Config) *Bus {
	t.Helper()
	cfg.URL = startServer(t, memoryDir(t), "127.0.0.1:0").ClientURL()
	return connect(t, cfg)
}

func newTake() *messages.TakeBackup {
	return &messages.TakeBackup{
		Header: messages.Header{
			Version: messages.Version, Type: messages.TypeTake, JobID: ulid.Make().String(), IssuedAt: time.Now(),
		},
		VM:         "vm",
		Repository: messages.Repository{Type: messages.RepositoryDir, Address: "/srv/backups"},
	}
}

func publish(t testing.TB, b *Bus, host string) string {
	t.Helper()
	cmd := newTake()
	if _, err := b.Publish(t.Context(), testZone, host, cmd); err != nil {
		t.Fatal(err)
	}
	return cmd.JobID
}

func queue(t testing.TB, b *Bus, host string) *Commands {
	t.Helper()
	c, err := b.Commands(testZone, host)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.Stop)
	return c
}

// next waits for the next delivery, at most 10 s.
func next(t testing.TB, c *Commands) *Delivery {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	d, err := c.Next(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func newEvent(job string, kind messages.Kind, attempt int) messages.Event {
	return messages.Event{
		Version: messages.Version, Kind: kind, JobID: job, Type: messages.TypeTake,
		Zone: testZone, Host: testHost, VM: "vm", Time: time.Now().UTC(), Attempt: attempt,
	}
}

func mustEvent(t testing.TB, b *Bus, e messages.Event) {
	t.Helper()
	if err := b.PublishEvent(t.Context(), e); err != nil {
		t.Fatal(err)
	}
}

func hostName(i int) string { return fmt.Sprintf("host-%04d", i) }

// eventually waits for a condition that nothing signals, at most 10 s.
func eventually(t testing.TB, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(10 * time.Second)
	for !ok() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatal("did not happen")
		}
	}
}

func mustJSON(t testing.TB, v any) []byte {
	t.Helper()
	data, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return data
}
