// Command guestinit is process 1 of the laboratory's guest: it loads the drivers, mounts the file
// systems, starts the guest agent, and does what the test asks over a virtio-serial port, one line
// a command (see control.go). It writes to the disks and tells what it has felt (writer.go).
package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const (
	agentPort   = "org.qemu.guest_agent.0"
	controlPort = "lab.control"
	// patience is how long a device may take to appear.
	patience = time.Minute
	fsMount  = "/mnt"
)

func main() {
	if filepath.Base(os.Args[0]) == "hook" {
		hook(os.Args[1:])
		return
	}
	if err := run(); err != nil {
		fmt.Println("guestinit:", err)
	}
	// Process 1 must not end: the kernel would panic, and the console would show that instead.
	for {
		time.Sleep(time.Hour)
	}
}

func run() error {
	if err := mountSystem(); err != nil {
		return err
	}
	if err := loadModules(); err != nil {
		return err
	}
	port, err := openPort(controlPort)
	if err != nil {
		return err
	}
	defer func() { _ = port.Close() }()
	c := &control{port: port, agent: &agent{}}
	if err := mountDisks(); err != nil {
		c.tell("error %v", err)
		return err
	}
	if err := c.agent.start(); err != nil {
		c.tell("error %v", err)
		return err
	}
	c.tell("ready")
	return c.serve(bufio.NewScanner(port))
}

func mountSystem() error {
	for _, m := range []struct{ dir, kind string }{{"/proc", "proc"}, {"/sys", "sysfs"}, {"/dev", "devtmpfs"}} {
		if err := os.MkdirAll(m.dir, 0o755); err != nil {
			return err
		}
		if err := unix.Mount(m.kind, m.dir, m.kind, 0, ""); err != nil {
			return fmt.Errorf("mount %s: %w", m.dir, err)
		}
	}
	return errors.Join(os.MkdirAll("/run", 0o755), os.MkdirAll("/tmp", 0o1777))
}

// loadModules loads the modules in the order of their names' numbers, which the laboratory gave them.
func loadModules() error {
	files, err := filepath.Glob("/modules/*.ko")
	if err != nil {
		return err
	}
	for _, path := range files {
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		err = unix.FinitModule(int(f.Fd()), "", 0)
		_ = f.Close()
		if err != nil && !errors.Is(err, unix.EEXIST) {
			return fmt.Errorf("load %s: %w", path, err)
		}
	}
	return nil
}

// openPort waits for a virtio-serial port of the name and opens it.
func openPort(name string) (*os.File, error) {
	device, err := findPort(name)
	if err != nil {
		return nil, err
	}
	return os.OpenFile(device, os.O_RDWR, 0)
}

func findPort(name string) (string, error) {
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		names, _ := filepath.Glob("/sys/class/virtio-ports/*/name")
		for _, file := range names {
			if data, err := os.ReadFile(file); err == nil && strings.TrimSpace(string(data)) == name {
				return filepath.Join("/dev", filepath.Base(filepath.Dir(file))), nil
			}
		}
	}
	return "", fmt.Errorf("no virtio-serial port %s", name)
}

// mountDisks mounts each disk that the kernel's command line names: disks=vda,vdb.
func mountDisks() error {
	line, err := os.ReadFile("/proc/cmdline")
	if err != nil {
		return err
	}
	for _, word := range strings.Fields(string(line)) {
		list, found := strings.CutPrefix(word, "disks=")
		if !found || list == "" {
			continue
		}
		for disk := range strings.SplitSeq(list, ",") {
			dir := filepath.Join(fsMount, disk)
			if err := os.MkdirAll(dir, 0o755); err != nil {
				return err
			}
			if err := mountDisk("/dev/"+disk, dir); err != nil {
				return fmt.Errorf("mount %s: %w", disk, err)
			}
		}
	}
	return nil
}

// mountDisk waits for a disk. An I/O error in it makes it read-only, so that writes to it fail.
func mountDisk(device, dir string) error {
	var err error
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(10 * time.Millisecond) {
		if err = unix.Mount(device, dir, "ext4", 0, "errors=remount-ro"); !errors.Is(err, unix.ENOENT) {
			return err
		}
	}
	return err
}

// hook is the agent's: it is called before the guest's file systems are frozen, and stays until the
// test lets it go. After the thaw it is called too.
func hook(args []string) {
	if len(args) == 0 || args[0] != "freeze" {
		return
	}
	if err := os.WriteFile(heldFile, nil, 0o600); err != nil {
		fmt.Println("hook:", err)
	}
	for {
		if _, err := os.Stat(holdFile); err != nil {
			_ = os.Remove(heldFile)
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// tellTo writes one line.
func tellTo(w io.Writer, format string, args ...any) {
	// The test is gone when this fails, and the guest goes with it.
	_, _ = fmt.Fprintf(w, format+"\n", args...)
}
