package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
)

// SSHServer is a private sshd on loopback that serves sftp to root with one key.
type SSHServer struct {
	// Port on 127.0.0.1.
	Port int
	// Export is an empty folder to mount.
	Export string
	// KeyFile is the private key that may log in, KnownHosts the file that names the host key.
	KeyFile    string
	KnownHosts string
	cmd        *exec.Cmd
}

const sshdConf = `ListenAddress 127.0.0.1:%[1]d
HostKey %[2]s/host
AuthorizedKeysFile %[2]s/key.pub
PidFile none
StrictModes no
UsePAM no
PermitRootLogin prohibit-password
PasswordAuthentication no
Subsystem sftp internal-sftp
`

// Sshd starts a private sshd. It and its sessions end with the test.
func Sshd(t testing.TB) *SSHServer {
	t.Helper()
	dir := Dir(t)
	s := &SSHServer{
		Port:       FreePort(t),
		Export:     filepath.Join(dir, "export"),
		KeyFile:    filepath.Join(dir, "key"),
		KnownHosts: filepath.Join(dir, "known_hosts"),
	}
	// sshd refuses to start without the folder it leaves its privileges in.
	for _, d := range []string{s.Export, "/run/sshd"} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, key := range []string{"host", "key"} {
		Run(t, "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", filepath.Join(dir, key))
	}
	hostKey, err := os.ReadFile(filepath.Join(dir, "host.pub"))
	if err != nil {
		t.Fatal(err)
	}
	for name, content := range map[string]string{
		"sshd_config": fmt.Sprintf(sshdConf, s.Port, dir),
		"known_hosts": fmt.Sprintf("[127.0.0.1]:%d %s", s.Port, hostKey),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	s.start(t, filepath.Join(dir, "sshd_config"))
	return s
}

func (s *SSHServer) start(t testing.TB, config string) {
	t.Helper()
	var output bytes.Buffer
	s.cmd = exec.CommandContext(context.Background(), Tool(t, "sshd"), "-D", "-e", "-f", config)
	s.cmd.Stderr = &output
	// Its own PID namespace: sessions end with the server.
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWPID, Pdeathsig: syscall.SIGKILL}
	if err := s.cmd.Start(); err != nil {
		t.Fatalf("start sshd (root is needed): %v", err)
	}
	t.Cleanup(func() {
		s.Kill()
		if t.Failed() {
			t.Logf("sshd: %s", output.Bytes())
		}
	})
	address := net.JoinHostPort("127.0.0.1", strconv.Itoa(s.Port))
	Eventually(t, "sshd answers", func() bool { return accepts("tcp", address) })
}

// LeastPriority is the nice value that stands back furthest (setpriority(2)).
const LeastPriority = 19

// StandBack lets sessions that begin from now on have the processors that nobody else wants.
func (s *SSHServer) StandBack(t testing.TB) {
	t.Helper()
	for _, pid := range pidsOf(t, s.cmd.Process.Pid) {
		if err := syscall.Setpriority(syscall.PRIO_PROCESS, pid, LeastPriority); err != nil {
			t.Fatal(err)
		}
	}
}

// Kill ends the server and its sessions at once; every mount from it loses its other end.
func (s *SSHServer) Kill() {
	_ = s.cmd.Process.Kill()
	_ = s.cmd.Wait() // it was killed, and says so; the second time it says that too
}

// KillSessions ends the server's sessions at once, as a restart of it would. The server goes on.
func (s *SSHServer) KillSessions(t testing.TB) {
	t.Helper()
	for _, pid := range pidsOf(t, s.cmd.Process.Pid) {
		if pid == s.cmd.Process.Pid {
			continue
		}
		// One may be gone with another that was its parent.
		if err := syscall.Kill(pid, syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
			t.Fatal(err)
		}
	}
}

// Hang stops the server and its sessions: connections stay open and nothing answers, until Resume
// or the end of the test.
func (s *SSHServer) Hang(t testing.TB) { t.Helper(); s.signal(t, syscall.SIGSTOP) }

// Resume ends a Hang.
func (s *SSHServer) Resume(t testing.TB) { t.Helper(); s.signal(t, syscall.SIGCONT) }

func (s *SSHServer) signal(t testing.TB, sig syscall.Signal) {
	t.Helper()
	for _, pid := range pidsOf(t, s.cmd.Process.Pid) {
		if err := syscall.Kill(pid, sig); err != nil {
			t.Fatal(err)
		}
	}
}

// Address is what to mount, in the form of mount type fuse.sshfs.
func (s *SSHServer) Address() string { return "root@127.0.0.1:" + s.Export }

// Options are the mount options that reach the server, without the passwords and questions that a
// test cannot answer.
func (s *SSHServer) Options() string {
	return strings.Join([]string{
		"port=" + strconv.Itoa(s.Port),
		"IdentityFile=" + s.KeyFile,
		"UserKnownHostsFile=" + s.KnownHosts,
		"BatchMode=yes",
	}, ",")
}

// Trust makes a user's folder of ssh settings with the key that may log in and the server's host key.
func (s *SSHServer) Trust(t testing.TB, dir, name string) {
	t.Helper()
	u, err := user.Lookup(name)
	if err != nil {
		t.Fatal(err)
	}
	uid, uerr := strconv.Atoi(u.Uid)
	gid, gerr := strconv.Atoi(u.Gid)
	if err := errors.Join(uerr, gerr, os.MkdirAll(dir, 0o700), os.Chown(dir, uid, gid)); err != nil {
		t.Fatal(err)
	}
	for from, to := range map[string]string{s.KeyFile: "id_ed25519", s.KnownHosts: "known_hosts"} {
		data, err := os.ReadFile(from)
		path := filepath.Join(dir, to)
		if err := errors.Join(err, os.WriteFile(path, data, 0o600), os.Chown(path, uid, gid)); err != nil {
			t.Fatal(err)
		}
	}
}
