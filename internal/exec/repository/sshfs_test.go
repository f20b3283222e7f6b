package repository

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nasfleet/nasfleet/messages"
)

// sshServer is an sshd on the loopback with keys of its own and a folder to serve.
type sshServer struct {
	pid  int
	spec messages.Repository
}

func startSSH(t *testing.T) *sshServer {
	t.Helper()
	dir, port := t.TempDir(), freePort(t)
	for _, key := range []string{"host", "user"} {
		if out, err := exec.Command("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", filepath.Join(dir, key)).CombinedOutput(); err != nil {
			t.Fatalf("ssh-keygen: %v: %s", err, out)
		}
	}
	check(t, os.MkdirAll("/run/sshd", 0o755))
	check(t, os.Mkdir(filepath.Join(dir, "served"), 0o700))
	conf := fmt.Sprintf("Port %[1]s\nListenAddress 127.0.0.1\nHostKey %[2]s/host\nAuthorizedKeysFile %[2]s/user.pub\n"+
		"StrictModes no\nUsePAM no\nPidFile none\nPermitRootLogin yes\nSubsystem sftp internal-sftp\n", port, dir)
	check(t, os.WriteFile(filepath.Join(dir, "conf"), []byte(conf), 0o600))
	public, err := os.ReadFile(filepath.Join(dir, "host.pub"))
	check(t, err)
	known := fmt.Sprintf("[127.0.0.1]:%s %s", port, public)
	check(t, os.WriteFile(filepath.Join(dir, "known"), []byte(known), 0o600))

	cmd := exec.Command("/usr/sbin/sshd", "-D", "-e", "-f", filepath.Join(dir, "conf"))
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	log, err := cmd.StderrPipe()
	check(t, err)
	check(t, cmd.Start())
	s := &sshServer{pid: cmd.Process.Pid}
	drained := make(chan struct{})
	t.Cleanup(func() {
		for _, pid := range append(s.descendants(t), s.pid) {
			_ = unix.Kill(pid, unix.SIGKILL)
		}
		<-drained
		_ = cmd.Wait()
	})
	lines := bufio.NewScanner(log)
	for lines.Scan() && !strings.Contains(lines.Text(), "Server listening") {
		t.Log(lines.Text())
	}
	go func() {
		defer close(drained)
		for lines.Scan() { // sshd must never wait for its log
			continue
		}
	}()
	s.spec = messages.Repository{
		Type:         "fuse.sshfs",
		Address:      "root@127.0.0.1:" + filepath.Join(dir, "served"),
		MountOptions: fmt.Sprintf("port=%s,IdentityFile=%s/user,UserKnownHostsFile=%s/known", port, dir, dir),
	}
	return s
}

// descendants returns the processes of the connections.
func (s *sshServer) descendants(t *testing.T) []int {
	t.Helper()
	var all []int
	for next := []int{s.pid}; len(next) > 0; next = next[1:] {
		files, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", next[0]))
		check(t, err)
		for _, f := range files {
			data, _ := os.ReadFile(f)
			for _, word := range strings.Fields(string(data)) {
				var pid int
				_, err := fmt.Sscan(word, &pid)
				check(t, err)
				all, next = append(all, pid), append(next, pid)
			}
		}
	}
	return all
}

// clients returns the sshfs and ssh processes that serve a mount.
func clients(t *testing.T, s *sshServer) []string {
	t.Helper()
	procs, err := filepath.Glob("/proc/[0-9]*/cmdline")
	check(t, err)
	_, port, _ := strings.Cut(s.spec.MountOptions, "port=")
	port, _, _ = strings.Cut(port, ",")
	var found []string
	for _, p := range procs {
		if data, err := os.ReadFile(p); err == nil && strings.Contains(string(data), "port="+port) {
			found = append(found, strings.ReplaceAll(string(data), "\x00", " "))
		}
	}
	return found
}

func TestSSHFS(t *testing.T) {
	s, dir, loc := startSSH(t), mountDir(t), location()
	r, err := Open(t.Context(), s.spec, Options{MountDir: dir})
	check(t, err)
	if info := mounted(t, dir); info == nil || info.FSType != "fuse.sshfs" {
		t.Fatalf("mounted: %+v", info)
	}
	if free, err := r.FreeBytes(t.Context()); err != nil || free <= 0 {
		t.Fatalf("%d bytes free, %v", free, err)
	}
	left, err := r.Create(t.Context(), loc)
	check(t, err)
	fill(t, left)
	commit(t, r, loc)
	_, err = r.Find(t.Context(), ref(loc))
	check(t, err)
	check(t, r.Delete(t.Context(), ref(loc)))
	_, problems, err := r.List(t.Context(), loc.BackupPath, "")
	check(t, err)
	if len(problems) != 0 {
		t.Fatal(problems)
	}
	commit(t, r, loc)
	check(t, r.Close())
	wantUnmounted(t, dir, "")
	if c := clients(t, s); len(c) != 0 {
		t.Fatalf("left running: %q", c)
	}
	_, folder, _ := strings.Cut(s.spec.Address, ":")
	if n := names(t, filepath.Join(folder, loc.folder())); len(n) != 1 || n[0] != testID {
		t.Fatalf("on the server: %v", n)
	}
}

func TestSSHFSRefused(t *testing.T) {
	s, dir := startSSH(t), mountDir(t)
	for name, c := range map[string]struct{ address, options, words string }{
		"nobody listens": {s.spec.Address, "port=" + freePort(t), "Connection refused"},
		"unknown host":   {s.spec.Address, strings.ReplaceAll(s.spec.MountOptions, "/known", "/unknown"), "Host key verification failed"},
		"no such folder": {s.spec.Address + "/no", s.spec.MountOptions, "No such file"},
	} {
		t.Run(name, func(t *testing.T) {
			spec := messages.Repository{Type: "fuse.sshfs", Address: c.address, MountOptions: c.options}
			_, err := Open(t.Context(), spec, Options{MountDir: dir})
			wantCode(t, err, messages.CodeMountFailed)
			if !strings.Contains(err.Error(), c.words) {
				t.Errorf("%q is not in %v", c.words, err)
			}
			wantUnmounted(t, dir, "")
			waitFor(t, "the programs to end", func() bool { return len(clients(t, s)) == 0 })
		})
	}
}

// The server stops in the middle of the job: each call returns with its context, and Close takes everything
// away.
func TestSSHFSHangs(t *testing.T) {
	s, dir := startSSH(t), mountDir(t)
	r, err := Open(t.Context(), s.spec, Options{MountDir: dir})
	check(t, err)
	p, err := r.Create(t.Context(), location())
	check(t, err)
	connections := s.descendants(t)
	if len(connections) == 0 {
		t.Fatal("no connection")
	}
	for _, pid := range connections {
		check(t, unix.Kill(pid, unix.SIGSTOP))
	}
	start := time.Now()
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	wantCode(t, p.WriteFile(ctx, "domain.xml", []byte("x")), messages.CodeTimeout)
	ctx, cancel = context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	wantCode(t, p.Discard(ctx), messages.CodeTimeout)
	check(t, r.Close())
	if d := time.Since(start); d > 20*time.Second {
		t.Fatalf("took %s", d)
	}
	wantUnmounted(t, dir, "")
	waitFor(t, "the programs to end", func() bool { return len(clients(t, s)) == 0 })
}

// The server stops and sshfs dies: the ssh that is left does not wait for its server.
func TestSSHFSDies(t *testing.T) {
	s, dir := startSSH(t), mountDir(t)
	r, err := Open(t.Context(), s.spec, Options{MountDir: dir})
	check(t, err)
	for _, pid := range s.descendants(t) {
		check(t, unix.Kill(pid, unix.SIGSTOP))
	}
	check(t, unix.Kill(r.mnt.daemon.PID(), unix.SIGKILL))
	waitFor(t, "the programs to end", func() bool { return len(clients(t, s)) == 0 })
	_, err = r.Create(t.Context(), location())
	wantCode(t, err, messages.CodeRepositoryLost)
	check(t, r.Close())
	wantUnmounted(t, dir, "")
}

// The server hangs before it says anything: only the timeout ends it.
func TestSSHFSSilent(t *testing.T) {
	s, dir := startSSH(t), mountDir(t)
	check(t, unix.Kill(s.pid, unix.SIGSTOP))
	_, err := Open(t.Context(), s.spec, Options{MountDir: dir, Timeout: 500 * time.Millisecond})
	wantCode(t, err, messages.CodeMountFailed)
	wantUnmounted(t, dir, "")
	waitFor(t, "the programs to end", func() bool { return len(clients(t, s)) == 0 })
}
