package main

import (
	"context"
	"crypto/rand"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/oklog/ulid/v2"

	"github.com/nasfleet/nasfleet/internal/bus"
	"github.com/nasfleet/nasfleet/messages"
	"github.com/nasfleet/nasfleet/tests/lab"
)

// patience bounds a job of these tests.
const patience = time.Minute

// connect returns a connection of the test's own.
func connect(t *testing.T, url string) *bus.Bus {
	t.Helper()
	b, err := bus.Connect(t.Context(), bus.Config{URL: url, Name: "test"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.Close)
	return b
}

// awaitHost waits until the worker has announced itself.
func awaitHost(t *testing.T, b *bus.Bus) messages.HostInfo {
	t.Helper()
	var info messages.HostInfo
	lab.Eventually(t, "the host announces itself", func() bool {
		var err error
		info, err = b.Host(t.Context(), zone, host)
		return err == nil
	})
	return info
}

// image writes a raw image of random data.
func image(t *testing.T, dir string, mib int) string {
	t.Helper()
	data := make([]byte, mib*lab.MiB)
	_, _ = rand.Read(data) // never fails
	path := filepath.Join(dir, "disk.raw")
	if err := os.WriteFile(path, data, 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

func newTake(path string, repo messages.Repository, limit int) *messages.TakeBackup {
	return &messages.TakeBackup{
		Header:     messages.Header{Version: messages.Version, Type: messages.TypeTake, JobID: ulid.Make().String(), IssuedAt: time.Now().UTC()},
		Images:     []messages.Image{{Path: path, Format: "raw"}},
		Repository: repo,
		Details:    messages.Details{BandwidthLimit: limit},
	}
}

// folder makes a folder, if it is not there, that serves as a repository.
func folder(t *testing.T, path string) messages.Repository {
	t.Helper()
	if err := os.MkdirAll(path, 0o755); err != nil {
		t.Fatal(err)
	}
	return messages.Repository{Type: messages.RepositoryDir, Address: path}
}

// publish publishes a command and returns what watches its job.
func publish(t *testing.T, b *bus.Bus, cmd messages.Command) *bus.Watch {
	t.Helper()
	if err := b.EnsureZone(t.Context(), zone); err != nil {
		t.Fatal(err)
	}
	watch := watchJob(t, b, cmd.Head().JobID)
	if _, err := b.Publish(t.Context(), zone, host, cmd); err != nil {
		t.Fatal(err)
	}
	return watch
}

func watchJob(t *testing.T, b *bus.Bus, job string) *bus.Watch {
	t.Helper()
	watch, err := b.Watch(t.Context(), bus.Filter{Zone: zone, Host: host, Job: job, History: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(watch.Stop)
	return watch
}

// until reads updates until one is wanted.
func until(t *testing.T, watch *bus.Watch, what string, wanted func(bus.Update) bool) bus.Update {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	for {
		u, err := watch.Next(ctx)
		if err != nil {
			t.Fatalf("%s: %v", what, err)
		}
		if wanted(u) {
			return u
		}
		if u.Event != nil && u.Event.Kind.Final() {
			t.Fatalf("%s: the job ended before: %+v", what, u.Event)
		}
	}
}

func copying(u bus.Update) bool {
	return u.Progress != nil && u.Progress.Phase == messages.PhaseCopying
}

// succeeded waits for the job's final event, which must be a good one.
func succeeded(t *testing.T, watch *bus.Watch) messages.Event {
	t.Helper()
	u := until(t, watch, "the final event", func(u bus.Update) bool { return u.Event != nil && u.Event.Kind.Final() })
	if u.Event.Kind != messages.KindSucceeded {
		t.Fatalf("%+v: %+v", u.Event, u.Event.Error)
	}
	return *u.Event
}

// kinds lists the kinds of a job's events.
func kinds(t *testing.T, b *bus.Bus, job string) string {
	t.Helper()
	events, err := b.JobEvents(t.Context(), zone, host, job)
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, e := range events {
		all = append(all, string(e.Kind))
	}
	return strings.Join(all, " ")
}

// startServer starts a NATS server at the address; port 0 is any.
func startServer(t *testing.T, listen string) *bus.Server {
	t.Helper()
	server, err := bus.StartServer(t.Context(), bus.ServerConfig{Dir: t.TempDir(), Listen: listen})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(server.Stop)
	return server
}
