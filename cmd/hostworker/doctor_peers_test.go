package main

import (
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/nats-io/nats-server/v2/server"

	"github.com/nasfleet/nasfleet/internal/bus"
	"github.com/nasfleet/nasfleet/internal/secret"
	"github.com/nasfleet/nasfleet/messages"
	"github.com/nasfleet/nasfleet/tests/lab"
)

func TestDoctorEmbeddedNATS(t *testing.T) {
	dir := lab.Dir(t)
	store := filepath.Join(dir, "nats")
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = taken.Close() }()
	addr := taken.Addr().String()
	found := doctor(t, dir, false, "--embedded-nats", store, "--listen", addr, "--metrics", addr)
	found["embedded NATS listens"].want(t, bad, "address already in use", "Stop what listens there")
	found["metrics"].want(t, warning, "address already in use", "running worker")

	// A worker that runs holds the folder and the port, and that is as it should be.
	addr = freeAddress(t)
	n := startNode(t, dir, "--embedded-nats", store, "--listen", addr)
	awaitHost(t, connect(t, n.natsURL(t)))
	found = doctor(t, dir, false, "--embedded-nats", store, "--listen", addr)
	found["embedded NATS"].want(t, good, "a running worker serves it")
	found["NATS"].want(t, good, "connected to nats://"+addr)
	found["zone z1"].want(t, good)
	found["events"].want(t, good)
	found["name z1/h1"].want(t, good, "a worker (version dev) announced it")
	if _, there := found["embedded NATS listens"]; there {
		t.Error("the port of a running worker was tried")
	}
	doctor(t, dir, false, "--embedded-nats", store, "--listen", "none")["embedded NATS"].want(t, good, "a running worker serves it")
	n.stop(t, prompt)
}

// natsServer starts a NATS server with users, whose passwords are their names.
func natsServer(t *testing.T, jetStream bool, users ...*server.User) string {
	t.Helper()
	for _, u := range users {
		u.Password = u.Username
	}
	s, err := server.NewServer(&server.Options{
		Host: "127.0.0.1", Port: server.RANDOM_PORT, NoSigs: true, NoLog: true, JetStream: jetStream, StoreDir: t.TempDir(), Users: users,
	})
	if err != nil {
		t.Fatal(err)
	}
	s.Start()
	t.Cleanup(func() { s.Shutdown(); s.WaitForShutdown() })
	if !s.ReadyForConnections(prompt) {
		t.Fatal("the NATS server does not start")
	}
	return s.Addr().String()
}

func as(user, addr string) string {
	return (&url.URL{Scheme: "nats", User: url.UserPassword(user, user), Host: addr}).String()
}

func denied(user string, subjects ...string) *server.User {
	return &server.User{Username: user, Permissions: &server.Permissions{Publish: &server.SubjectPermission{Deny: subjects}}}
}

func TestDoctorNATS(t *testing.T) {
	t.Parallel() // the server lets what it denies time out
	dir := lab.Dir(t)
	addr := natsServer(t, true, &server.User{Username: "admin"},
		denied("host", "$JS.API.STREAM.>"), denied("blind", "$JS.API.STREAM.>", "$JS.API.DIRECT.>"))

	found := doctor(t, dir, false, "--nats", as("nobody", addr))
	found["NATS"].want(t, bad, "NATS refused access", "Check the credentials")
	if strings.Contains(found["NATS"].Detail, "nobody") {
		t.Errorf("the password is told: %+v", found["NATS"])
	}
	doctor(t, dir, false, "--nats", as("admin", addr), "--creds", "missing.creds")["NATS"].want(t, bad, "missing.creds", "--creds")
	doctor(t, dir, false, "--context", filepath.Join(dir, "missing.json"))["NATS"].want(t, bad, "missing.json", "--context")

	// What run makes is not there yet.
	found = doctor(t, dir, false, "--nats", as("admin", addr))
	found["NATS"].want(t, good, "connected to nats://")
	found["zone z1"].want(t, warning, messages.JobStream(zone), "hostworker run makes what is missing")
	found["events"].want(t, warning, messages.EventStream)

	b := connect(t, as("admin", addr))
	if err := b.EnsureZone(t.Context(), zone); err != nil {
		t.Fatal(err)
	}
	found = doctor(t, dir, false, "--nats", as("admin", addr))
	found["zone z1"].want(t, good)
	found["events"].want(t, good)
	found["name z1/h1"].want(t, good, "no worker has announced it")

	// A host's user need not see the streams, and has to read events.
	found = doctor(t, dir, false, "--nats", as("host", addr))
	found["zone z1"].want(t, warning, "NATS refused access", "a host need not see them")
	found["events"].want(t, good)
	found = doctor(t, dir, false, "--nats", as("blind", addr))
	found["events"].want(t, bad, "NATS refused access", "rights of that user")
	found["name z1/h1"].want(t, warning, "NATS refused access", "no other machine")

	// With that user a worker works.
	n := startNode(t, dir, "--nats", as("host", addr))
	awaitHost(t, b)
	succeeded(t, publish(t, b, newTake(image(t, dir, 1), folder(t, dir+"/nas"), 0)))
	n.stop(t, prompt)

	found = doctor(t, dir, false, "--nats", as("admin", natsServer(t, false, &server.User{Username: "admin"})))
	found["zone z1"].want(t, warning, "JetStream")
}

// TestDoctorFindsNamesake announces a host of the same name with another machine's key.
func TestDoctorFindsNamesake(t *testing.T) {
	dir := lab.Dir(t)
	srv := startServer(t, "127.0.0.1:0")
	b := connect(t, srv.ClientURL())
	if err := b.EnsureZone(t.Context(), zone); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(filepath.Join(dir, "state"), 0o700); err != nil {
		t.Fatal(err)
	}
	own, err := secret.LoadOrCreateKey(filepath.Join(dir, "state", "host.key"))
	if err != nil {
		t.Fatal(err)
	}
	other, err := secret.NewKey()
	if err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		key  *secret.Key
		want verdict
	}{{own, good}, {other, warning}} {
		announce(t, b, tt.key)
		found := doctor(t, dir, false, "--nats", srv.ClientURL())
		found["name z1/h1"].want(t, tt.want, "a worker (version 9) announced it")
	}
	// A machine that has no key yet has announced nothing.
	doctor(t, t.TempDir(), false, "--nats", srv.ClientURL())["name z1/h1"].want(t, warning, "another machine of this name")
}

func announce(t *testing.T, b *bus.Bus, key *secret.Key) {
	t.Helper()
	public, err := key.Public()
	if err != nil {
		t.Fatal(err)
	}
	if err := b.Announce(t.Context(), messages.HostInfo{Zone: zone, Host: host, SealKey: public, Version: "9"}); err != nil {
		t.Fatal(err)
	}
}
