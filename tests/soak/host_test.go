package soak

import (
	"bytes"
	"crypto/rand"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/nasfleet/nasfleet/messages"
	"github.com/nasfleet/nasfleet/tests/lab"
)

// host is one worker with its libvirt, its guests and its own way to NATS.
type host struct {
	name string
	// dir holds the worker's folders, but for the scratch folder and the repository of type dir, which are
	// file systems that can be filled.
	dir, scratch, nas string
	sshd              *lab.SSHServer
	libvirt           *lab.Libvirt
	nats              *lab.Proxy
	metrics           string
	sources           []*source

	worker *exec.Cmd
	log    *lab.Output
	ended  chan error
}

// source is something to back up, and what is in it.
type source struct {
	vm     string // "" for an image
	vmRuns *lab.VM
	disks  map[string]string // raw files by the disk's name
}

// image is the path of an image.
func (s *source) image() string { return s.disks["disk0"] }

const zone = "z1"

func newHost(t *testing.T, name, natsAddress string) *host {
	t.Helper()
	h := &host{
		name: name, dir: lab.Dir(t), scratch: lab.LoopFS(t, 64), nas: lab.LoopFS(t, 400), sshd: lab.Sshd(t), libvirt: lab.Libvirtd(t),
		nats:    lab.StartProxy(t, lab.NATSFrames, "tcp", "127.0.0.1:0", func() (string, string) { return "tcp", natsAddress }),
		metrics: fmt.Sprintf("127.0.0.1:%d", lab.FreePort(t)),
	}
	h.makeSources(t)
	h.start(t)
	t.Cleanup(func() {
		h.stop(t)
		lab.NoLeftovers(t, filepath.Join(h.dir, "run"))
		if t.Failed() {
			t.Logf("%s's log:\n%s", h.name, h.log.Tail(80))
		}
	})
	return h
}

// makeSources makes two running VMs, a stopped one and two images. The disks are small, and all different.
func (h *host) makeSources(t *testing.T) {
	t.Helper()
	n := 0
	disk := func() string {
		n++
		return noise(t, filepath.Join(h.dir, fmt.Sprintf("disk-%d.raw", n)), 8, 1+n%4)
	}
	for _, vm := range []struct {
		name    string
		disks   int
		stopped bool
	}{{"up-one", 1, false}, {"up-two", 2, false}, {"down", 1, true}} {
		s := &source{vm: h.name + "-" + vm.name, disks: map[string]string{}}
		var disks []lab.Disk
		for i := range vm.disks {
			d := lab.Disk{Path: disk(), Format: "raw"}
			s.disks[fmt.Sprintf("vd%c", 'a'+i)] = d.Path
			disks = append(disks, d)
		}
		v := h.libvirt.DefineVM(t, lab.VMOptions{Name: s.vm, Disks: disks, Stopped: vm.stopped})
		if !vm.stopped {
			s.vmRuns = v
		}
		h.sources = append(h.sources, s)
	}
	for range 2 {
		h.sources = append(h.sources, &source{disks: map[string]string{"disk0": disk()}})
	}
}

// noise makes a raw image of which the first data MiB are random, and the rest is a hole.
func noise(t *testing.T, path string, sizeMiB, dataMiB int) string {
	t.Helper()
	data := make([]byte, dataMiB*lab.MiB)
	_, _ = rand.Read(data)
	if err := os.WriteFile(path, data, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, int64(sizeMiB)*lab.MiB); err != nil {
		t.Fatal(err)
	}
	return path
}

// scratchReserve is what has to stay free in the scratch folder, in MiB.
const scratchReserve = 16

// start starts the worker and waits until it takes commands, which it cannot while NATS is away.
func (h *host) start(t *testing.T) {
	t.Helper()
	h.worker = exec.Command(filepath.Join(binDir, "hostworker"), "run", "--zone", zone, "--host", h.name,
		"--nats", "nats://"+h.nats.Addr(), "--libvirt", h.libvirt.URI, "--jobs", "3", "--metrics", h.metrics,
		"--run-dir", filepath.Join(h.dir, "run"), "--state-dir", filepath.Join(h.dir, "state"),
		"--scratch", h.scratch, "--scratch-reserve", strconv.Itoa(scratchReserve),
		"--ack-wait", "2s", "--retry-delay", "50ms", "--grace", "300ms", "--mount-timeout", "10s", "--luks-iter-time", "10ms", "--mount-credentials", os.TempDir())
	h.worker.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	h.log = &lab.Output{}
	h.worker.Stderr = h.log
	if err := h.worker.Start(); err != nil {
		t.Fatal(err)
	}
	h.ended = make(chan error, 1)
	go func() { h.ended <- h.worker.Wait() }()
	lab.Eventually(t, h.name+" is ready", func() bool {
		select {
		case err := <-h.ended:
			t.Fatalf("%s ended: %v\n%s", h.name, err, h.log.Tail(20))
		default:
		}
		return strings.Contains(h.log.String(), `"message":"ready"`)
	})
}

// kill ends the worker as a crash would; what it had started ends with it.
func (h *host) kill(t *testing.T) {
	t.Helper()
	if err := h.worker.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := <-h.ended; err == nil {
		t.Errorf("%s ended in order although it was killed", h.name)
	}
	lab.Eventually(t, "the children of "+h.name+" are gone", func() bool {
		return len(lab.ProcessesWithArg(t, filepath.Join(h.dir, "run")+"/")) == 0
	})
}

// stop ends the worker in order.
func (h *host) stop(t *testing.T) {
	t.Helper()
	_ = h.worker.Process.Signal(syscall.SIGTERM)
	select {
	case err := <-h.ended:
		if err != nil {
			t.Errorf("%s ended with %v", h.name, err)
		}
	case <-time.After(2 * time.Minute):
		t.Fatalf("%s does not end:\n%s", h.name, h.log.Tail(40))
	}
}

// children lists the processes that the worker has started, by their program's name.
func (h *host) children() map[int]string {
	found := map[int]string{}
	files, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", h.worker.Process.Pid))
	for _, f := range files {
		data, _ := os.ReadFile(f) // a thread may have just ended
		for _, text := range strings.Fields(string(data)) {
			pid, _ := strconv.Atoi(text)
			name, _ := os.ReadFile("/proc/" + text + "/comm")
			found[pid] = strings.TrimSpace(string(name))
		}
	}
	return found
}

// repositories are where the host's backups go.
func (h *host) repositories() []messages.Repository {
	return []messages.Repository{
		{Type: messages.RepositoryDir, Address: h.nas},
		{Type: "fuse.sshfs", Address: h.sshd.Address(), MountOptions: h.sshd.Options()},
	}
}

// held is what a worker holds that could leak.
type held struct{ descriptors, goroutines, threads int }

func (h *host) held(t *testing.T) held {
	t.Helper()
	fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", h.worker.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	threads, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", h.worker.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	return held{len(fds), h.metric(t, "go_goroutines"), len(threads)}
}

func (h *host) metric(t *testing.T, name string) int {
	t.Helper()
	client := http.Client{Timeout: time.Minute, Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Get("http://" + h.metrics + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = resp.Body.Close() }()
	var body bytes.Buffer
	if _, err := body.ReadFrom(resp.Body); err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(body.String()) {
		if value, ok := strings.CutPrefix(line, name+" "); ok {
			n, err := strconv.Atoi(strings.TrimSpace(value))
			if err != nil {
				t.Fatal(err)
			}
			return n
		}
	}
	t.Fatalf("no metric %s", name)
	return 0
}
