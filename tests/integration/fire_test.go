package integration

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/nasfleet/nasfleet/internal/bus"
	"github.com/nasfleet/nasfleet/messages"
	"github.com/nasfleet/nasfleet/tests/lab"
)

// natsServer is a server of the test's own. The worker reaches it through the proxy alone.
type natsServer struct {
	dir    string
	listen string
	server *bus.Server
	proxy  *lab.Proxy
}

// startNATS starts a server; it ends with the test.
func startNATS(t *testing.T) *natsServer {
	t.Helper()
	n := &natsServer{dir: lab.Dir(t), listen: fmt.Sprintf("127.0.0.1:%d", lab.FreePort(t))}
	n.start(t)
	t.Cleanup(func() { n.server.Stop() })
	n.proxy = lab.StartProxy(t, lab.NATSFrames, "tcp", "127.0.0.1:0", func() (string, string) { return "tcp", n.listen })
	return n
}

func (n *natsServer) start(t *testing.T) {
	t.Helper()
	var err error
	n.server, err = bus.StartServer(t.Context(), bus.ServerConfig{Dir: n.dir, Listen: n.listen, Log: zerolog.Nop()})
	if err != nil {
		t.Fatal(err)
	}
}

// newWorldOn is newWorld with a NATS server of the test's own behind a proxy. It stands on file systems of
// its own, so that a Gate can hold up what the worker does on them: mnt holds its state folder and its
// repository of type dir.
func newWorldOn(t *testing.T, n *natsServer, uri string, args ...string) *world {
	t.Helper()
	w := &world{dir: lab.Dir(t), libvirt: uri, url: n.server.ClientURL(), nats: "nats://" + n.proxy.Addr()}
	w.mnt = lab.LoopFS(t, 512)
	w.nas = filepath.Join(w.mnt, "nas")
	if err := os.Mkdir(w.nas, 0o755); err != nil {
		t.Fatal(err)
	}
	w.state = filepath.Join(w.mnt, "state")
	w.args = append([]string{"--ack-wait", "1s"}, args...)
	w.begin(t)
	return w
}

// libvirtProxy stands before a libvirtd, and returns the URI that leads through it.
func libvirtProxy(t *testing.T, l *lab.Libvirt) (*lab.Proxy, string) {
	t.Helper()
	_, socket, _ := strings.Cut(l.URI, "socket=")
	listen := filepath.Join(lab.Dir(t), "libvirt")
	p := lab.StartProxy(t, lab.LibvirtFrames, "unix", listen, func() (string, string) { return "unix", socket })
	return p, "qemu:///system?socket=" + listen
}

// A message that is lost where a phase ends stops the worker just there: it waits for the answer.

// loseEvent loses the publishing of a job's event.
func loseEvent(job string, kind messages.Kind) func(lab.Way, []byte) bool {
	subject := messages.EventSubject(zone, host, job, kind)
	return func(way lab.Way, frame []byte) bool {
		return way == lab.ToServer && bytes.HasPrefix(frame, []byte("HPUB "+subject+" "))
	}
}

// loseStored loses the answers to the publishing of a job's event, from the first time on that it is published.
func loseStored(job string, kind messages.Kind) func(lab.Way, []byte) bool {
	published := loseEvent(job, kind)
	var seen atomic.Bool
	return func(way lab.Way, frame []byte) bool {
		if published(way, frame) {
			seen.Store(true)
		}
		return way == lab.ToClient && seen.Load() && isPubAck(frame, messages.EventStream)
	}
}

// isPubAck says whether a frame is the answer that a message was stored in a stream.
func isPubAck(frame []byte, stream string) bool {
	return bytes.HasPrefix(frame, []byte("MSG ")) && bytes.Contains(frame, fmt.Appendf(nil, `{"stream":%q`, stream))
}

// loseAck loses the acknowledgement of a command.
func loseAck(way lab.Way, frame []byte) bool {
	return way == lab.ToServer && bytes.HasPrefix(frame, []byte("PUB $JS.ACK.")) && bytes.Contains(frame, []byte("\r\n+ACK\r\n"))
}

// loseBegin loses the call that begins a backup job.
func loseBegin(way lab.Way, frame []byte) bool {
	return way == lab.ToServer && bytes.Contains(frame, []byte("<domainbackup"))
}

// loseBegun loses the answer to that call: the job has begun, and the worker does not hear of it.
func loseBegun() func(lab.Way, []byte) bool {
	// In a packet of libvirt's RPC the type lies at 16 (1 is a reply) and the serial number at 20.
	const typeAt, serialAt, reply = 16, 20, 1
	var serial atomic.Uint32
	return func(way lab.Way, frame []byte) bool {
		if len(frame) < serialAt+4 {
			return false
		}
		if loseBegin(way, frame) {
			serial.Store(binary.BigEndian.Uint32(frame[serialAt:]))
			return false
		}
		return way == lab.ToClient && serial.Load() != 0 && binary.BigEndian.Uint32(frame[typeAt:]) == reply &&
			binary.BigEndian.Uint32(frame[serialAt:]) == serial.Load()
	}
}

// await waits for a signal of the test's own.
func await(t *testing.T, what string, signal <-chan struct{}) {
	t.Helper()
	select {
	case <-signal:
	case <-time.After(patience):
		t.Fatalf("not seen: %s", what)
	}
}

// descendants lists the processes that a process has started, and those that they have.
func descendants(t *testing.T, pid int) []string {
	t.Helper()
	var all []string
	for _, child := range children(t, pid) {
		all = append(all, child)
		var n int
		if _, err := fmt.Sscan(child, &n); err == nil {
			all = append(all, descendants(t, n)...)
		}
	}
	return all
}

// alive lists those of some processes that still are what they were: identity was taken from them before.
func alive(was map[string]string) []string {
	var still []string
	for pid, identity := range was {
		if now := identityOf(pid); now != "" && now == identity {
			still = append(still, pid+" "+identity)
		}
	}
	return still
}

// identityOf is a process's start time and name (fields 22 and 2 of proc_pid_stat(5)); "" for one that has ended.
func identityOf(pid string) string {
	stat, err := os.ReadFile("/proc/" + pid + "/stat")
	if err != nil {
		return ""
	}
	name, rest, _ := strings.Cut(string(stat), ") ")
	fields := strings.Fields(rest)
	if len(fields) < 20 || fields[0] == "Z" {
		return ""
	}
	return name + " " + fields[19]
}
