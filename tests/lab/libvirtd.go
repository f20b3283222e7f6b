package lab

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// libvirtFolders are the folders libvirtd keeps its state in; it takes no option for most of them.
// The private daemon gets folders of its own bind-mounted over them.
func libvirtFolders() map[string]string {
	return map[string]string{
		"etc": "/etc/libvirt",
		"run": "/run/libvirt",
		"lib": "/var/lib/libvirt",
		"log": "/var/log/libvirt",
	}
}

// libvirtCache is where libvirtd remembers what the machine's QEMU can do, which takes it seconds
// to find out. The private daemons share one, in the user's cache folder.
const libvirtCache = "/var/cache/libvirt"

// initScript is process 1 of the daemon's PID namespace. A shell does it, because it has to reap
// the QEMU processes that libvirtd daemonizes, and because it starts libvirtd again when a signal
// has ended it. $1 is the daemon's folder, $2 its cache. KVM is hidden: guests emulate, on every
// machine, and libvirtd does not spend its time on probing it.
const initScript = `
mount -t proc proc /proc
mount --bind "$1/etc" /etc/libvirt
mount --bind "$1/run" /run/libvirt
mount --bind "$1/lib" /var/lib/libvirt
mount --bind "$1/log" /var/log/libvirt
mount --bind "$2" /var/cache/libvirt
[ ! -e /dev/kvm ] || mount --bind "$1/nokvm" /dev/kvm
while :; do
	libvirtd -f "$1/libvirtd.conf" -p "$1/pid" &
	wait $! || [ $? -gt 128 ]
done`

const libvirtdConf = `unix_sock_dir = "%[1]s/sock"
auth_unix_rw = "none"
log_outputs = "2:file:%[1]s/libvirtd.log"
`

// qemuConf runs QEMU as libvirt's own unprivileged user and lets libvirt change the owner of what
// the guest uses, as a production host does. Confinement needs what a build machine has not.
const qemuConf = `security_driver = "none"
namespaces = []
cgroup_controllers = []
stdio_handler = "file"
`

// Libvirt is a private libvirtd.
type Libvirt struct {
	// URI connects to it.
	URI string
	// Dir holds its sockets, state and log.
	Dir string
	cmd *exec.Cmd
}

// Libvirtd starts a libvirtd that shares nothing with the machine's. It and every guest it
// started end with the test.
func Libvirtd(t testing.TB) *Libvirt {
	t.Helper()
	for _, tool := range []string{"libvirtd", "virsh", "qemu-system-x86_64"} {
		Tool(t, tool)
	}
	l := &Libvirt{Dir: Dir(t)}
	l.URI = "qemu:///system?socket=" + l.socket()
	cache := l.configure(t)

	var output bytes.Buffer
	l.cmd = exec.CommandContext(context.Background(), Tool(t, "sh"), "-ec", initScript, "init", l.Dir, cache)
	l.cmd.Stdout, l.cmd.Stderr = &output, &output
	// The mount namespace hides the bind mounts. The end of a PID namespace's first process ends
	// them all: no guest outlives the test, nor the test binary.
	l.cmd.SysProcAttr = &syscall.SysProcAttr{
		Unshareflags: syscall.CLONE_NEWNS,
		Cloneflags:   syscall.CLONE_NEWPID,
		Pdeathsig:    syscall.SIGKILL,
	}
	if err := l.cmd.Start(); err != nil {
		t.Fatalf("start libvirtd (root is needed): %v", err)
	}
	t.Cleanup(func() {
		_ = l.cmd.Process.Kill()
		_ = l.cmd.Wait() // it was killed, and says so
		if t.Failed() {
			t.Logf("libvirtd: %s\n%s", output.Bytes(), l.errors())
			l.logGuests(t)
		}
	})
	Eventually(t, "libvirtd answers", l.answers)
	return l
}

// configure makes the daemon's folders and files and returns its cache.
func (l *Libvirt) configure(t testing.TB) string {
	t.Helper()
	cache, err := os.UserCacheDir()
	if err != nil {
		cache = l.Dir
	}
	cache = filepath.Join(cache, "nasfleet-lab", "libvirt")
	dirs := []string{filepath.Dir(l.socket()), cache, libvirtCache}
	for name, over := range libvirtFolders() {
		dirs = append(dirs, filepath.Join(l.Dir, name), over)
	}
	for _, dir := range dirs {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for name, content := range map[string]string{
		"libvirtd.conf": fmt.Sprintf(libvirtdConf, l.Dir),
		"etc/qemu.conf": qemuConf,
		"nokvm":         "",
	} {
		// Nobody but root may read them: so libvirt takes KVM for not usable.
		if err := os.WriteFile(filepath.Join(l.Dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return cache
}

func (l *Libvirt) socket() string { return filepath.Join(l.Dir, "sock", "libvirt-sock") }

func (l *Libvirt) answers() bool {
	return accepts("unix", l.socket())
}

// errors returns the end of the daemon's log.
func (l *Libvirt) errors() string { return tail(filepath.Join(l.Dir, "libvirtd.log")) }

// logGuests tells what each guest's QEMU said last.
func (l *Libvirt) logGuests(t testing.TB) {
	t.Helper()
	logs, _ := filepath.Glob(filepath.Join(l.Dir, "log", "qemu", "*.log")) // the pattern is right
	for _, path := range logs {
		t.Logf("QEMU of %s:\n%s", strings.TrimSuffix(filepath.Base(path), ".log"), tail(path))
	}
}

// tail returns the last lines of a log.
func tail(path string) string {
	const lines = 20
	log, err := os.ReadFile(path)
	if err != nil {
		return err.Error()
	}
	all := strings.Split(strings.TrimSpace(string(log)), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}

// Virsh runs virsh against the daemon and returns its output. A failure fails the test.
func (l *Libvirt) Virsh(t testing.TB, args ...string) string {
	t.Helper()
	return Run(t, "virsh", append([]string{"--quiet", "--connect", l.URI}, args...)...)
}

// TryVirsh is Virsh for a command that may fail.
func (l *Libvirt) TryVirsh(t testing.TB, args ...string) (string, error) {
	t.Helper()
	return Try(t, "virsh", append([]string{"--quiet", "--connect", l.URI}, args...)...)
}

// Signal sends a signal to the libvirtd process itself: with SIGSTOP it hangs until SIGCONT, and
// after SIGKILL it is started again, while the guests go on.
func (l *Libvirt) Signal(t testing.TB, sig syscall.Signal) {
	t.Helper()
	for _, pid := range pidsOf(t, l.cmd.Process.Pid) {
		comm, _ := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
		if strings.TrimSpace(string(comm)) != "libvirtd" {
			continue
		}
		if err := syscall.Kill(pid, sig); err != nil {
			t.Fatal(err)
		}
		return
	}
	t.Fatal("libvirtd does not run")
}

// Restart kills libvirtd and waits until its successor has found the guests again, which go on.
func (l *Libvirt) Restart(t testing.TB) {
	t.Helper()
	if err := os.Remove(l.socket()); err != nil {
		t.Fatal(err)
	}
	l.Signal(t, syscall.SIGKILL)
	Eventually(t, "libvirtd answers again", l.answers)
	for name := range strings.SplitSeq(strings.TrimSpace(l.Virsh(t, "list", "--name")), "\n") {
		// The monitor answers when libvirtd is through with the guest; a guest that is destroyed
		// before that confuses it.
		l.Virsh(t, "qemu-monitor-command", name, `{"execute":"query-status"}`)
	}
}
