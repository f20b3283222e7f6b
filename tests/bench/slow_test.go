package bench

import (
	"context"
	"fmt"
	"io"
	"net"
	"runtime"
	"strconv"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nasfleet/nasfleet/tests/lab"
)

// throttled listens on loopback and passes connections on to a port; what clients send passes at
// so many bytes a second, all of them together. It ends with the benchmark.
func throttled(b *testing.B, port int, rate float64) int {
	b.Helper()
	l, err := new(net.ListenConfig).Listen(context.Background(), "tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	var wg sync.WaitGroup
	ctx, stop := context.WithCancel(context.Background())
	b.Cleanup(func() { stop(); _ = l.Close(); wg.Wait() })
	var budget pace
	wg.Go(func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { relay(ctx, client.(*net.TCPConn), port, rate, &budget) })
		}
	})
	return l.Addr().(*net.TCPAddr).Port
}

// pace is when the next bytes may pass.
type pace struct {
	mu   sync.Mutex
	next time.Time
}

// pass waits until n bytes may pass.
func (p *pace) pass(n int, rate float64) {
	p.mu.Lock()
	now := time.Now()
	if p.next.Before(now) {
		p.next = now
	}
	p.next = p.next.Add(time.Duration(float64(n) / rate * float64(time.Second)))
	wait := time.Until(p.next)
	p.mu.Unlock()
	time.Sleep(wait)
}

// smallBuffer keeps the kernel from swallowing seconds' worth of a slow target, in bytes.
const smallBuffer = 64 << 10

// relay passes one connection on, as a part of the NAS: it takes the processors that nobody else wants.
func relay(ctx context.Context, client *net.TCPConn, port int, rate float64, budget *pace) {
	defer standBack()()
	_ = client.SetReadBuffer(smallBuffer)
	conn, err := new(net.Dialer).DialContext(ctx, "tcp", net.JoinHostPort("127.0.0.1", strconv.Itoa(port)))
	if err != nil {
		_ = client.Close()
		return
	}
	server := conn.(*net.TCPConn)
	unhook := context.AfterFunc(ctx, func() { _ = client.Close(); _ = server.Close() })
	defer unhook()
	var back sync.WaitGroup
	back.Go(func() {
		defer standBack()()
		_, _ = io.Copy(client, server)
		_ = client.CloseWrite()
	})
	buf := make([]byte, smallBuffer)
	for {
		n, err := client.Read(buf)
		if n > 0 {
			budget.pass(n, rate)
			if _, werr := server.Write(buf[:n]); werr != nil {
				break
			}
		}
		if err != nil {
			break
		}
	}
	_ = server.CloseWrite()
	back.Wait()
	_ = client.Close()
	_ = server.Close()
}

// standBack puts the goroutine behind everybody who wants a processor, until done. It takes a thread for
// that, and gives it back: one that ended would take the processes along that it has started (Pdeathsig).
func standBack() (done func()) {
	runtime.LockOSThread()
	nice := func(value int) {
		if err := unix.Setpriority(unix.PRIO_PROCESS, unix.Gettid(), value); err != nil {
			panic(err) // root may
		}
	}
	nice(lab.LeastPriority)
	return func() {
		nice(0)
		runtime.UnlockOSThread()
	}
}

// behind returns the mount options of a server that is reached by another port. Its host key is
// known under its own.
func behind(s *lab.SSHServer, port int) string {
	front := *s
	front.Port = port
	return front.Options() + fmt.Sprintf(",HostKeyAlias=[127.0.0.1]:%d", s.Port)
}
