package integration

import (
	"bytes"
	"crypto/rand"
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/nats-io/nats-server/v2/server"

	"github.com/nasfleet/nasfleet/messages"
	"github.com/nasfleet/nasfleet/tests/lab"
)

// guarded is a fleet as docs/operations.md sets one up: a nats-server from the configuration that
// publisher has written, with TLS, a user for each host, and signed commands.
type guarded struct {
	dir, url string
	hosts    map[string]*guardedHost
}

// guardedHost is a running hostworker.
type guardedHost struct {
	cmd   *exec.Cmd
	log   *lab.Output
	ended chan error
}

func newGuarded(t *testing.T, users string) *guarded {
	t.Helper()
	g := &guarded{dir: lab.Dir(t), hosts: map[string]*guardedHost{}}
	g.ok(t, nil, "init", "--server", g.path("nats"), "--server-name", "127.0.0.1", "--listen", "127.0.0.1:-1", "--users", users)
	opts, err := server.ProcessConfigFile(g.path("nats", "nats-server.conf"))
	if err != nil {
		t.Fatal(err)
	}
	opts.NoSigs, opts.NoLog = true, true
	s, err := server.NewServer(opts)
	if err != nil {
		t.Fatal(err)
	}
	s.Start()
	t.Cleanup(func() {
		s.Shutdown()
		s.WaitForShutdown()
	})
	if !s.ReadyForConnections(patience) {
		t.Fatal("the server does not start")
	}
	g.url = strings.Replace(s.ClientURL(), "nats://", "tls://", 1)
	g.ok(t, nil, "init", "--zone", zone)
	key := strings.TrimSpace(g.ok(t, nil, "signkey"))
	for _, host := range []string{"h1", "h2"} {
		seal := g.run(t, "hostworker", nil, "key", "--state-dir", g.path(host, "state"))
		add := []string{"host", "add", zone + "/" + host, "--seal-key", strings.TrimSpace(seal), "--out", g.path(host + ".creds")}
		if users == "nkey" {
			add = append(add, "--server", g.path("nats"))
		}
		g.ok(t, nil, add...)
		if users == "nkey" { // a JWT needs nothing of the server
			if err := s.Reload(); err != nil {
				t.Fatal(err)
			}
		}
		g.ok(t, nil, "init")
		g.start(t, users, host, key)
	}
	if out := g.ok(t, nil, "init", "--check"); !strings.Contains(out, "all is as it should be") {
		t.Errorf("init --check: %s", out)
	}
	return g
}

func (g *guarded) path(parts ...string) string {
	return filepath.Join(append([]string{g.dir}, parts...)...)
}

// start starts the worker of a host with its own credentials, and stops it at the test's end.
func (g *guarded) start(t *testing.T, users, host, publisherKey string) {
	t.Helper()
	flag := "--creds"
	if users == "nkey" {
		flag = "--nkey"
	}
	h := &guardedHost{log: &lab.Output{}, ended: make(chan error, 1)}
	h.cmd = exec.Command(filepath.Join(binDir, "hostworker"), "--log-level", "debug", "run", "--zone", zone, "--host", host,
		"--nats", g.url, "--ca", g.path("nats", "ca.pem"), flag, g.path(host+".creds"), "--publisher-key", publisherKey,
		"--libvirt", "none", "--run-dir", g.path(host, "run"), "--state-dir", g.path(host, "state"),
		"--scratch", g.path(host, "scratch"), "--luks-iter-time", "10ms", "--retry-delay", "200ms")
	h.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	h.cmd.Stderr = h.log
	if err := h.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { h.ended <- h.cmd.Wait() }()
	g.hosts[host] = h
	t.Cleanup(func() {
		_ = h.cmd.Process.Signal(syscall.SIGTERM)
		if err := <-h.ended; err != nil {
			t.Errorf("the worker of %s ended with %v", host, err)
		}
		lab.NoLeftovers(t, g.path(host, "run"))
		if t.Failed() {
			t.Logf("the log of %s:\n%s", host, h.log.Tail(40))
		}
	})
	lab.Eventually(t, host+" announces itself", func() bool {
		out, _, code := g.publisher(nil, "hosts", "--json")
		return code == 0 && strings.Contains(out, `"`+host+`"`)
	})
}

// publisher runs publisher with the credentials that init has made.
func (g *guarded) publisher(stdin []byte, args ...string) (stdout, stderr string, code int) {
	cmd := exec.Command(filepath.Join(binDir, "publisher"), args...)
	cmd.Env = append(os.Environ(), "NASFLEET_KEYS="+g.path("keys"))
	if g.url != "" {
		cmd.Env = append(cmd.Env, "NASFLEET_NATS="+g.url, "NASFLEET_CA="+g.path("nats", "ca.pem"))
		if _, err := os.Stat(g.path("keys", "publisher.creds")); err == nil {
			cmd.Env = append(cmd.Env, "NASFLEET_CREDS="+g.path("keys", "publisher.creds"))
		} else {
			cmd.Env = append(cmd.Env, "NASFLEET_NKEY="+g.path("keys", "publisher.nk"))
		}
	}
	return runProgram(cmd, stdin)
}

func runProgram(cmd *exec.Cmd, stdin []byte) (stdout, stderr string, code int) {
	cmd.Stdin = bytes.NewReader(stdin)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		return "", err.Error(), -1
	}
	return out.String(), errs.String(), cmd.ProcessState.ExitCode()
}

func (g *guarded) ok(t *testing.T, stdin []byte, args ...string) string {
	t.Helper()
	out, errs, code := g.publisher(stdin, args...)
	if code != 0 {
		t.Fatalf("publisher %s: exit code %d\n%s%s", strings.Join(args, " "), code, out, errs)
	}
	return out
}

func (g *guarded) run(t *testing.T, program string, stdin []byte, args ...string) string {
	t.Helper()
	out, errs, code := runProgram(exec.Command(filepath.Join(binDir, program), args...), stdin)
	if code != 0 {
		t.Fatalf("%s %s: exit code %d\n%s%s", program, strings.Join(args, " "), code, out, errs)
	}
	return out
}

// job runs a job to its end.
func (g *guarded) job(t *testing.T, stdin []byte, args ...string) (messages.Event, int) {
	t.Helper()
	out, errs, code := g.publisher(stdin, append(args, "--wait", "--json")...)
	ev, err := messages.DecodeEvent([]byte(out))
	if err != nil || !ev.Kind.Final() {
		t.Fatalf("publisher %s: exit code %d, no final event\n%s%s", strings.Join(args, " "), code, out, errs)
	}
	return ev, code
}

// With the rights that it is given a host does all of its work, and takes no command but the
// publisher's own. One that is revoked is gone; the other one works on.
func TestGuardedFleet(t *testing.T) {
	t.Parallel()
	for _, users := range []string{"jwt", "nkey"} {
		t.Run(users, func(t *testing.T) {
			t.Parallel()
			guardedFleet(t, newGuarded(t, users), users)
		})
	}
}

func guardedFleet(t *testing.T, g *guarded, users string) {
	passphrase := []byte("correct horse battery staple\n")
	image := noise(t, g.path("disk.raw"), 64, 4)
	if err := os.Mkdir(g.path("nas"), 0o755); err != nil {
		t.Fatal(err)
	}
	take := func(host string, more ...string) []string {
		return append([]string{"take", "--zone", zone, "--host", host, "--image", image, "--image-format", "raw", "--repo", g.path("nas")}, more...)
	}
	must := func(stdin []byte, args ...string) messages.Event {
		t.Helper()
		ev, code := g.job(t, stdin, args...)
		if code != 0 {
			t.Fatalf("publisher %s: %s", strings.Join(args, " "), asJSON(ev))
		}
		return ev
	}
	taken := must(passphrase, take("h1", "--compress", "--verify", "--encrypt", "--passphrase-file", "-")...)
	must(passphrase, "verify", "--backup", taken.BackupID, "--passphrase-file", "-")
	must(passphrase, "restore", "--backup", taken.BackupID, "--to", g.path("back"), "--format", "raw", "--passphrase-file", "-")
	want, err := os.ReadFile(image)
	if err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob(g.path("back", "*.raw"))
	if err != nil || len(files) != 1 {
		t.Fatalf("restored: %v, %v", files, err)
	}
	if got, err := os.ReadFile(files[0]); err != nil || !bytes.Equal(got, want) {
		t.Errorf("the restored disk differs: %v", err)
	}
	// h2 sees h1's backup too, and may not enter it in h1's name.
	for _, host := range []string{"h2", "h1"} {
		if out := g.ok(t, nil, "ls", "--refresh", "--zone", zone, "--host", host, "--repo", g.path("nas")); !strings.Contains(out, taken.BackupID) && host == "h1" {
			t.Errorf("h1 does not list its backup: %s", out)
		}
	}
	// What is kept for the zone is the publisher's alone, and comes to a host sealed.
	g.ok(t, []byte("another "+rand.Text()), "zone", "passphrase", "rotate", "--zone", zone)
	must(passphrase, "rekey", "--backup", taken.BackupID, "--passphrase-file", "-")
	must(nil, "verify", "--backup", taken.BackupID)
	g.control(t, take)

	// A publisher that has the credentials, and not the key.
	if err := os.Rename(g.path("keys", "sign.key"), g.path("sign.key")); err != nil {
		t.Fatal(err)
	}
	ev, _ := g.job(t, nil, take("h1")...)
	if ev.Error == nil || ev.Error.Code != messages.CodeCommandUnsigned {
		t.Errorf("an unsigned command: %s", asJSON(ev))
	}
	g.ok(t, nil, "signkey") // another one
	if ev, _ = g.job(t, nil, take("h1")...); ev.Error == nil || ev.Error.Code != messages.CodeCommandForged {
		t.Errorf("a command signed with another key: %s", asJSON(ev))
	}
	if err := os.Rename(g.path("sign.key"), g.path("keys", "sign.key")); err != nil {
		t.Fatal(err)
	}
	// A replay would sign it.
	if out, errs, code := g.publisher(nil, "replay", "--job", ev.JobID); code != 2 || !strings.Contains(errs, "not signed with this publisher's key") {
		t.Errorf("somebody else's command was replayed, exit code %d: %s%s", code, out, errs)
	}
	must(nil, "delete", "--backup", taken.BackupID)
	for host, h := range g.hosts {
		for line := range strings.Lines(h.log.String()) {
			// Whether it may make streams it can only find out by looking at one, and whether it may write
			// the entries of others by trying.
			known := strings.Contains(line, "STREAM.INFO.BACKUP_JOBS_z1") || host == "h2" && strings.Contains(line, "$KV.BACKUP_CATALOG.z1.h1.")
			if strings.Contains(line, "ermissions violation") && !known {
				t.Errorf("%s wanted more rights than it has: %s", host, line)
			}
		}
	}
	g.revoke(t, users)
	must(nil, take("h2")...)
}

// control throttles a job and ends it, by control requests that the host answers.
func (g *guarded) control(t *testing.T, take func(string, ...string) []string) {
	t.Helper()
	job := newJobID()
	g.ok(t, nil, take("h1", "--bandwidth", "1", "--job-id", job)...)
	lab.Eventually(t, "the job runs", func() bool {
		var info struct {
			State string `json:"state"`
		}
		out, _, code := g.publisher(nil, "job", job, "--json")
		return code == 0 && json.Unmarshal([]byte(out), &info) == nil && info.State == "running"
	})
	g.ok(t, nil, "throttle", job, "2")
	g.ok(t, nil, "cancel", job)
}

// revoke takes h1's credentials from it, and its worker is cut off.
func (g *guarded) revoke(t *testing.T, users string) {
	t.Helper()
	args := []string{"host", "revoke", zone + "/h1"}
	if users == "nkey" {
		return // the server has to be told by a signal, which would be the test's own
	}
	g.ok(t, nil, args...)
	lab.Eventually(t, "h1 is cut off", func() bool {
		return strings.Contains(strings.ToLower(g.hosts["h1"].log.Tail(20)), "authorization violation") ||
			strings.Contains(strings.ToLower(g.hosts["h1"].log.String()), "revoked")
	})
}
