package integration

import (
	"bytes"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"testing"

	"github.com/nasfleet/nasfleet/tests/lab"
)

// serveNBD serves an image over TCP, as storage in the network does, and returns the port.
func serveNBD(t *testing.T, path, format string) int {
	t.Helper()
	port := lab.FreePort(t)
	serveExport(t, path, format, "disk", "--bind=127.0.0.1", "--port="+strconv.Itoa(port))
	awaitServer(t, "tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
	return port
}

// serveUnix serves an image on a unix socket.
func serveUnix(t *testing.T, path, format, export, socket string) *os.Process {
	t.Helper()
	p := serveExport(t, path, format, export, "--socket="+socket)
	awaitServer(t, "unix", socket)
	return p
}

// serveExport serves an image until the test ends.
func serveExport(t *testing.T, path, format, export string, args ...string) *os.Process {
	t.Helper()
	cmd := exec.Command(lab.Tool(t, "qemu-nbd"), append(args, "--export-name="+export, //nolint:noctx // the test ends it
		"--shared=0", "--persistent", "--discard=unmap", "--format="+format, path)...)
	var output bytes.Buffer
	cmd.Stderr = &output
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // it was killed, and says so
		if t.Failed() {
			t.Logf("qemu-nbd of %s: %s", path, &output)
		}
	})
	return cmd.Process
}

func awaitServer(t *testing.T, network, address string) {
	t.Helper()
	lab.Eventually(t, "qemu-nbd answers", func() bool {
		c, err := net.Dial(network, address) //nolint:noctx // loopback
		if err == nil {
			_ = c.Close()
		}
		return err == nil
	})
}

const networkDisk = `<disk type='network' device='disk'><driver name='qemu' type='raw'/>
  <source protocol='nbd' name='disk'><host name='127.0.0.1' port='%d'/></source><target dev='vdb' bus='virtio'/></disk>`

// TestNetworkDisk backs up a VM with one disk in a file and one on an NBD server, running and stopped.
func TestNetworkDisk(t *testing.T) {
	t.Parallel()
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
	for _, f := range []features{{}, {compress: true, encrypt: true, verify: true}} {
		t.Run("stopped "+f.String(), func(t *testing.T) {
			ev := w.take(t, append(f.flags(w, t), "--vm", "far")...)
			w.restoreAndCompare(t, f, ev, map[string]original{"vda": {"raw", local.Path}, "vdb": {"raw", remote}})
			w.nothingLeft(t)
		})
	}
}

// TestDiskOverSSH backs up a running VM whose disk is an overlay of an image on an SSH server.
func TestDiskOverSSH(t *testing.T) {
	t.Parallel()
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
