package nbd

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"
)

// fake is the server's end of a connection that has been negotiated.
type fake struct {
	t  testing.TB
	nc net.Conn
}

// connect returns a connection of an export of 1 MiB, and its server's end.
func connect(t testing.TB, structured bool) (*Conn, fake) {
	t.Helper()
	near, far := socketPair(t)
	c := newConn(near, export{size: 1 << 20, flags: flagSendFlush | flagSendWriteZeroes, minBlock: 1, maxBlock: defaultMaxBlock,
		structured: structured, contexts: map[uint32]string{7: BaseAllocation, 8: "other"}})
	go c.receive()
	t.Cleanup(func() {
		_ = far.Close()
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c, fake{t, far}
}

func socketPair(t testing.TB) (near, far net.Conn) {
	t.Helper()
	l, err := net.Listen("unix", "") // an abstract name of the kernel's choice
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	if near, err = net.Dial("unix", l.Addr().String()); err != nil {
		t.Fatal(err)
	}
	if far, err = l.Accept(); err != nil {
		t.Fatal(err)
	}
	return near, far
}

// request reads the next request without its payload.
func (f fake) request() (cookie uint64) {
	f.t.Helper()
	var h [requestHeaderSize]byte
	if _, err := io.ReadFull(f.nc, h[:]); err != nil {
		f.t.Error(err)
	}
	return binary.BigEndian.Uint64(h[8:])
}

func (f fake) send(parts ...[]byte) {
	f.t.Helper()
	if _, err := f.nc.Write(slices.Concat(parts...)); err != nil {
		f.t.Error(err)
	}
}

// chunkOf is a chunk of a structured reply.
func chunkOf(flags, kind uint16, cookie uint64, body ...[]byte) []byte {
	all := slices.Concat(body...)
	b := binary.BigEndian.AppendUint32(nil, magicStructuredReply)
	b = binary.BigEndian.AppendUint16(b, flags)
	b = binary.BigEndian.AppendUint16(b, kind)
	b = binary.BigEndian.AppendUint64(b, cookie)
	b = binary.BigEndian.AppendUint32(b, uint32(len(all)))
	return append(b, all...)
}

func simpleOf(code uint32, cookie uint64) []byte {
	b := binary.BigEndian.AppendUint32(nil, magicSimpleReply)
	b = binary.BigEndian.AppendUint32(b, code)
	return binary.BigEndian.AppendUint64(b, cookie)
}

func u16(v uint16) []byte { return binary.BigEndian.AppendUint16(nil, v) }
func u32(v uint32) []byte { return binary.BigEndian.AppendUint32(nil, v) }
func u64(v uint64) []byte { return binary.BigEndian.AppendUint64(nil, v) }

// The reply comes in pieces, out of order, with a hole, while the buffer is full of other bytes.
func TestReadInPieces(t *testing.T) {
	c, f := connect(t, true)
	go func() {
		k := f.request()
		f.send(chunkOf(0, chunkOffsetData, k, u64(108), []byte("89")))
		f.send(chunkOf(0, chunkOffsetHole, k, u64(104), u32(4)))
		f.send(chunkOf(chunkFlagDone, chunkOffsetData, k, u64(100), []byte("0123")))
	}()
	got := bytes.Repeat([]byte{'x'}, 10)
	if err := c.ReadAt(t.Context(), got, 100); err != nil {
		t.Fatal(err)
	}
	if want := "0123\x00\x00\x00\x0089"; string(got) != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestSimpleReplies(t *testing.T) {
	c, f := connect(t, false)
	go func() {
		f.send(simpleOf(0, f.request()), []byte("abcd"))
		f.send(simpleOf(5, f.request()))
	}()
	got := make([]byte, 4)
	if err := c.ReadAt(t.Context(), got, 0); err != nil || string(got) != "abcd" {
		t.Errorf("got %q, %v", got, err)
	}
	if err := c.ReadAt(t.Context(), got, 0); !errors.Is(err, syscall.EIO) {
		t.Errorf("got %v", err)
	}
}

func TestServerError(t *testing.T) {
	c, f := connect(t, true)
	go func() {
		k := f.request()
		f.send(chunkOf(0, chunkErrorOffset, k, u32(28), u16(4), []byte("full"), u64(3)))
		f.send(chunkOf(chunkFlagDone, chunkError, k, u32(5), u16(0)))
		f.send(chunkOf(chunkFlagDone, chunkErrorBit+99, f.request(), u32(4711), u16(0), []byte("whatever")))
	}()
	var e *Error
	err := c.ReadAt(t.Context(), make([]byte, 8), 0)
	if !errors.As(err, &e) || e.Errno != syscall.ENOSPC || e.Message != "full" {
		t.Errorf("got %v", err)
	}
	if err := c.Flush(t.Context()); !errors.Is(err, syscall.EINVAL) {
		t.Errorf("an error of an unknown kind and number: %v", err)
	}
}

// hostile are replies that end the connection.
var hostile = map[string]func(k uint64) []byte{
	"magic":          func(uint64) []byte { return make([]byte, 64) },
	"unknown cookie": func(k uint64) []byte { return chunkOf(chunkFlagDone, chunkNone, k+1) },
	"simple":         func(k uint64) []byte { return simpleOf(0, k) },
	"nothing":        func(k uint64) []byte { return chunkOf(chunkFlagDone, chunkNone, k) },
	"none, not done": func(k uint64) []byte { return chunkOf(0, chunkNone, k) },
	"kind":           func(k uint64) []byte { return chunkOf(0, 77, k, make([]byte, 16)) },
	"no data":        func(k uint64) []byte { return chunkOf(0, chunkOffsetData, k, u64(100)) },
	"huge data": func(k uint64) []byte {
		return append(chunkOf(0, chunkOffsetData, k)[:16], 0xff, 0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0, 100)
	},
	"data before":        func(k uint64) []byte { return chunkOf(0, chunkOffsetData, k, u64(99), []byte("x")) },
	"data after":         func(k uint64) []byte { return chunkOf(0, chunkOffsetData, k, u64(110), []byte("x")) },
	"data too long":      func(k uint64) []byte { return chunkOf(0, chunkOffsetData, k, u64(109), []byte("xx")) },
	"offset overflow":    func(k uint64) []byte { return chunkOf(0, chunkOffsetData, k, u64(1<<64-1), []byte("xx")) },
	"hole too long":      func(k uint64) []byte { return chunkOf(0, chunkOffsetHole, k, u64(100), u32(1<<32-1)) },
	"hole of nothing":    func(k uint64) []byte { return chunkOf(0, chunkOffsetHole, k, u64(100), u32(0)) },
	"hole of odd size":   func(k uint64) []byte { return chunkOf(0, chunkOffsetHole, k, u64(100), u32(1), u32(1)) },
	"status for a read":  func(k uint64) []byte { return chunkOf(0, chunkBlockStatus, k, u32(7), u32(1), u32(0)) },
	"error of nothing":   func(k uint64) []byte { return chunkOf(0, chunkError, k, u32(0), u16(0)) },
	"error, long text":   func(k uint64) []byte { return chunkOf(0, chunkError, k, u32(5), u16(9)) },
	"error too short":    func(k uint64) []byte { return chunkOf(0, chunkError, k, u32(5)) },
	"error, huge":        func(k uint64) []byte { return append(chunkOf(0, chunkError, k)[:16], 0xff, 0xff, 0xff, 0xff) },
	"error, no offset":   func(k uint64) []byte { return chunkOf(0, chunkErrorOffset, k, u32(5), u16(0)) },
	"end inside a chunk": func(k uint64) []byte { return chunkOf(0, chunkOffsetData, k, u64(100), make([]byte, 10))[:30] },
	"twice the same": func(k uint64) []byte {
		return append(chunkOf(0, chunkOffsetData, k, u64(100), []byte("xy")), chunkOf(0, chunkOffsetData, k, u64(101), []byte("x"))...)
	},
	"a part only": func(k uint64) []byte {
		return append(chunkOf(0, chunkOffsetData, k, u64(100), []byte("xy")), chunkOf(chunkFlagDone, chunkOffsetData, k, u64(103), []byte("x"))...)
	},
}

func TestHostileServer(t *testing.T) {
	for name, reply := range hostile {
		t.Run(name, func(t *testing.T) {
			c, f := connect(t, true)
			var server sync.WaitGroup
			defer server.Wait()
			server.Go(func() {
				f.send(reply(f.request()))
				_ = f.nc.(*net.UnixConn).CloseWrite() // the client may have hung up
			})
			if err := c.ReadAt(t.Context(), make([]byte, 10), 100); !errors.Is(err, ErrDisconnected) {
				t.Errorf("got %v", err)
			}
			if err := c.Flush(t.Context()); !errors.Is(err, ErrDisconnected) {
				t.Errorf("the connection lives: %v", err)
			}
		})
	}
}

func TestHostileBlockStatus(t *testing.T) {
	done := func(k uint64, body ...[]byte) []byte { return chunkOf(chunkFlagDone, chunkBlockStatus, k, body...) }
	for name, reply := range map[string]func(k uint64) []byte{
		"unknown context": func(k uint64) []byte { return done(k, u32(9), u32(512), u32(0)) },
		"only another":    func(k uint64) []byte { return done(k, u32(8), u32(512), u32(0)) },
		"no extents":      func(k uint64) []byte { return done(k, u32(7)) },
		"half an extent":  func(k uint64) []byte { return done(k, u32(7), u32(512), u32(0), u32(0)) },
		"empty extent":    func(k uint64) []byte { return done(k, u32(7), u32(0), u32(0)) },
		"too many":        func(k uint64) []byte { return done(k, u32(7), u32(4096), u32(0), u32(1), u32(0)) },
		"huge":            func(k uint64) []byte { return append(done(k)[:16], 0xff, 0xff, 0xff, 0xfc, 0, 0, 0, 7) },
		"nothing":         func(k uint64) []byte { return chunkOf(chunkFlagDone, chunkNone, k) },
		"twice": func(k uint64) []byte {
			return append(chunkOf(0, chunkBlockStatus, k, u32(7), u32(1), u32(0)), done(k, u32(7), u32(1), u32(0))...)
		},
	} {
		t.Run(name, func(t *testing.T) {
			c, f := connect(t, true)
			go func() { f.send(reply(f.request())) }()
			if _, err := c.BlockStatus(t.Context(), BaseAllocation, 0, 4096); !errors.Is(err, ErrDisconnected) {
				t.Errorf("got %v", err)
			}
		})
	}
}

func TestBlockStatusReply(t *testing.T) {
	c, f := connect(t, true)
	go func() {
		k := f.request()
		f.send(chunkOf(0, chunkBlockStatus, k, u32(8), u32(4096), u32(1)))
		f.send(chunkOf(chunkFlagDone, chunkBlockStatus, k, u32(7), u32(100), u32(3), u32(100), u32(3), u32(1<<31), u32(0)))
	}()
	got, err := c.BlockStatus(t.Context(), BaseAllocation, 1000, 4096)
	if want := []Extent{{1000, 200, 3}, {1200, 3896, 0}}; err != nil || !slices.Equal(got, want) {
		t.Errorf("got %v, %v; want %v", got, err, want)
	}
}

// The server stops in the middle of a reply. The caller gets away, its buffer is its own again,
// and the connection goes on when the server does.
func TestCancelInsidePayload(t *testing.T) {
	c, f := connect(t, true)
	const size = 64 << 10
	cause := errors.New("enough")
	ctx, cancel := context.WithCancelCause(t.Context())
	data := bytes.Repeat([]byte{'d'}, size)
	var wg sync.WaitGroup
	buf := make([]byte, size)
	wg.Go(func() {
		if err := c.ReadAt(ctx, buf, 0); !errors.Is(err, cause) {
			t.Errorf("got %v", err)
		}
	})
	k := f.request()
	reply := chunkOf(chunkFlagDone, chunkOffsetData, k, u64(0), data)
	f.send(reply[:size/2])
	c.waitReceiving()
	cancel(cause)
	wg.Wait()
	copy(buf, bytes.Repeat([]byte{'m'}, size))
	f.send(reply[size/2:])
	go func() { f.send(chunkOf(chunkFlagDone, chunkOffsetData, f.request(), u64(8), []byte("next"))) }()
	next := make([]byte, 4)
	if err := c.ReadAt(t.Context(), next, 8); err != nil || string(next) != "next" {
		t.Errorf("the request after: %q, %v", next, err)
	}
	if i := bytes.IndexFunc(buf, func(r rune) bool { return r != 'm' }); i >= 0 {
		t.Errorf("the buffer was written to at %d after the caller had it back", i)
	}
}

// waitReceiving waits until a payload is being read into a caller's buffer.
func (c *Conn) waitReceiving() {
	for {
		c.mu.Lock()
		busy := c.receiving != nil
		c.mu.Unlock()
		if busy {
			return
		}
		time.Sleep(time.Millisecond)
	}
}

// The server does not read. A caller whose request is half sent gets away, at the cost of the
// connection; one that waits for its turn gets away at no cost.
func TestCancelHalfSent(t *testing.T) {
	c, f := connect(t, true)
	cause := errors.New("enough")
	big, cancelBig := context.WithCancelCause(t.Context())
	waiting, cancelWaiting := context.WithCancelCause(t.Context())
	var first, second, third sync.WaitGroup
	first.Go(func() {
		if err := c.WriteAt(big, make([]byte, 1<<20), 0); !errors.Is(err, cause) {
			t.Errorf("the writer: %v", err)
		}
	})
	f.request() // the header is through, the payload is not
	second.Go(func() {
		if err := c.Flush(waiting); !errors.Is(err, cause) {
			t.Errorf("the one that waits: %v", err)
		}
	})
	third.Go(func() {
		if err := c.Flush(t.Context()); !errors.Is(err, ErrDisconnected) {
			t.Errorf("the other one that waits: %v", err)
		}
	})
	cancelWaiting(cause)
	second.Wait()
	if err := c.cause(); err != nil {
		t.Errorf("the connection has ended: %v", err)
	}
	cancelBig(cause)
	first.Wait()
	third.Wait()
}

// Close ends what is in flight, and does not wait for a server that hangs for ever.
func TestCloseHungServer(t *testing.T) {
	c, f := connect(t, true)
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := c.ReadAt(t.Context(), make([]byte, 512), 0); !errors.Is(err, ErrClosed) {
			t.Errorf("got %v", err)
		}
	})
	f.request()
	if err := c.Close(); err != nil {
		t.Error(err)
	}
	wg.Wait()
}

func TestDialInterrupted(t *testing.T) {
	near, far := socketPair(t)
	defer func() { _ = far.Close() }()
	cause := errors.New("enough")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(cause)
	if _, err := handshake(ctx, near, Options{}); !errors.Is(err, cause) {
		t.Errorf("got %v", err)
	}
	_ = near.Close()
}

func TestPieces(t *testing.T) {
	var p pieces
	for _, s := range [][2]int64{{4, 6}, {0, 2}, {8, 9}, {6, 8}, {2, 4}} {
		if !p.add(s[0], s[1]) {
			t.Errorf("%v was refused with %v there", s, p)
		}
	}
	if !p.cover(9) || p.cover(8) || p.cover(10) {
		t.Errorf("got %v", p)
	}
	for _, s := range [][2]int64{{0, 1}, {8, 10}, {3, 20}} {
		if p.add(s[0], s[1]) {
			t.Errorf("%v was taken with %v there", s, p)
		}
	}
	var many pieces
	for i := range int64(maxPieces) {
		if !many.add(2*i, 2*i+1) {
			t.Fatal(i)
		}
	}
	if many.add(1<<30, 1<<31) {
		t.Error("one piece too many was taken")
	}
}
