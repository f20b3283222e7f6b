package bus

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nasfleet/nasfleet/messages"
	"github.com/nats-io/jwt/v2"
	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nkeys"
)

func TestConnectUnreachable(t *testing.T) {
	t.Parallel()
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = silent.Close() }()
	for name, addr := range map[string]string{"nobody listens": freeAddr(t), "nobody answers": silent.Addr().String()} {
		t.Run(name, func(t *testing.T) {
			start := time.Now()
			_, err := Connect(t.Context(), Config{URL: "nats://someone:hushhush@" + addr, Timeout: time.Second})
			if !errors.Is(err, ErrUnreachable) || Hint(err) == "" {
				t.Fatalf("got %v, hint %q", err, Hint(err))
			}
			if !strings.Contains(err.Error(), addr) || strings.Contains(err.Error(), "hushhush") {
				t.Errorf("the error must name the address and not the password: %v", err)
			}
			if took := time.Since(start); took > 3*time.Second {
				t.Errorf("took %v", took)
			}
		})
	}
}

func TestConnectContextEnded(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Connect(ctx, Config{}); !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
}

func TestConnectUnauthorized(t *testing.T) {
	t.Parallel()
	url := startOther(t, &server.Options{Username: "someone", Password: "right"})
	_, err := Connect(t.Context(), Config{URL: strings.Replace(url, "//", "//someone:wrong@", 1)})
	if !errors.Is(err, ErrUnauthorized) || errors.Is(err, ErrUnreachable) {
		t.Fatal(err)
	}
	b, err := Connect(t.Context(), Config{URL: strings.Replace(url, "//", "//someone:right@", 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	if strings.Contains(b.ServerURL(), "right") {
		t.Errorf("password in %q", b.ServerURL())
	}
	if err := b.EnsureZone(t.Context(), testZone); !errors.Is(err, ErrNoStream) {
		t.Errorf("a server without JetStream: %v", err)
	}
}

// A worker that starts before its server, its rights and its stream are there waits for them all.
func TestPersist(t *testing.T) {
	t.Parallel()
	addr := freeAddr(t)
	b, err := Connect(t.Context(), Config{URL: "nats://" + addr, Persist: true, Log: testLog(t), heartbeat: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()
	if b.Connected() {
		t.Fatal("connected to nobody")
	}
	if err := b.Announce(t.Context(), messages.HostInfo{Zone: testZone, Host: testHost}); !errors.Is(err, ErrUnreachable) {
		t.Fatalf("Announce: %v", err)
	}
	if err := b.PublishProgress(messages.Progress{Zone: testZone, Host: testHost, JobID: "j"}); !errors.Is(err, ErrUnreachable) {
		t.Fatalf("PublishProgress: %v", err)
	}
	c := queue(t, b, testHost)
	got := make(chan *Delivery)
	go func() {
		d, err := c.Next(t.Context())
		if err != nil {
			t.Error(err)
		}
		got <- d
	}()
	connected := b.nc.StatusChanged(nats.CONNECTED)
	startServer(t, t.TempDir(), addr)
	<-connected
	job := publish(t, connect(t, Config{URL: "nats://" + addr}), testHost)
	if d := <-got; d == nil || d.JobID != job {
		t.Fatalf("got %+v", d)
	}
}

func TestNATSContext(t *testing.T) {
	url := startOther(t, &server.Options{Username: "someone", Password: "right", JetStream: true, StoreDir: t.TempDir()})
	config := t.TempDir()
	t.Setenv("XDG_CONFIG_HOME", config)
	file := filepath.Join(config, "nats", "context", "mine.json")
	writeJSON(t, file, map[string]string{"url": url, "user": "someone", "password": "right"})
	t.Chdir(filepath.Dir(file))
	for name, cfg := range map[string]Config{
		"by name":          {Context: "mine"},
		"by path":          {Context: file},
		"by relative path": {Context: "./mine.json"},
	} {
		t.Run(name, func(t *testing.T) { connect(t, cfg) })
	}
	t.Run("URL wins", func(t *testing.T) {
		_, err := Connect(t.Context(), Config{Context: "mine", URL: "nats://" + freeAddr(t)})
		if !errors.Is(err, ErrUnreachable) {
			t.Fatal(err)
		}
	})
	t.Run("unknown", func(t *testing.T) {
		_, err := Connect(t.Context(), Config{Context: "other"})
		if err == nil || errors.Is(err, ErrUnreachable) || !strings.Contains(err.Error(), "other") {
			t.Fatal(err)
		}
	})
}

func TestCreds(t *testing.T) {
	t.Parallel()
	operator, account, user := newKey(t, nkeys.CreateOperator), newKey(t, nkeys.CreateAccount), newKey(t, nkeys.CreateUser)
	accountClaims := jwt.NewAccountClaims(pub(t, account))
	accountJWT := encode(t, accountClaims, operator)
	userJWT := encode(t, jwt.NewUserClaims(pub(t, user)), account)
	resolver := &server.MemAccResolver{}
	if err := resolver.Store(pub(t, account), accountJWT); err != nil {
		t.Fatal(err)
	}
	operatorClaims := jwt.NewOperatorClaims(pub(t, operator))
	operatorClaims.Issuer = pub(t, operator)
	url := startOther(t, &server.Options{
		TrustedOperators: []*jwt.OperatorClaims{operatorClaims}, AccountResolver: resolver,
	})
	seed, err := user.Seed()
	if err != nil {
		t.Fatal(err)
	}
	creds, err := jwt.FormatUserConfig(userJWT, seed)
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "user.creds")
	if err := os.WriteFile(file, creds, 0o600); err != nil {
		t.Fatal(err)
	}
	b, err := Connect(t.Context(), Config{URL: url, Creds: file})
	if err != nil {
		t.Fatal(err)
	}
	b.Close()
	b.Close() // again is harmless
	if _, err := Connect(t.Context(), Config{URL: url}); !errors.Is(err, ErrUnauthorized) {
		t.Errorf("without credentials: %v", err)
	}
	_, err = Connect(t.Context(), Config{URL: url, Creds: file + ".missing", Persist: true})
	if !errors.Is(err, os.ErrNotExist) || errors.Is(err, ErrUnreachable) {
		t.Errorf("missing file: %v", err)
	}
	_, err = Connect(t.Context(), Config{Context: file + ".missing", Persist: true})
	if !errors.Is(err, os.ErrNotExist) || errors.Is(err, ErrUnreachable) {
		t.Errorf("missing context: %v", err)
	}
}

// A host's user has rights to its own subjects alone. All that a worker does works with them.
func TestHostRights(t *testing.T) {
	t.Parallel()
	const prefix = "$JS.API."
	jobs, name := messages.JobStream(testZone), "host_"+testHost
	host := &server.User{Username: "host", Password: "h", Permissions: &server.Permissions{
		Publish: &server.SubjectPermission{Allow: []string{
			prefix + "CONSUMER.CREATE." + jobs + "." + name + "." + messages.JobSubject(testZone, testHost, "*"),
			prefix + "CONSUMER.INFO." + jobs + "." + name,
			prefix + "CONSUMER.MSG.NEXT." + jobs + "." + name,
			"$JS.ACK." + jobs + "." + name + ".>",
			prefix + "DIRECT.GET." + messages.EventStream + "." + messages.EventSubject(testZone, testHost, "*", "*"),
			messages.EventSubject(testZone, testHost, "*", "*"),
			messages.ProgressSubject(testZone, testHost, "*"),
			BucketSubject(messages.HostBucket, messages.HostKey(testZone, testHost)),
			BucketSubject(messages.CatalogBucket, messages.CatalogKey(testZone, testHost, "*")),
		}},
		Subscribe: &server.SubjectPermission{Allow: []string{HostInbox(testZone, testHost) + ".>"}},
	}}
	url := startOther(t, &server.Options{
		Users:     []*server.User{{Username: "admin", Password: "a"}, host},
		JetStream: true, StoreDir: t.TempDir(),
	})
	admin := connect(t, Config{URL: strings.Replace(url, "//", "//admin:a@", 1)})
	b, err := Connect(t.Context(), Config{
		URL: strings.Replace(url, "//", "//host:h@", 1), InboxPrefix: HostInbox(testZone, testHost),
		Log: testLog(t), Timeout: time.Second,
	})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close()

	job := publish(t, admin, testHost)
	d := next(t, queue(t, b, testHost))
	if err := d.Extend(); err != nil {
		t.Error(err)
	}
	if _, err := b.FinalEvent(t.Context(), testZone, testHost, job); !errors.Is(err, ErrNotFound) {
		t.Error(err)
	}
	mustEvent(t, b, newEvent(job, messages.KindSucceeded, 1))
	if e, err := b.FinalEvent(t.Context(), testZone, testHost, job); err != nil || e.Kind != messages.KindSucceeded {
		t.Error(e, err)
	}
	if err := d.Ack(t.Context()); err != nil {
		t.Error(err)
	}
	if err := b.Announce(t.Context(), messages.HostInfo{Zone: testZone, Host: testHost}); err != nil {
		t.Error(err)
	}
	if err := b.PutBackup(t.Context(), newEntry(testHost, "vm")); err != nil {
		t.Error(err)
	}

	// What it may not is refused by the server, and told as that, not as a server that is not there.
	if err := b.Announce(t.Context(), messages.HostInfo{Zone: testZone, Host: "host-2"}); !errors.Is(err, ErrUnauthorized) {
		t.Errorf("announce another host: %v", err)
	}
	if _, err := b.Publish(t.Context(), testZone, testHost, newTake()); !errors.Is(err, ErrUnauthorized) {
		t.Errorf("publish a command: %v", err)
	}
	if _, err := b.Hosts(t.Context()); !errors.Is(err, ErrUnauthorized) {
		t.Errorf("list hosts: %v", err)
	}
}

func TestRedact(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"nats://h:4222":             "nats://h:4222",
		"h:4222":                    "nats://h:4222",
		"tls://u:p@w@h:1,u:x@i:2":   "tls://h:1,nats://i:2",
		"nats://token@[::1]:4222/x": "nats://[::1]:4222/x",
	} {
		if got := redact(in); got != want {
			t.Errorf("redact(%q) = %q, want %q", in, got, want)
		}
	}
}

// startOther starts a nats-server that is not ours: with users, or without JetStream.
func startOther(t *testing.T, opts *server.Options) string {
	t.Helper()
	opts.Host, opts.Port, opts.NoSigs, opts.NoLog = "127.0.0.1", server.RANDOM_PORT, true, true
	ns, err := server.NewServer(opts)
	if err != nil {
		t.Fatal(err)
	}
	ns.Start()
	t.Cleanup(func() {
		ns.Shutdown()
		ns.WaitForShutdown()
	})
	return ns.ClientURL()
}

// freeAddr is a loopback address where nobody listens.
func freeAddr(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	return l.Addr().String()
}

func writeJSON(t *testing.T, file string, v any) {
	t.Helper()
	data, err := json.Marshal(v)
	if err == nil {
		err = os.MkdirAll(filepath.Dir(file), 0o700)
	}
	if err == nil {
		err = os.WriteFile(file, data, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
}

func newKey(t *testing.T, create func() (nkeys.KeyPair, error)) nkeys.KeyPair {
	t.Helper()
	k, err := create()
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func pub(t *testing.T, k nkeys.KeyPair) string {
	t.Helper()
	p, err := k.PublicKey()
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func encode(t *testing.T, c interface {
	Encode(nkeys.KeyPair) (string, error)
}, k nkeys.KeyPair) string {
	t.Helper()
	s, err := c.Encode(k)
	if err != nil {
		t.Fatal(err)
	}
	return s
}
