package main

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/nasfleet/nasfleet/internal/bus"
	"github.com/nasfleet/nasfleet/messages"
	"github.com/nasfleet/nasfleet/tests/lab"
)

// prompt is how soon a worker without jobs has to end.
const prompt = 10 * time.Second

func TestWorksAndStopsInOrder(t *testing.T) {
	dir := lab.Dir(t)
	n := startNode(t, dir, "--embedded-nats", filepath.Join(dir, "nats"), "--listen", "127.0.0.1:0", "--metrics", "127.0.0.1:0")
	b := connect(t, n.natsURL(t))
	info := awaitHost(t, b)
	if info.SealKey == "" || info.Slots != 2 || info.Version != version {
		t.Errorf("%+v", info)
	}
	if log := n.log.String(); strings.Contains(log, "nats://127.0.0.1:4222") || !strings.Contains(log, `"server":"embedded"`) {
		t.Errorf("the log misleads about the server:\n%s", log)
	}
	page := "http://" + n.find(t, `"addr":"([^"]+)"`)
	if status, body := get(t, page+"/healthz"); status != http.StatusOK || body != "ok\n" {
		t.Errorf("healthz: %d %s", status, body)
	}

	ev := succeeded(t, publish(t, b, newTake(image(t, dir, 4), folder(t, dir+"/nas"), 0)))
	if ev.BackupID == "" || ev.Attempt != 1 {
		t.Errorf("%+v", ev)
	}
	metrics := ""
	lab.Eventually(t, "no job runs", func() bool {
		_, metrics = get(t, page+"/metrics")
		return strings.Contains(metrics, "nasfleet_jobs_running 0\n")
	})
	for _, want := range []string{
		`nasfleet_attempts_total{code="",kind="succeeded",type="TakeBackup"} 1`,
		fmt.Sprintf("nasfleet_backup_data_bytes_total %g", float64(4*lab.MiB)), "process_resident_memory_bytes",
	} {
		if !strings.Contains(metrics, want) {
			t.Errorf("no %s in\n%s", want, metrics)
		}
	}

	if ours, its := mountNamespace(t, os.Getpid()), mountNamespace(t, n.cmd.Process.Pid); ours == its {
		t.Errorf("the worker is in the mount namespace of the test, %s", ours)
	}
	own := slices.Min(slices.Collect(maps.Values(threadsNice(t, os.Getpid())))) // whoever runs the tests may stand back already
	for id, nice := range threadsNice(t, n.cmd.Process.Pid) {
		if nice != max(own, 10) {
			t.Errorf("thread %s has a nice value of %d", id, nice)
		}
	}
	comm, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", n.cmd.Process.Pid))
	if err != nil || !strings.HasPrefix(string(comm), "hostworker") {
		t.Errorf("the process is called %q, %v", comm, err)
	}
	b.Close()
	n.stop(t, prompt)
	lab.NoProcessWithArg(t, dir)
	for line := range strings.Lines(n.log.String()) {
		if !json.Valid([]byte(line)) {
			t.Errorf("not JSON: %s", line)
		}
	}
}

func TestHostIsWithdrawn(t *testing.T) {
	server := startServer(t, "127.0.0.1:0")
	n := startNode(t, lab.Dir(t), "--nats", server.ClientURL())
	b := connect(t, server.ClientURL())
	awaitHost(t, b)
	if err := n.cmd.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	if code := n.wait(t, prompt); code != 0 {
		t.Errorf("exit code %d after an interrupt", code)
	}
	if hosts, err := b.Hosts(t.Context()); err != nil || len(hosts) != 0 {
		t.Errorf("%+v, %v", hosts, err)
	}
}

func TestSecondWorkerIsRefused(t *testing.T) {
	dir := lab.Dir(t)
	store := filepath.Join(dir, "nats")
	n := startNode(t, dir, "--embedded-nats", store, "--listen", "127.0.0.1:0")
	b := connect(t, n.natsURL(t))
	awaitHost(t, b)
	for name, tt := range map[string]struct {
		args  []string
		wants []string
	}{
		"of its name": {[]string{"--nats", n.natsURL(t)}, []string{
			"hostworker: another hostworker of z1/h1 runs on this machine", "Stop the other worker, or give this one another --host and --state-dir.",
		}},
		// Not even NATS has to be there to see that.
		"of its name, without NATS": {[]string{"--nats", "nats://127.0.0.1:1"}, []string{"another hostworker of z1/h1 runs on this machine"}},
		"on its store": {[]string{"--embedded-nats", store, "--state-dir", filepath.Join(dir, "state2")}, []string{
			"hostworker: the NATS store folder is in use", store, "Stop the other worker, or give this one a folder of its own.",
		}},
	} {
		t.Run(name, func(t *testing.T) {
			second := startNode(t, dir, tt.args...)
			if code := second.wait(t, prompt); code != exitFailed {
				t.Errorf("exit code %d", code)
			}
			for _, want := range tt.wants {
				if !strings.Contains(second.log.String(), want) {
					t.Errorf("no %q in\n%s", want, second.log)
				}
			}
		})
	}
	succeeded(t, publish(t, b, newTake(image(t, dir, 1), folder(t, dir+"/nas"), 0)))
	b.Close()
	n.stop(t, prompt)
}

func TestWaitsForNATS(t *testing.T) {
	dir, addr := lab.Dir(t), freeAddress(t)
	n := startNode(t, dir, "--nats", "nats://"+addr, "--metrics", "127.0.0.1:0")
	n.waitLog(t, "waits for NATS")
	page := "http://" + n.find(t, `"addr":"([^"]+)"`) + "/healthz"
	if status, body := get(t, page); status != http.StatusServiceUnavailable || body != "waits for NATS\n" {
		t.Errorf("healthz: %d %s", status, body)
	}
	server := startServer(t, addr)
	b := connect(t, server.ClientURL())
	if err := b.EnsureZone(t.Context(), zone); err != nil {
		t.Fatal(err)
	}
	awaitHost(t, b)
	if status, body := get(t, page); status != http.StatusOK {
		t.Errorf("healthz: %d %s", status, body)
	}
	succeeded(t, publish(t, b, newTake(image(t, dir, 1), folder(t, dir+"/nas"), 0)))

	// And without it once more: it ends in order all the same.
	b.Close()
	server.Stop()
	n.waitLog(t, "NATS connection lost")
	if status, body := get(t, page); status != http.StatusServiceUnavailable || body != "no connection to NATS\n" {
		t.Errorf("healthz: %d %s", status, body)
	}
	n.stop(t, 2*prompt)
}

func TestStopWhileWaiting(t *testing.T) {
	for what, args := range map[string][]string{
		"NATS":    {"--nats", "nats://" + freeAddress(t)},
		"libvirt": {"--nats", "nats://" + freeAddress(t), "--libvirt", "qemu:///system?socket=/nowhere/sock"},
	} {
		t.Run(what, func(t *testing.T) {
			n := startNode(t, lab.Dir(t), args...)
			n.waitLog(t, "waits for "+what)
			n.stop(t, prompt)
			if strings.Contains(n.log.String(), "ready") {
				t.Errorf("it was ready:\n%s", n.log)
			}
		})
	}
}

// TestKilledInTheMiddle kills a worker that copies, and its NATS server with it.
func TestKilledInTheMiddle(t *testing.T) {
	t.Parallel()
	dir := lab.Dir(t)
	args := []string{"--embedded-nats", filepath.Join(dir, "nats"), "--listen", freeAddress(t)}
	n := startNode(t, dir, args...)
	b := connect(t, n.natsURL(t))
	awaitHost(t, b)
	nas := filepath.Join(dir, "nas")
	cmd := newTake(image(t, dir, 8), folder(t, nas), 2)
	until(t, publish(t, b, cmd), "it copies", copying)
	if err := n.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	n.wait(t, prompt)
	lab.NoLeftovers(t, dir)
	if len(partials(t, nas)) != 1 {
		t.Fatal("it was not killed in the middle")
	}

	n = startNode(t, dir, args...)
	b = connect(t, n.natsURL(t))
	if ev := succeeded(t, watchJob(t, b, cmd.JobID)); ev.Attempt != 2 || ev.BackupID != cmd.JobID {
		t.Errorf("%+v", ev)
	}
	if got := kinds(t, b, cmd.JobID); got != "accepted accepted succeeded" {
		t.Errorf("events: %s", got)
	}
	manifests, err := filepath.Glob(nas + "/*/*/manifest.json")
	if err != nil || len(manifests) != 1 || len(partials(t, nas)) != 0 {
		t.Errorf("%q, %q, %v", manifests, partials(t, nas), err)
	}
	b.Close()
	n.stop(t, prompt)
}

func partials(t *testing.T, nas string) []string {
	t.Helper()
	found, err := filepath.Glob(nas + "/*/*.partial")
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// TestMountsAreItsOwn looks at a mounted repository from both sides, and takes the worker away
// from under it in order and not.
func TestMountsAreItsOwn(t *testing.T) {
	t.Parallel()
	server := startServer(t, "127.0.0.1:0")
	b := connect(t, server.ClientURL())
	dir := lab.Dir(t)
	runDir := filepath.Join(dir, "run")
	repo := messages.Repository{Type: "ext4", Address: lab.LoopImage(t, 64), MountOptions: "loop"}
	cmd := newTake(image(t, dir, 12), repo, 2)
	cmd.Attempts = 2
	watch := publish(t, b, cmd)
	for i, sig := range []syscall.Signal{syscall.SIGKILL, syscall.SIGTERM} {
		n := startNode(t, dir, "--nats", server.ClientURL(), "--grace", "100ms")
		until(t, watch, "it copies", func(u bus.Update) bool { return copying(u) && u.Progress.Attempt == i+1 })
		if !mountsBelow(t, n.cmd.Process.Pid, runDir) {
			t.Error("the worker does not see its mount")
		}
		if mountsBelow(t, os.Getpid(), runDir) {
			t.Error("the host sees the worker's mount")
		}
		if sig == syscall.SIGTERM {
			n.stop(t, prompt)
			continue
		}
		if err := n.cmd.Process.Signal(sig); err != nil {
			t.Fatal(err)
		}
		n.wait(t, prompt)
		lab.NoLeftovers(t, dir)
		lab.NoLoopDevicesBelow(t, filepath.Dir(repo.Address))
	}
	// The job was given back without an attempt spent; this worker finds its command.
	n := startNode(t, dir, "--nats", server.ClientURL())
	if ev := succeeded(t, watch); ev.Attempt != 2 {
		t.Errorf("%+v", ev)
	}
	n.stop(t, prompt)
	lab.NoLoopDevicesBelow(t, filepath.Dir(repo.Address))
}

// TestSecondSignal hurries a worker that gives its job an hour: the job is stopped, cleaned up and
// given back at once, and is the next worker's.
func TestSecondSignal(t *testing.T) {
	t.Parallel()
	server := startServer(t, "127.0.0.1:0")
	b := connect(t, server.ClientURL())
	dir := lab.Dir(t)
	n := startNode(t, dir, "--nats", server.ClientURL(), "--grace", "1h", "--metrics", "127.0.0.1:0")
	nas := filepath.Join(dir, "nas")
	cmd := newTake(image(t, dir, 8), folder(t, nas), 1)
	cmd.Attempts = 1
	watch := publish(t, b, cmd)
	until(t, watch, "it copies", copying)
	if err := n.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	lab.Eventually(t, "the host is withdrawn", func() bool {
		hosts, err := b.Hosts(t.Context())
		return err == nil && len(hosts) == 0
	})
	until(t, watch, "it goes on copying", copying)
	n.stop(t, patience)
	if found := partials(t, nas); len(found) != 0 {
		t.Errorf("left: %q", found)
	}
	n = startNode(t, dir, "--nats", server.ClientURL())
	if ev := succeeded(t, watch); ev.Attempt != 1 {
		t.Errorf("an attempt was spent: %+v", ev)
	}
	b.Close()
	n.stop(t, prompt)
}

// TestSignals: the first ends the context, the second hurries, and then they are no longer caught.
func TestSignals(t *testing.T) {
	ctx, h, release := catchSignals()
	defer release()
	self, err := os.FindProcess(os.Getpid())
	if err != nil {
		t.Fatal(err)
	}
	if err := self.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	<-ctx.Done()
	select {
	case <-h:
		t.Error("one signal hurries")
	default:
	}
	if err := self.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	<-h
}

// TestWithoutRights runs a worker as a user who may neither mount nor unshare.
func TestWithoutRights(t *testing.T) {
	server := startServer(t, "127.0.0.1:0")
	b := connect(t, server.ClientURL())
	dir := lab.Dir(t)

	n := &node{dir: dir, log: &lab.Output{}, ended: make(chan struct{})}
	n.cmd = program(t, nil, append(nodeArgs(filepath.Join(dir, "denied")), "--nats", server.ClientURL())...)
	asNobody(t, n.cmd, dir)
	n.start(t)
	if code := n.wait(t, prompt); code != exitFailed || !strings.Contains(n.log.String(), "permission denied\nRun it as root, or") {
		t.Errorf("exit code %d\n%s", code, n.log)
	}

	home := filepath.Join(dir, "home")
	if err := os.Mkdir(home, 0o777); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(home, 0o777); err != nil {
		t.Fatal(err)
	}
	n = &node{dir: home, log: &lab.Output{}, ended: make(chan struct{})}
	n.cmd = program(t, nil, append(nodeArgs(home), "--nats", server.ClientURL())...)
	asNobody(t, n.cmd, dir)
	n.start(t)
	n.waitLog(t, "no right to a mount namespace")
	succeeded(t, publish(t, b, newTake(image(t, dir, 1), folder(t, home), 0)))
	n.stop(t, prompt)
}
