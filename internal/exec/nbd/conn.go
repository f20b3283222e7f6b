package nbd

import (
	"bufio"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"syscall"
	"time"
)

// closeGrace is how long Close waits for the server to take its leave.
const closeGrace = 2 * time.Second

// Options of Dial.
type Options struct {
	// Export is the name of the export; "" is the server's default export.
	Export string
	// MetaContexts are the metadata contexts BlockStatus will be asked for, such as
	// BaseAllocation. Dial fails when the server does not have one of them.
	MetaContexts []string
}

// Conn is a connection to one export. Its methods may be called from any goroutine; requests of
// different goroutines are in flight together and may be done in any order.
//
// A request returns when its context ends, with the context's cause, and never touches the
// caller's buffer afterwards. The connection stays usable and the late reply is thrown away, with
// one exception: a request of which the server has taken only a part ends the connection.
type Conn struct {
	nc net.Conn
	export
	sending chan struct{} // holds one token while a request is written
	done    chan struct{} // closed when the receiver has ended

	mu        sync.Mutex
	err       error // why the connection has ended
	cookie    uint64
	pending   map[uint64]*request
	receiving *request // its buf is being written to
}

// Dial connects to the server at a unix socket and selects an export.
func Dial(ctx context.Context, socket string, o Options) (*Conn, error) {
	var d net.Dialer
	nc, err := d.DialContext(ctx, "unix", socket)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrDisconnected, err)
	}
	enlarge(nc)
	c, err := handshake(ctx, nc, o)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("nbd %s: %w", socket, err), nc.Close())
	}
	return c, nil
}

// sendBuffer is the size of the socket's buffer for requests, in bytes: large enough for a whole
// write, so that a writer seldom waits for the server to read.
const sendBuffer = 2 << 20

// enlarge sets the send buffer, beyond the system's limit if the process may. It is a matter of
// speed alone.
func enlarge(nc net.Conn) {
	raw, err := nc.(*net.UnixConn).SyscallConn()
	if err != nil {
		return
	}
	_ = raw.Control(func(fd uintptr) {
		if syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_SNDBUFFORCE, sendBuffer) != nil {
			_ = syscall.SetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_SNDBUF, sendBuffer)
		}
	})
}

// handshake negotiates and starts the receiver.
func handshake(ctx context.Context, nc net.Conn, o Options) (*Conn, error) {
	interrupted := interrupt(ctx, nc.SetDeadline)
	e, err := negotiate(nc, o)
	if interrupted() {
		return nil, context.Cause(ctx)
	}
	if err != nil {
		return nil, err
	}
	c := newConn(nc, e)
	go c.receive()
	return c, nil
}

func newConn(nc net.Conn, e export) *Conn {
	return &Conn{
		nc:      nc,
		export:  e,
		sending: make(chan struct{}, 1),
		done:    make(chan struct{}),
		pending: map[uint64]*request{},
	}
}

// interrupt sets a deadline in the past when ctx ends, which wakes what is blocked on it. The
// function it returns ends that and says whether it has happened; the deadline is then clear.
func interrupt(ctx context.Context, deadline func(time.Time) error) func() bool {
	if ctx.Done() == nil {
		return func() bool { return false }
	}
	fired := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(fired)
		_ = deadline(longAgo())
	})
	return func() bool {
		if stop() {
			return false
		}
		<-fired
		_ = deadline(time.Time{})
		return true
	}
}

// longAgo is a deadline that has passed.
func longAgo() time.Time { return time.Unix(1, 0) }

// Size returns the size of the export in bytes.
func (c *Conn) Size() int64 { return c.size }

// ReadOnly says whether the server refuses writes.
func (c *Conn) ReadOnly() bool { return c.flags&flagReadOnly != 0 }

// CanMultiConn says whether several connections see each other's writes, and a Flush on one of
// them covers all.
func (c *Conn) CanMultiConn() bool { return c.flags&flagCanMultiConn != 0 }

// BlockSizes returns the server's block size constraints in bytes: requests must be multiples of
// least, run best in multiples of preferred, and carry a payload of at most most.
func (c *Conn) BlockSizes() (least, preferred, most int64) {
	return int64(c.minBlock), int64(c.preferredBlock), int64(c.maxBlock)
}

// Close takes leave of the server and ends the connection. Requests in flight fail with
// ErrClosed. It returns when the server has closed its side too, or after two seconds.
func (c *Conn) Close() error {
	c.mu.Lock()
	first := c.err == nil
	if first {
		c.err = ErrClosed
	}
	c.mu.Unlock()
	if first {
		c.leave()
	}
	err := c.nc.Close()
	<-c.done
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

// leave sends NBD_CMD_DISC, to which there is no reply, and waits for the server to hang up.
func (c *Conn) leave() {
	_ = c.nc.SetDeadline(time.Now().Add(closeGrace))
	t := time.NewTimer(closeGrace)
	defer t.Stop()
	select {
	case c.sending <- struct{}{}: // never given back: no more requests
	case <-t.C:
		return
	}
	var h [requestHeaderSize]byte
	binary.BigEndian.PutUint32(h[0:], magicRequest)
	binary.BigEndian.PutUint16(h[6:], cmdDisconnect)
	if _, err := c.nc.Write(h[:]); err != nil {
		return
	}
	select {
	case <-c.done:
	case <-t.C:
	}
}

// fail ends the connection; the receiver then ends every pending request. Only the first cause
// counts.
func (c *Conn) fail(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err == nil {
		c.err = err
	}
	_ = c.nc.Close()
}

// receive reads replies until the connection ends, then ends every pending request.
func (c *Conn) receive() {
	defer close(c.done)
	d := decoder{c: c, r: bufio.NewReaderSize(wire{c}, wireBuffer)}
	c.fail(d.run())
	c.mu.Lock()
	defer c.mu.Unlock()
	for cookie, r := range c.pending {
		delete(c.pending, cookie)
		r.finish(c.err)
	}
}

// wireBuffer is large enough for headers and small enough that payloads bypass it, in bytes.
const wireBuffer = 4096

// wire reads from the connection. A deadline in the past interrupts a read into the buffer of a
// request whose caller has left.
type wire struct{ c *Conn }

func (w wire) Read(p []byte) (int, error) {
	for {
		n, err := w.c.nc.Read(p)
		if n > 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
			return n, err
		}
		if err := w.c.resume(); err != nil {
			return 0, err
		}
	}
}

// resume goes on after a deadline: nil to read on, errAbandoned to leave the caller's buffer.
func (c *Conn) resume() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return c.err
	}
	_ = c.nc.SetReadDeadline(time.Time{})
	if c.receiving != nil && c.receiving.abandoned != nil {
		return errAbandoned
	}
	return nil
}
