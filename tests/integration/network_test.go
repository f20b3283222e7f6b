package integration

import (
	"fmt"
	"net"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"

	"github.com/nasfleet/nasfleet/messages"
	"github.com/nasfleet/nasfleet/tests/lab"
)

// serveNBD serves an image over TCP, as storage in the network does, and returns the port.
func serveNBD(t *testing.T, path, format string) int {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0") //nolint:noctx // it only finds a port
	if err != nil {
		t.Fatal(err)
	}
	port := l.Addr().(*net.TCPAddr).Port
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(lab.Tool(t, "qemu-nbd"), "--bind=127.0.0.1", "--port="+strconv.Itoa(port), "--export-name=disk", //nolint:noctx // the test ends it
		"--shared=0", "--persistent", "--discard=unmap", "--format="+format, path)
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		_ = cmd.Wait() // it was told to end, and says so
	})
	address := net.JoinHostPort("127.0.0.1", strconv.Itoa(port))
	lab.Eventually(t, "qemu-nbd answers", func() bool {
		c, err := net.Dial("tcp", address) //nolint:noctx // loopback
		if err == nil {
			_ = c.Close()
		}
		return err == nil
	})
	return port
}

const networkDisk = `<disk type='network' device='disk'><driver name='qemu' type='raw'/>
  <source protocol='nbd' name='disk'><host name='127.0.0.1' port='%d'/></source><target dev='vdb' bus='virtio'/></disk>`

// TestNetworkDisk backs up a running VM with one disk in a file and one on an NBD server. Stopped,
// the job says what to do instead.
func TestNetworkDisk(t *testing.T) {
	l := lab.Libvirtd(t)
	w := newWorld(t, l.URI)
	local := lab.Disk{Path: dataImage(t, w, "local.raw", 32), Format: "raw"}
	remote := dataImage(t, w, "remote.raw", 48)
	vm := l.DefineVM(t, lab.VMOptions{
		Name: "far", Disks: []lab.Disk{local}, DevicesXML: fmt.Sprintf(networkDisk, serveNBD(t, remote, "raw")),
	})
	vm.Write(t, "vdb", 5*lab.MiB, lab.MiB, 0x33)
	for _, f := range []features{{}, {compress: true, encrypt: true, verify: true}} {
		t.Run(f.String(), func(t *testing.T) {
			ev := w.take(t, append(f.flags(w, t), "--vm", "far")...)
			w.restoreAndCompare(t, f, ev, map[string]original{"vda": {"raw", local.Path}, "vdb": {"raw", remote}})
			w.nothingLeft(t)
			vm.Running(t)
		})
	}
	vm.Destroy(t)
	w.mustFail(t, messages.CodeDiskUnsupported, w.takeArgs("--vm", "far")...)
	w.nothingLeft(t)
	if list, err := filepath.Glob(filepath.Join(w.nas, "far", "*")); err != nil || len(list) != 2 {
		t.Errorf("backups on the repository: %v, %v", list, err)
	}
}

// TestDiskOverSSH backs up a running VM whose disk is an overlay of an image on an SSH server.
func TestDiskOverSSH(t *testing.T) {
	l := lab.Libvirtd(t)
	w := newWorld(t, l.URI)
	server := lab.Sshd(t)
	base := noise(t, filepath.Join(server.Export, "base.raw"), 32, 8)
	server.Trust(t, filepath.Join(l.Dir, "lib", ".ssh"), "libvirt-qemu")
	top := filepath.Join(w.dir, "top.qcow2")
	lab.Run(t, "qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-u", "-b",
		fmt.Sprintf(`json:{"driver":"raw","file":{"driver":"ssh","user":"root","path":%q,"server":{"host":"127.0.0.1","port":"%d"}}}`, base, server.Port), top, "32M")
	vm := l.DefineVM(t, lab.VMOptions{Name: "ssh", Disks: []lab.Disk{{Path: top, Format: "qcow2"}}})
	vm.Write(t, "vda", 3*lab.MiB, lab.MiB, 0x44)
	// What the disk holds: the server's image, and what the guest wrote over it.
	whole := filepath.Join(w.dir, "whole.raw")
	lab.Run(t, "cp", base, whole)
	lab.Run(t, "qemu-io", "-f", "raw", "-c", "write -P 0x44 3M 1M", whole)
	for _, f := range []features{{}, {compress: true, encrypt: true, verify: true}} {
		t.Run(f.String(), func(t *testing.T) {
			ev := w.take(t, append(f.flags(w, t), "--vm", "ssh")...)
			w.restoreAndCompare(t, f, ev, map[string]original{"vda": {"raw", whole}})
			w.nothingLeft(t)
			vm.Running(t)
		})
	}
}
