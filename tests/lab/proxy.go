package lab

import (
	"bufio"
	"fmt"
	"math/rand/v2"
	"net"
	"sync"
	"sync/atomic"
	"testing"
)

// Proxy stands between a client and its server. It passes whole messages on, and can lose chosen ones or cut
// all connections: what a network, or a server that dies, does at a moment of its own choice.
type Proxy struct {
	frames Framing
	dial   func() (net.Conn, error)
	l      net.Listener
	wg     sync.WaitGroup

	mu    sync.Mutex
	cut   bool
	conns map[net.Conn]struct{}
	traps map[*Trap]struct{}
}

// Way is the direction of a message.
type Way int

// The two ways.
const (
	ToServer Way = iota
	ToClient
)

// Trap loses the messages that its rule chooses.
type Trap struct {
	p      *Proxy
	lose   func(Way, []byte) bool
	sprung chan struct{}
	once   sync.Once
	lost   atomic.Int64
}

// StartProxy listens on an address (network tcp or unix) and passes each connection on to the server that
// upstream names at that moment. It ends with the test.
func StartProxy(t testing.TB, frames Framing, network, listen string, upstream func() (network, address string)) *Proxy {
	t.Helper()
	l, err := new(net.ListenConfig).Listen(t.Context(), network, listen)
	if err != nil {
		t.Fatal(err)
	}
	p := &Proxy{
		frames: frames, l: l, conns: map[net.Conn]struct{}{}, traps: map[*Trap]struct{}{},
		dial: func() (net.Conn, error) {
			network, address := upstream()
			return (&net.Dialer{Timeout: patience}).Dial(network, address)
		},
	}
	p.wg.Go(p.accept)
	t.Cleanup(func() {
		_ = l.Close()
		p.Cut()
		p.wg.Wait()
	})
	return p
}

// Addr is where it listens.
func (p *Proxy) Addr() string { return p.l.Addr().String() }

// Cut ends all connections and takes no other until Heal.
func (p *Proxy) Cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.cut = true
	for c := range p.conns {
		_ = c.Close()
	}
}

// Heal ends a Cut.
func (p *Proxy) Heal() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.cut = false
}

// Lose sets a trap: from now on the messages that lose chooses are lost. It is called from several goroutines.
func (p *Proxy) Lose(lose func(Way, []byte) bool) *Trap {
	t := &Trap{p: p, lose: lose, sprung: make(chan struct{})}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.traps[t] = struct{}{}
	return t
}

// Sprung is closed when the first message was lost.
func (t *Trap) Sprung() <-chan struct{} { return t.sprung }

// Lost is how many messages were lost.
func (t *Trap) Lost() int64 { return t.lost.Load() }

// Remove lets everything pass again.
func (t *Trap) Remove() {
	t.p.mu.Lock()
	defer t.p.mu.Unlock()
	delete(t.p.traps, t)
}

func (p *Proxy) accept() {
	for {
		client, err := p.l.Accept()
		if err != nil {
			return
		}
		p.wg.Go(func() { p.serve(client) })
	}
}

func (p *Proxy) serve(client net.Conn) {
	defer func() { _ = client.Close() }()
	if !p.enter(client) {
		return
	}
	defer p.leave(client)
	server, err := p.dial()
	if err != nil {
		return
	}
	defer func() { _ = server.Close() }()
	if !p.enter(server) {
		return
	}
	defer p.leave(server)
	p.wg.Go(func() { p.pump(client, server, ToServer) })
	p.pump(server, client, ToClient)
}

func (p *Proxy) enter(c net.Conn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cut {
		return false
	}
	p.conns[c] = struct{}{}
	return true
}

func (p *Proxy) leave(c net.Conn) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.conns, c)
}

// pump passes messages on until one side is closed, and closes both then.
func (p *Proxy) pump(from, to net.Conn, way Way) {
	defer func() { _, _ = from.Close(), to.Close() }()
	r := bufio.NewReader(from)
	for {
		frame, err := p.frames(r)
		if err != nil {
			return
		}
		if p.loses(way, frame) {
			continue
		}
		if _, err := to.Write(frame); err != nil {
			return
		}
	}
}

func (p *Proxy) loses(way Way, frame []byte) bool {
	p.mu.Lock()
	traps := make([]*Trap, 0, len(p.traps))
	for t := range p.traps {
		traps = append(traps, t)
	}
	p.mu.Unlock()
	for _, t := range traps {
		if t.lose(way, frame) {
			t.lost.Add(1)
			t.once.Do(func() { close(t.sprung) })
			return true
		}
	}
	return false
}

// The kernel gives connections the ports from 32768 on (ip_local_port_range in ip(7)).
const lowestPort, ports = 20000, 12000

// FreePort returns a port of 127.0.0.1 that nothing listens on, for a server that is started later, or again. It is
// none that a connection of another test could be given meanwhile.
func FreePort(t testing.TB) int {
	t.Helper()
	for range 100 {
		port := lowestPort + rand.IntN(ports)
		l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err != nil {
			continue
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		return port
	}
	t.Fatal("no port is free")
	return 0
}
