package access_test

import (
	"crypto/tls"
	"crypto/x509"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"go.uber.org/goleak"

	"github.com/nasfleet/nasfleet/internal/access"
	"github.com/nasfleet/nasfleet/internal/bus"
	"github.com/nasfleet/nasfleet/internal/secret"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	zone = "z1"
	// patience is for what takes milliseconds on a machine that is not loaded.
	patience = time.Minute
)

// testFleet is a nats-server as publisher init configures it, and two hosts of it, a and b.
type testFleet struct {
	t       *testing.T
	kind    access.Kind
	keys    secret.Folder
	dir     string
	server  *server.Server
	url     string
	creds   map[string]string
	sealers map[string]*secret.Key
	publish *bus.Bus
}

// forBoth runs a test with each kind of users.
func forBoth(t *testing.T, test func(t *testing.T, f *testFleet)) {
	for _, kind := range []access.Kind{access.JWT, access.NKey} {
		t.Run(string(kind), func(t *testing.T) { test(t, newFleet(t, kind)) })
	}
}

func newFleet(t *testing.T, kind access.Kind) *testFleet {
	t.Helper()
	dir := t.TempDir()
	f := &testFleet{
		t: t, kind: kind, dir: filepath.Join(dir, "server"), keys: secret.NewFolder(filepath.Join(dir, "keys")),
		creds: map[string]string{}, sealers: map[string]*secret.Key{},
	}
	s := access.Server{Dir: f.dir, Name: "test", Listen: "127.0.0.1:-1", Names: []string{"127.0.0.1"}, Kind: kind}
	if err := s.Write(f.keys, time.Now()); err != nil {
		t.Fatal(err)
	}
	f.start()
	f.publish = f.connect(bus.Config{Creds: access.PublisherCreds, NKey: access.PublisherNKey})
	if err := f.publish.EnsureZone(t.Context(), zone); err != nil {
		t.Fatal(err)
	}
	f.add("a")
	f.add("b")
	return f
}

// start starts a server from the generated configuration, as it is.
func (f *testFleet) start() {
	f.t.Helper()
	opts, err := server.ProcessConfigFile(filepath.Join(f.dir, access.ConfFile))
	if err != nil {
		f.t.Fatal(err)
	}
	opts.NoSigs, opts.NoLog = true, true
	if f.server, err = server.NewServer(opts); err != nil {
		f.t.Fatal(err)
	}
	f.server.Start()
	f.t.Cleanup(func() {
		f.server.Shutdown()
		f.server.WaitForShutdown()
	})
	if !f.server.ReadyForConnections(patience) {
		f.t.Fatal("the server does not start")
	}
	f.url = strings.Replace(f.server.ClientURL(), "nats://", "tls://", 1)
}

// connect connects with credentials of the key folder, whichever the kind wants.
func (f *testFleet) connect(cfg bus.Config) *bus.Bus {
	f.t.Helper()
	return f.dial(f.as(cfg))
}

// as picks the credentials of the kind.
func (f *testFleet) as(cfg bus.Config) bus.Config {
	if f.kind == access.JWT {
		cfg.Creds, cfg.NKey = f.keys.Path(cfg.Creds), ""
	} else {
		cfg.NKey, cfg.Creds = f.keys.Path(cfg.NKey), ""
	}
	return cfg
}

func (f *testFleet) dial(cfg bus.Config) *bus.Bus {
	f.t.Helper()
	cfg.URL, cfg.CA, cfg.Timeout = f.url, filepath.Join(f.dir, access.CAFile), 20*time.Second
	b, err := bus.Connect(f.t.Context(), cfg)
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(b.Close)
	return b
}

// add adds a host and makes its queue.
func (f *testFleet) add(host string) {
	f.t.Helper()
	key, err := secret.NewKey()
	if err != nil {
		f.t.Fatal(err)
	}
	public, err := key.Public()
	if err != nil {
		f.t.Fatal(err)
	}
	creds, err := access.NewHosts(f.keys).Add(zone, host, public, time.Now())
	if err != nil {
		f.t.Fatal(err)
	}
	file := filepath.Join(f.t.TempDir(), host+".creds")
	if err := os.WriteFile(file, creds, 0o600); err != nil {
		f.t.Fatal(err)
	}
	f.creds[host], f.sealers[host] = file, key
	f.reload()
	if err := f.publish.EnsureQueues(f.t.Context(), zone, []string{host}); err != nil {
		f.t.Fatal(err)
	}
}

// reload has the server read its list of users, where that is a file.
func (f *testFleet) reload() {
	f.t.Helper()
	if f.kind == access.JWT {
		return
	}
	if err := access.WriteHosts(f.keys, f.dir); err != nil {
		f.t.Fatal(err)
	}
	if err := f.server.Reload(); err != nil {
		f.t.Fatal(err)
	}
}

// worker connects as a host's worker does.
func (f *testFleet) worker(host string) *bus.Bus {
	f.t.Helper()
	cfg := bus.Config{InboxPrefix: bus.HostInbox(zone, host)}
	var err error
	if cfg.EventKey, err = f.sealers[host].Derive("event ids"); err != nil {
		f.t.Fatal(err)
	}
	if f.kind == access.JWT {
		cfg.Creds = f.creds[host]
	} else {
		cfg.NKey = f.creds[host]
	}
	return f.dial(cfg)
}

// raw is a client of NATS's own with a host's credentials, which does as it likes.
type raw struct {
	*nats.Conn
	t      *testing.T
	errors chan string
	closed chan struct{}
}

func (f *testFleet) raw(host string, more ...nats.Option) *raw {
	f.t.Helper()
	r := &raw{t: f.t, errors: make(chan string, 1024), closed: make(chan struct{})}
	nc, err := nats.Connect(f.url, append(f.options(host, r), more...)...)
	if err != nil {
		f.t.Fatal(err)
	}
	r.Conn = nc
	f.t.Cleanup(func() {
		nc.Close()
		<-r.closed
	})
	return r
}

func (f *testFleet) options(host string, r *raw) []nats.Option {
	pool := x509.NewCertPool()
	ca, err := os.ReadFile(filepath.Join(f.dir, access.CAFile))
	if err != nil || !pool.AppendCertsFromPEM(ca) {
		f.t.Fatal(err)
	}
	opts := []nats.Option{
		nats.Secure(&tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}), nats.CustomInboxPrefix(bus.HostInbox(zone, host)),
		nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) { r.errors <- err.Error() }),
		nats.ClosedHandler(func(*nats.Conn) { close(r.closed) }), nats.ReconnectBufSize(-1), nats.MaxReconnects(0),
	}
	if f.kind == access.JWT {
		return append(opts, nats.UserCredentials(f.creds[host]))
	}
	nkey, err := nats.NkeyOptionFromSeed(f.creds[host])
	if err != nil {
		f.t.Fatal(err)
	}
	return append(opts, nkey)
}

// refused waits for the server's refusal that names all of these.
func (r *raw) refused(what string, names ...string) {
	r.t.Helper()
	deadline := time.After(patience)
	for {
		select {
		case text := <-r.errors:
			all := strings.Contains(text, "Permissions Violation")
			for _, name := range names {
				all = all && strings.Contains(text, name)
			}
			if all {
				r.t.Logf("%s: %s", what, text)
				return
			}
		case <-deadline:
			r.t.Fatalf("%s: the server did not refuse", what)
		}
	}
}

// publishRefused publishes, which the server has to refuse.
func (r *raw) publishRefused(what, subject string, data string) {
	r.t.Helper()
	if err := r.PublishRequest(subject, r.NewRespInbox(), []byte(data)); err != nil {
		r.t.Fatal(err)
	}
	r.refused(what, "Publish to", `"`+subject+`"`)
}

func (r *raw) subscribeRefused(what, subject string) {
	r.t.Helper()
	if _, err := r.SubscribeSync(subject); err != nil {
		r.t.Fatal(err)
	}
	r.refused(what, "Subscription to", `"`+subject+`"`)
}
