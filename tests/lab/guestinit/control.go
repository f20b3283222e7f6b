package main

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
)

// holdFile keeps the freeze hook waiting while it exists; heldFile says that one waits.
const (
	holdFile = "/run/hold"
	heldFile = "/run/held"
)

// control serves the test's port. Each command has one answer, "ok …" or "error …"; between them
// come the writers' own lines.
type control struct {
	agent  *agent
	writer *writer

	mu   sync.Mutex
	port *os.File
}

// tell sends a line. It may be called from any goroutine.
func (c *control) tell(format string, args ...any) {
	c.mu.Lock()
	defer c.mu.Unlock()
	tellTo(c.port, format, args...)
}

func (c *control) serve(lines *bufio.Scanner) error {
	for lines.Scan() {
		answer, err := c.do(strings.Fields(lines.Text()))
		if err != nil {
			c.tell("error %v", err)
			continue
		}
		c.tell("ok %s", answer)
	}
	return lines.Err()
}

// do does one command:
//
//	write DISK       begin to write records to the file system of the disk
//	random DISK      begin to write to random places of the raw disk
//	count DISK DISK  begin to write a counter to the first raw disk, then to the second
//	stop             end the writer; answers what it has felt
//	stat             answers what the writer has felt so far
//	laps             answers how long the writes took since it was asked last
//	agent SIGNAL     send the agent STOP, CONT or KILL
//	hold             make each freeze wait in the agent's hook; the agent is started again if it has none
//	held             answers yes while a freeze waits in the hook
//	release          let the hook go, and every one after it
func (c *control) do(words []string) (string, error) {
	if len(words) == 0 {
		return "", errors.New("no command")
	}
	switch words[0] {
	case "write", "random", "count":
		return "", c.begin(words[0], words[1:])
	case "stop", "stat", "laps":
		if c.writer == nil {
			return "", errors.New("nothing writes")
		}
		if words[0] == "laps" {
			return c.writer.takeLaps(), nil
		}
		if words[0] == "stop" {
			defer func() { c.writer = nil }()
			c.writer.end()
		}
		return c.writer.report(), nil
	case "agent":
		if len(words) != 2 {
			return "", errors.New("agent SIGNAL")
		}
		return "", c.agent.signal(words[1])
	case "hold":
		if err := os.WriteFile(holdFile, nil, 0o600); err != nil {
			return "", err
		}
		if c.agent.hook {
			return "", nil
		}
		c.agent.stop()
		c.agent.hook = true
		return "", c.agent.start("-F/hook")
	case "held":
		if _, err := os.Stat(heldFile); err != nil {
			return "no", nil
		}
		return "yes", nil
	case "release":
		return "", os.Remove(holdFile)
	}
	return "", fmt.Errorf("no command %q", words[0])
}

func (c *control) begin(kind string, disks []string) (err error) {
	if c.writer != nil {
		return errors.New("something writes already")
	}
	switch {
	case kind == "write" && len(disks) == 1:
		c.writer, err = writeRecords(disks[0], c.tell)
	case kind == "random" && len(disks) == 1:
		c.writer, err = writeRandom(disks[0], c.tell)
	case kind == "count" && len(disks) == 2:
		c.writer, err = writeCounter(disks, c.tell)
	default:
		err = errors.New("wrong number of disks")
	}
	return err
}

// agent is the guest agent's process.
type agent struct {
	cmd  *exec.Cmd
	hook bool
}

func (a *agent) start(args ...string) error {
	device, err := findPort(agentPort)
	if err != nil {
		return err
	}
	a.cmd = exec.Command("/usr/sbin/qemu-ga", append([]string{"-m", "virtio-serial", "-p", device, "-t", "/run"}, args...)...) //nolint:noctx // the guest ends it
	a.cmd.Stdout, a.cmd.Stderr = os.Stdout, os.Stderr
	return a.cmd.Start()
}

// stop ends the agent. An agent that was ended says so, and there is nobody to tell.
func (a *agent) stop() {
	_ = a.cmd.Process.Kill()
	_ = a.cmd.Wait()
}

func (a *agent) signal(name string) error {
	switch name {
	case "STOP":
		return a.cmd.Process.Signal(syscall.SIGSTOP)
	case "CONT":
		return a.cmd.Process.Signal(syscall.SIGCONT)
	case "KILL":
		a.stop()
		return nil
	}
	return fmt.Errorf("no signal %q", name)
}
