package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/oklog/ulid/v2"

	"github.com/nasfleet/nasfleet/messages"
	"github.com/nasfleet/nasfleet/tests/lab"
)

// TestLibvirtComesLateAndRestarts starts a worker before libvirtd, and takes libvirtd away from it.
func TestLibvirtComesLateAndRestarts(t *testing.T) {
	dir := lab.Dir(t)
	socket := filepath.Join(dir, "libvirt")
	server := startServer(t, "127.0.0.1:0")
	n := startNode(t, dir, "--nats", server.ClientURL(), "--libvirt", "qemu:///system?socket="+socket)
	n.waitLog(t, "waits for libvirt")
	b := connect(t, server.ClientURL())

	l := lab.Libvirtd(t)
	_, real, _ := strings.Cut(l.URI, "socket=")
	if err := os.Symlink(real, socket); err != nil {
		t.Fatal(err)
	}
	n.waitLog(t, "libvirt is there")
	awaitHost(t, b)
	vm := l.DefineVM(t, lab.VMOptions{Name: "guest", Disks: []lab.Disk{{Path: lab.Image(t, filepath.Join(l.Dir, "disk.qcow2"), "qcow2", 8)}}})
	vm.Write(t, "vda", 0, lab.MiB, 0x5a)
	take := func() {
		t.Helper()
		succeeded(t, publish(t, b, &messages.TakeBackup{
			Header:     messages.Header{Version: messages.Version, Type: messages.TypeTake, JobID: ulid.Make().String(), IssuedAt: time.Now().UTC()},
			VM:         vm.Name,
			Repository: folder(t, filepath.Join(dir, "nas")),
		}))
	}
	take()
	l.Restart(t)
	take()
	if !strings.Contains(n.log.String(), "connecting to libvirt again") {
		t.Error("the worker has not noticed that libvirtd was restarted")
	}
	vm.Running(t)
	n.stop(t, prompt)
}
