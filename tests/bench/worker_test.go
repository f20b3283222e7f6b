package bench

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/nasfleet/nasfleet/internal/exec/repository"
	"github.com/nasfleet/nasfleet/messages"
	"github.com/nasfleet/nasfleet/tests/lab"
)

const (
	zone = "bench"
	host = "host-1"
)

// build makes our programs as `make build` does and returns their folder.
func build(b *testing.B) string {
	b.Helper()
	dir := lab.Dir(b)
	lab.Run(b, "go", "build", "-tags", "libvirt_dlopen", "-o", dir, "../../cmd/publisher", "../../cmd/hostworker")
	return dir
}

// worker is a hostworker with a NATS server of its own.
type worker struct {
	programs string
	url      string
	cmd      *exec.Cmd
}

var urlPattern = regexp.MustCompile(`nats://127\.0\.0\.1:\d+`)

// startWorker starts a hostworker and waits until it takes commands. It ends with the benchmark.
func startWorker(b *testing.B, programs, libvirt string) *worker {
	b.Helper()
	dir := lab.Dir(b)
	w := &worker{programs: programs}
	w.cmd = exec.Command(filepath.Join(programs, "hostworker"),
		"run", "--zone", zone, "--host", host, "--libvirt", libvirt,
		"--embedded-nats", filepath.Join(dir, "nats"), "--listen", "127.0.0.1:0",
		"--run-dir", filepath.Join(dir, "run"), "--state-dir", filepath.Join(dir, "state"),
		"--scratch", filepath.Join(dir, "scratch"), "--scratch-reserve", "16",
		"--mount-credentials", os.TempDir())
	w.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	log := &lab.Output{}
	w.cmd.Stderr = log
	if err := w.cmd.Start(); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		_ = w.cmd.Process.Signal(syscall.SIGTERM)
		if err := w.cmd.Wait(); err != nil {
			b.Errorf("the worker ended: %v", err)
		}
		if b.Failed() {
			b.Logf("the worker's log:\n%s", log.String())
		}
	})
	lab.Eventually(b, "the worker announces itself", func() bool {
		if w.url = urlPattern.FindString(log.String()); w.url == "" {
			return false
		}
		out, err := w.publisher("hosts", "--json").Output()
		return err == nil && bytes.Contains(out, []byte(`"`+host+`"`))
	})
	return w
}

func (w *worker) publisher(args ...string) *exec.Cmd {
	cmd := exec.Command(filepath.Join(w.programs, "publisher"), args...)
	cmd.Env = append(os.Environ(), "NASFLEET_NATS="+w.url)
	return cmd
}

// take takes a backup and returns how long the command took, and its final event.
func (w *worker) take(b *testing.B, repo string, args ...string) (time.Duration, messages.Event) {
	b.Helper()
	return w.takeTo(b, []string{"--repo", repo}, args...)
}

// takeTo is take for a repository that takes several flags to name.
func (w *worker) takeTo(b *testing.B, repo []string, args ...string) (time.Duration, messages.Event) {
	b.Helper()
	all := append([]string{"take", "--zone", zone, "--host", host, "--wait", "--json"}, repo...)
	cmd := w.publisher(append(all, args...)...)
	started := time.Now()
	out, err := cmd.Output()
	took := time.Since(started)
	if err != nil {
		b.Fatalf("publisher take: %v\n%s", err, out)
	}
	ev, err := messages.DecodeEvent(out)
	if err != nil || ev.Kind != messages.KindSucceeded {
		b.Fatalf("publisher take: %v\n%s", err, out)
	}
	return took, ev
}

// peak returns the most memory the worker has had, in bytes.
func (w *worker) peak(b *testing.B) int64 {
	b.Helper()
	_, bytes := peakOf(w.cmd.Process.Pid)
	if bytes == 0 {
		b.Fatal("the worker's memory cannot be read")
	}
	return bytes
}

// ours backs the guest up with nasfleet.
func (s *scene) ours(flags ...string) way {
	return func(b *testing.B, out string) (sample, string) {
		b.Helper()
		memory := watchMemory(s.worker.cmd.Process.Pid)
		took, ev := s.worker.take(b, out, append([]string{"--vm", vmName}, flags...)...)
		folder := filepath.Join(out, vmName, ev.BackupID)
		var man repository.Manifest
		must(b, json.Unmarshal([]byte(read(b, filepath.Join(folder, "manifest.json"))), &man))
		result := sample{
			took: took, job: time.Duration(ev.Seconds * float64(time.Second)),
			stored: blocks(b, folder), memory: memory(),
		}
		if !slices.Contains(flags, "--verify") {
			result.copying = man.FinishedAt.Sub(man.CreatedAt)
		}
		return result, imageOptions(filepath.Join(folder, man.Disks[0].File), man.Encryption.LUKS)
	}
}

// imageOptions names a backup for qemu-img.
func imageOptions(path string, luks bool) string {
	if luks {
		return "driver=qcow2,file.driver=luks,file.key-secret=pass,file.file.driver=file,file.file.filename=" + path
	}
	return fmt.Sprintf("driver=qcow2,file.driver=file,file.filename=%s", path)
}
