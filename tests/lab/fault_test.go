package lab_test

import (
	"bufio"
	"errors"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nasfleet/nasfleet/tests/lab"
)

func TestFrames(t *testing.T) {
	for name, tt := range map[string]struct {
		read lab.Framing
		want []string
	}{
		"NATS": {lab.NATSFrames, []string{
			"PING\r\n", "PUB a.b 3\r\n\r\nx\r\n", "HPUB a _INBOX.1 12 14\r\nNATS/1.0\r\n\r\nab\r\n", "MSG a 1 0\r\n\r\n", "+OK\r\n",
		}},
		"libvirt": {lab.LibvirtFrames, []string{"\x00\x00\x00\x06ab", "\x00\x00\x00\x04", "\x00\x00\x00\x05c"}},
	} {
		r := bufio.NewReader(strings.NewReader(strings.Join(tt.want, "")))
		for _, want := range tt.want {
			if got, err := tt.read(r); string(got) != want || err != nil {
				t.Errorf("%s: %q, %v, want %q", name, got, err, want)
			}
		}
		if got, err := tt.read(r); !errors.Is(err, io.EOF) {
			t.Errorf("%s: at the end %q, %v", name, got, err)
		}
	}
	for name, text := range map[string]string{"NATS": "PUB a many\r\n", "libvirt": "\x00\x00\x00\x01"} {
		read := map[string]lab.Framing{"NATS": lab.NATSFrames, "libvirt": lab.LibvirtFrames}[name]
		if _, err := read(bufio.NewReader(strings.NewReader(text))); err == nil {
			t.Errorf("%s: %q passed", name, text)
		}
	}
}

// TestProxy loses one line of three, and then the connection.
func TestProxy(t *testing.T) {
	server, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = server.Close() }()
	go func() { // it says what it hears
		for {
			c, err := server.Accept()
			if err != nil {
				return
			}
			go func() { _, _ = io.Copy(c, c) }()
		}
	}()
	p := lab.StartProxy(t, lab.NATSFrames, "tcp", "127.0.0.1:0", func() (string, string) { return "tcp", server.Addr().String() })
	trap := p.Lose(func(way lab.Way, frame []byte) bool { return way == lab.ToServer && string(frame) == "two\r\n" })
	c, err := (&net.Dialer{Timeout: time.Minute}).DialContext(t.Context(), "tcp", p.Addr())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = c.Close() }()
	r := bufio.NewReader(c)
	say := func(words string) {
		t.Helper()
		if _, err := c.Write([]byte(words)); err != nil {
			t.Fatal(err)
		}
	}
	hear := func(want string) {
		t.Helper()
		if got, err := r.ReadString('\n'); got != want || err != nil {
			t.Fatalf("heard %q, %v, want %q", got, err, want)
		}
	}
	say("one\r\ntwo\r\nthree\r\n")
	hear("one\r\n")
	hear("three\r\n")
	<-trap.Sprung()
	if trap.Lost() != 1 {
		t.Errorf("%d messages were lost", trap.Lost())
	}
	trap.Remove()
	say("two\r\n")
	hear("two\r\n")
	p.Cut()
	if got, err := r.ReadString('\n'); err == nil {
		t.Errorf("heard %q over a connection that was cut", got)
	}
}

// TestGate holds up a program where it opens a file, and kills it there.
func TestGate(t *testing.T) {
	dir := lab.LoopFS(t, 16)
	for _, name := range []string{"one", "two"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(name), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	g := lab.HoldOpens(t, dir, func(path string) bool { return filepath.Base(path) == "two" })
	if out := lab.Run(t, "cat", filepath.Join(dir, "one")); out != "one" {
		t.Errorf("the other file holds %q", out)
	}
	cat := exec.CommandContext(t.Context(), lab.Tool(t, "cat"), filepath.Join(dir, "two"))
	if err := cat.Start(); err != nil {
		t.Fatal(err)
	}
	<-g.Held()
	if err := cat.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := cat.Wait(); err == nil {
		t.Error("cat ended in order although it was killed at the gate")
	}
	g.Open()
	if out := lab.Run(t, "cat", filepath.Join(dir, "two")); out != "two" {
		t.Errorf("once the gate is open the file holds %q", out)
	}
}
