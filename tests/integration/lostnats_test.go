package integration

import (
	"bytes"
	"fmt"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/nasfleet/nasfleet/messages"
	"github.com/nasfleet/nasfleet/tests/lab"
)

// wholeStory is what a job must have told that was accepted once, verified and succeeded.
var wholeStory = []messages.Kind{messages.KindAccepted, messages.KindVerified, messages.KindSucceeded}

// checkWholeStory checks that a job's events are there in order and once each, all of one attempt.
func (w *world) checkWholeStory(t *testing.T, job string) {
	t.Helper()
	var kinds []messages.Kind
	for _, ev := range w.events(t, job) {
		if kinds = append(kinds, ev.Kind); ev.Attempt != 1 {
			t.Errorf("%s is of attempt %d: the job was begun again", ev.Kind, ev.Attempt)
		}
	}
	if !slices.Equal(kinds, wholeStory) {
		t.Errorf("the job's events are %v, want %v", kinds, wholeStory)
	}
}

// TestNATSIsLostInMidJob cuts the worker off while a job runs: for less than AckWait, and for so long that the
// command is handed out again. The job goes on, and what it has to tell arrives afterwards.
func TestNATSIsLostInMidJob(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		ackWait string
		away    time.Duration
	}{
		"for 30 s":          {"60s", 30 * time.Second},
		"beyond its wait":   {"2s", 8 * time.Second},
		"the server itself": {"2s", 0},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			n := startNATS(t)
			w := newWorldOn(t, n, "none", "--ack-wait", tt.ackWait)
			image := noise(t, filepath.Join(w.dir, "disk.raw"), 64, 20)
			job := newJobID()
			copying := w.watchPhase(t, job, messages.PhaseCopying)
			// About four seconds: the job ends while nobody hears of it.
			w.publisher(t, w.takeArgs("--image", image, "--verify", "--bandwidth", "10", "--job-id", job)...)
			await(t, "copying", copying)
			if tt.away > 0 {
				n.proxy.Cut()
				time.Sleep(tt.away) // an outage is a matter of time
				n.proxy.Heal()
			} else {
				n.server.Stop()
				lab.Eventually(t, "the backup is committed while its server is away", func() bool {
					return exists(filepath.Join(w.nas, "disk", job, "manifest.json"))
				})
				n.start(t)
			}
			ev := w.awaitFinal(t, job)
			if ev.Kind != messages.KindSucceeded {
				t.Fatalf("the job ended with %s", asJSON(ev))
			}
			w.acknowledged(t)
			w.checkWholeStory(t, job)
			w.nothingLeft(t)
			// The worker takes the next command, and the old one does not come again.
			again := w.take(t, "--image", image)
			w.restoreAndCompare(t, features{}, again, map[string]original{"disk0": {"raw", image}})
			w.checkWholeStory(t, job)
			if list := w.ls(t); len(list) != 2 {
				t.Errorf("%d backups, want 2", len(list))
			}
		})
	}
}

// TestEmbeddedServerRestarts stops a worker whose server holds a running job and one that waits. The next
// worker finds both in the server's folder and does them.
func TestEmbeddedServerRestarts(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "none", "--ack-wait", "2s", "--grace", "100ms", "--jobs", "1")
	image := noise(t, filepath.Join(w.dir, "disk.raw"), 64, 20)
	running, waiting := newJobID(), newJobID()
	copying := w.watchPhase(t, running, messages.PhaseCopying)
	w.publisher(t, w.takeArgs("--image", image, "--bandwidth", "8", "--job-id", running)...)
	await(t, "copying", copying)
	w.publisher(t, w.takeArgs("--image", image, "--job-id", waiting)...)
	for _, end := range []func(*testing.T){w.stop, w.kill} {
		end(t)
		w.start(t)
	}
	for _, job := range []string{running, waiting} {
		if ev := w.awaitFinal(t, job); ev.Kind != messages.KindSucceeded {
			t.Errorf("job %s ended with %s", job, asJSON(ev))
		}
		w.checkStory(t, job)
	}
	w.acknowledged(t)
	w.nothingLeft(t)
	if list := w.ls(t); len(list) != 2 {
		t.Errorf("%d backups, want 2", len(list))
	}
}

// TestPublishedTwice loses the server's answer to a command: publisher publishes it again under the same
// message id, and there is one job.
func TestPublishedTwice(t *testing.T) {
	t.Parallel()
	n := startNATS(t)
	w := newWorldOn(t, n, "none")
	image := noise(t, filepath.Join(w.dir, "disk.raw"), 8, 4)
	job := newJobID()
	subject := messages.JobSubject(zone, host, job)
	published := func(way lab.Way, frame []byte) bool {
		return way == lab.ToServer && bytes.HasPrefix(frame, []byte("HPUB "+subject+" "))
	}
	ids := make(chan string, 100)
	n.proxy.Lose(func(way lab.Way, frame []byte) bool {
		if published(way, frame) {
			_, id, _ := strings.Cut(string(frame), nats.MsgIdHdr+":")
			id, _, _ = strings.Cut(id, "\r\n")
			ids <- strings.TrimSpace(id)
		}
		return false
	})
	var lost atomic.Bool
	trap := n.proxy.Lose(func(way lab.Way, frame []byte) bool {
		return way == lab.ToClient && isPubAck(frame, messages.JobStream(zone)) && lost.CompareAndSwap(false, true)
	})
	direct := w.url
	w.url = w.nats // publisher goes through the proxy as well
	w.publisher(t, w.takeArgs("--image", image, "--job-id", job)...)
	w.url = direct
	await(t, "the lost answer", trap.Sprung())
	if len(ids) < 2 {
		t.Errorf("the command was published %d times: nothing was lost", len(ids))
	}
	close(ids)
	for id := range ids {
		if id != job {
			t.Errorf("published under the message id %q, want %q", id, job)
		}
	}
	w.awaitFinal(t, job)
	commands, err := rawStream(t, w.url, messages.JobStream(zone))
	if err != nil || len(commands) != 1 {
		t.Errorf("the stream has %d commands, want 1 (%v)", len(commands), err)
	}
	w.checkStory(t, job)
	// By hand as well, long after.
	w.publisher(t, w.takeArgs("--image", image, "--job-id", job)...)
	if list := w.ls(t); len(list) != 1 {
		t.Errorf("%d backups, want 1", len(list))
	}
}

// TestClusterLosesItsLeader kills, in mid-job, the server that leads the streams: of three, and with three
// copies of each stream. The job goes on, and everything it tells is there, in order and once.
func TestClusterLosesItsLeader(t *testing.T) {
	t.Parallel()
	c := startCluster(t)
	w := &world{dir: lab.Dir(t), libvirt: "none", nats: c.urls(), url: c.urls(), args: []string{"--ack-wait", "2s", "--replicas", "3"}}
	w.begin(t)
	for _, stream := range []string{messages.JobStream(zone), messages.EventStream} {
		if n := c.replicas(t, stream); n != 3 {
			t.Fatalf("stream %s has %d copies, want 3", stream, n)
		}
	}
	image := noise(t, filepath.Join(w.dir, "disk.raw"), 64, 20)
	for round, stream := range []string{messages.EventStream, messages.JobStream(zone)} {
		job := newJobID()
		copying := w.watchPhase(t, job, messages.PhaseCopying)
		w.publisher(t, w.takeArgs("--image", image, "--verify", "--bandwidth", "10", "--job-id", job)...)
		await(t, "copying", copying)
		i := c.leader(t, stream)
		c.stop(i)
		c.leader(t, messages.EventStream) // or the test itself hears nothing
		ev := w.awaitFinal(t, job)
		if ev.Kind != messages.KindSucceeded {
			t.Fatalf("the job ended with %s", asJSON(ev))
		}
		w.checkWholeStory(t, job)
		w.restoreAndCompare(t, features{}, ev, map[string]original{"disk0": {"raw", image}})
		w.nothingLeft(t)
		if list := w.ls(t); len(list) != round+1 {
			t.Errorf("%d backups, want %d", len(list), round+1)
		}
		c.start(t, i)
	}
}

// cluster is three servers of NATS with their streams on the disk.
type cluster struct {
	options []*server.Options
	servers []*server.Server
}

func startCluster(t *testing.T) *cluster {
	t.Helper()
	const size = 3
	c := &cluster{servers: make([]*server.Server, size)}
	var routes []*url.URL
	var ports []int
	for range 2 * size {
		ports = append(ports, lab.FreePort(t))
	}
	for i := range size {
		routes = append(routes, &url.URL{Scheme: "nats", Host: fmt.Sprintf("127.0.0.1:%d", ports[size+i])})
	}
	for i := range size {
		c.options = append(c.options, &server.Options{
			ServerName: fmt.Sprintf("n%d", i), Host: "127.0.0.1", Port: ports[i],
			JetStream: true, StoreDir: lab.Dir(t), NoSigs: true, NoLog: true, DisableJetStreamBanner: true,
			Cluster: server.ClusterOpts{Name: "lab", Host: "127.0.0.1", Port: ports[size+i]},
			Routes:  routes,
		})
	}
	for i := range size {
		c.start(t, i)
	}
	t.Cleanup(func() {
		for i := range c.servers {
			c.stop(i)
		}
	})
	lab.Eventually(t, "the cluster has a leader and all its members", func() bool {
		for _, s := range c.servers {
			if s.JetStreamIsLeader() && len(s.JetStreamClusterPeers()) == size {
				return true
			}
		}
		return false
	})
	return c
}

func (c *cluster) start(t *testing.T, i int) {
	t.Helper()
	s, err := server.NewServer(c.options[i].Clone())
	if err != nil {
		t.Fatal(err)
	}
	c.servers[i] = s
	go s.Start()
	if !s.ReadyForConnections(patience) {
		t.Fatal("a server of the cluster does not come up")
	}
}

func (c *cluster) stop(i int) {
	if c.servers[i] != nil {
		c.servers[i].Shutdown()
		c.servers[i].WaitForShutdown()
		c.servers[i] = nil
	}
}

func (c *cluster) urls() string {
	var urls []string
	for _, o := range c.options {
		urls = append(urls, fmt.Sprintf("nats://127.0.0.1:%d", o.Port))
	}
	return strings.Join(urls, ",")
}

// info asks for a stream; nil while the cluster does not answer.
func (c *cluster) info(t *testing.T, stream string) *jetstream.StreamInfo {
	t.Helper()
	nc, err := nats.Connect(c.urls())
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	s, err := js.Stream(t.Context(), stream)
	if err != nil {
		return nil
	}
	return s.CachedInfo()
}

func (c *cluster) replicas(t *testing.T, stream string) int {
	t.Helper()
	if info := c.info(t, stream); info != nil {
		return info.Config.Replicas
	}
	return 0
}

// leader waits until a server that runs leads a stream, and returns which.
func (c *cluster) leader(t *testing.T, stream string) int {
	t.Helper()
	leads := -1
	lab.Eventually(t, "stream "+stream+" has a leader", func() bool {
		info := c.info(t, stream)
		if info == nil || info.Cluster == nil {
			return false
		}
		leads = slices.IndexFunc(c.options, func(o *server.Options) bool { return o.ServerName == info.Cluster.Leader })
		return leads >= 0 && c.servers[leads] != nil
	})
	return leads
}
