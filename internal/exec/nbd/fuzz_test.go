package nbd

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"testing"
	"time"
)

// script is a connection whose server's side was written down beforehand.
type script struct {
	net.Conn
	in io.Reader
}

func (s script) Read(p []byte) (int, error)     { return s.in.Read(p) }
func (script) Write(p []byte) (int, error)      { return len(p), nil }
func (script) Close() error                     { return nil }
func (script) SetDeadline(time.Time) error      { return nil }
func (script) SetReadDeadline(time.Time) error  { return nil }
func (script) SetWriteDeadline(time.Time) error { return nil }

// FuzzReplies feeds the decoder any bytes while requests of each kind are pending: each must end,
// and no buffer may be written to outside of its request.
func FuzzReplies(f *testing.F) {
	for _, reply := range hostile {
		f.Add(reply(1), true)
	}
	f.Add(bytes.Join([][]byte{
		chunkOf(chunkFlagDone, chunkOffsetData, 1, u64(100), make([]byte, 10)),
		chunkOf(chunkFlagDone, chunkBlockStatus, 2, u32(7), u32(4096), u32(3)),
		chunkOf(chunkFlagDone, chunkNone, 3),
		chunkOf(chunkFlagDone, chunkError, 4, u32(28), u16(2), []byte("no")),
	}, nil), true)
	f.Add(bytes.Join([][]byte{simpleOf(0, 1), make([]byte, 10), simpleOf(0, 3), simpleOf(28, 4)}, nil), false)
	f.Fuzz(func(t *testing.T, in []byte, structured bool) {
		c := newConn(script{in: bytes.NewReader(in)}, export{size: 1 << 20, structured: structured,
			contexts: map[uint32]string{7: BaseAllocation, 8: "other"}})
		arena := bytes.Repeat([]byte{0xa5}, 30)
		all := []*request{
			{cmd: cmdRead, off: 100, n: 10, buf: arena[10:20:20]},
			{cmd: cmdBlockStatus, off: 0, n: 4096, context: BaseAllocation},
			{cmd: cmdFlush},
			{cmd: cmdWrite, off: 5, n: 5},
		}
		for _, r := range all {
			if _, err := c.register(r); err != nil {
				t.Fatal(err)
			}
		}
		c.receive()
		for _, r := range all {
			select {
			case <-r.done:
			default:
				t.Errorf("%s has not ended", opName(r.cmd))
			}
		}
		if outside := append(bytes.Clone(arena[:10]), arena[20:]...); !bytes.Equal(outside, bytes.Repeat([]byte{0xa5}, 20)) {
			t.Error("written outside of the buffer")
		}
		if r := all[0]; r.err == nil && !r.pieces.cover(r.n) {
			t.Error("a read has ended with a part of its data")
		}
		next := int64(0)
		for _, e := range all[1].extents {
			if e.Offset != next || e.Length <= 0 {
				t.Errorf("extents %v", all[1].extents)
			}
			next += e.Length
		}
		if next > 4096 {
			t.Errorf("extents up to %d", next)
		}
		if c.cause() == nil {
			t.Error("the connection has not ended")
		}
	})
}

// FuzzNegotiate feeds the negotiation any bytes.
func FuzzNegotiate(f *testing.F) {
	hello := append(append(u64(magicServer), u64(magicOption)...), 0, 3)
	reply := func(option, kind uint32, data ...byte) []byte {
		b := append(append(append(u64(magicReply), u32(option)...), u32(kind)...), u32(uint32(len(data)))...)
		return append(b, data...)
	}
	f.Add(bytes.Join([][]byte{
		hello,
		reply(optStructuredReply, repAck),
		reply(optSetMetaContext, repMetaContext, append(u32(1), BaseAllocation...)...),
		reply(optSetMetaContext, repAck),
		reply(optGo, repInfo, append(append(u16(infoExport), u64(1<<30)...), 0, 1)...),
		reply(optGo, repInfo, append(append(append(u16(infoBlockSize), u32(1)...), u32(4096)...), u32(1<<25)...)...),
		reply(optGo, repAck),
	}, nil))
	f.Add(append(hello, reply(optStructuredReply, repErrorBit|1)...))
	f.Fuzz(func(t *testing.T, in []byte) {
		near := script{in: bytes.NewReader(in)}
		c, err := handshake(context.Background(), near, Options{MetaContexts: []string{BaseAllocation}})
		if err != nil {
			return
		}
		if c.Size() < 0 || !c.hasContext(BaseAllocation) {
			t.Errorf("negotiated %+v", c.export)
		}
		var wg sync.WaitGroup
		wg.Go(func() {
			if err := c.Flush(context.Background()); err == nil && c.flags&flagSendFlush != 0 {
				return // the script had an answer to it
			} else if err != nil && !errors.Is(err, ErrDisconnected) && !errors.Is(err, ErrClosed) {
				var e *Error
				if !errors.As(err, &e) {
					t.Errorf("got %v", err)
				}
			}
		})
		wg.Wait()
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
}
