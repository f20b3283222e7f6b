package nbd

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
)

// errAbandoned interrupts a read into the buffer of a request whose caller has left.
var errAbandoned = errors.New("request abandoned")

// decoder reads the server's replies and hands them to the pending requests.
type decoder struct {
	c *Conn
	r *bufio.Reader
}

// chunk is the header of one chunk of a structured reply.
type chunk struct {
	flags, kind uint16
	cookie      uint64
	size        uint32
}

// run reads replies until the connection ends, and says why. It never returns nil.
func (d decoder) run() error {
	for {
		if err := d.reply(); err != nil {
			if errors.Is(err, ErrDisconnected) || errors.Is(err, ErrClosed) {
				return err
			}
			return fmt.Errorf("%w: %w", ErrDisconnected, err)
		}
	}
}

func (d decoder) reply() error {
	magic, err := d.r.Peek(4)
	if err != nil {
		return err
	}
	switch m := binary.BigEndian.Uint32(magic); {
	case m == magicSimpleReply:
		return d.simple()
	case m == magicStructuredReply && d.c.structured:
		return d.structured()
	default:
		return protocolError("reply with magic %#x", m)
	}
}

// simple reads a simple reply, section "Simple reply message".
func (d decoder) simple() error {
	var h [simpleReplySize]byte
	if _, err := io.ReadFull(d.r, h[:]); err != nil {
		return err
	}
	code, cookie := binary.BigEndian.Uint32(h[4:]), binary.BigEndian.Uint64(h[8:])
	r, err := d.lookup(cookie)
	if err != nil {
		return err
	}
	switch {
	case code != 0:
		r.refuseOnce(code, nil)
	case r.cmd == cmdBlockStatus, r.cmd == cmdRead && d.c.structured:
		return protocolError("simple reply to %s", opName(r.cmd))
	case r.cmd == cmdRead:
		if err := d.data(r, 0, r.n); err != nil {
			return err
		}
	}
	return d.finish(cookie, r)
}

// structured reads one chunk, section "Structured reply chunk message".
func (d decoder) structured() error {
	var h [structuredHeaderSize]byte
	if _, err := io.ReadFull(d.r, h[:]); err != nil {
		return err
	}
	ch := chunk{
		flags:  binary.BigEndian.Uint16(h[4:]),
		kind:   binary.BigEndian.Uint16(h[6:]),
		cookie: binary.BigEndian.Uint64(h[8:]),
		size:   binary.BigEndian.Uint32(h[16:]),
	}
	r, err := d.lookup(ch.cookie)
	if err != nil {
		return err
	}
	if err := d.chunk(r, ch); err != nil {
		return err
	}
	if ch.flags&chunkFlagDone == 0 {
		return nil
	}
	return d.finish(ch.cookie, r)
}

func (d decoder) chunk(r *request, ch chunk) error {
	switch {
	case ch.kind&chunkErrorBit != 0:
		return d.refusal(r, ch)
	case ch.kind == chunkNone && ch.size == 0 && ch.flags&chunkFlagDone != 0:
		return nil
	case ch.kind == chunkOffsetData && r.cmd == cmdRead && ch.size > 8:
		off, err := d.offset(r)
		if err != nil {
			return err
		}
		return d.data(r, off, int64(ch.size)-8)
	case ch.kind == chunkOffsetHole && r.cmd == cmdRead && ch.size == 12:
		return d.hole(r)
	case ch.kind == chunkBlockStatus && r.cmd == cmdBlockStatus && ch.size >= 12 && (ch.size-4)%8 == 0:
		return d.blockStatus(r, (ch.size-4)/8)
	}
	return protocolError("chunk of type %d and %d bytes for %s", ch.kind, ch.size, opName(r.cmd))
}

// offset reads the offset of a chunk and returns it relative to r's. It may be out of range.
func (d decoder) offset(r *request) (int64, error) {
	var b [8]byte
	if _, err := io.ReadFull(d.r, b[:]); err != nil {
		return 0, err
	}
	off := binary.BigEndian.Uint64(b[:])
	if off < uint64(r.off) || off >= uint64(r.off+r.n) {
		return 0, protocolError("data at offset %d for a read of %d bytes at %d", off, r.n, r.off)
	}
	return int64(off) - r.off, nil
}

// data reads n bytes into r's buffer at off.
func (d decoder) data(r *request, off, n int64) error {
	if err := r.arrive(off, n); err != nil {
		return err
	}
	var got int
	if d.claim(r) {
		var err error
		got, err = io.ReadFull(d.r, r.buf[off:off+n])
		d.release(r)
		if err != nil && !errors.Is(err, errAbandoned) {
			return err
		}
	}
	_, err := d.r.Discard(int(n) - got)
	return err
}

// hole reads the size of a hole and clears that much of r's buffer.
func (d decoder) hole(r *request) error {
	off, err := d.offset(r)
	if err != nil {
		return err
	}
	var b [4]byte
	if _, err := io.ReadFull(d.r, b[:]); err != nil {
		return err
	}
	n := int64(binary.BigEndian.Uint32(b[:]))
	if err := r.arrive(off, n); err != nil {
		return err
	}
	if d.claim(r) {
		clear(r.buf[off : off+n])
		d.release(r)
	}
	return nil
}

// blockStatus reads the descriptors of one metadata context, section "Structured reply types",
// NBD_REPLY_TYPE_BLOCK_STATUS.
func (d decoder) blockStatus(r *request, count uint32) error {
	var b [8]byte
	if _, err := io.ReadFull(d.r, b[:4]); err != nil {
		return err
	}
	id := binary.BigEndian.Uint32(b[:])
	name, known := d.c.contexts[id]
	if !known || slices.Contains(r.seen, id) || count > maxExtents {
		return protocolError("block status of context %d with %d extents", id, count)
	}
	r.seen = append(r.seen, id)
	off, end := r.off, r.off+r.n
	for range count {
		if _, err := io.ReadFull(d.r, b[:]); err != nil {
			return err
		}
		n, flags := int64(binary.BigEndian.Uint32(b[:])), binary.BigEndian.Uint32(b[4:])
		if n == 0 || off >= end {
			return protocolError("block status with an extent of %d bytes at offset %d", n, off)
		}
		n = min(n, end-off) // the last one may reach beyond what was asked for
		if name == r.context {
			r.extents = appendExtent(r.extents, Extent{off, n, flags})
		}
		off += n
	}
	return nil
}

func appendExtent(list []Extent, e Extent) []Extent {
	if k := len(list) - 1; k >= 0 && list[k].Flags == e.Flags {
		list[k].Length += e.Length
		return list
	}
	return append(list, e)
}

// refusal reads an error chunk. An error type that is not known is an error all the same.
func (d decoder) refusal(r *request, ch chunk) error {
	if ch.size < 6 || ch.size > maxErrorChunk {
		return protocolError("error chunk of %d bytes", ch.size)
	}
	b := make([]byte, ch.size)
	if _, err := io.ReadFull(d.r, b); err != nil {
		return err
	}
	code, size := binary.BigEndian.Uint32(b), int(binary.BigEndian.Uint16(b[4:]))
	switch {
	case code == 0, size > len(b)-6, ch.kind == chunkErrorOffset && len(b) != 6+size+8:
		return protocolError("malformed error chunk")
	}
	r.refuseOnce(code, b[6:6+min(size, maxString)])
	return nil
}

// refuseOnce keeps the first error of a request.
func (r *request) refuseOnce(code uint32, message []byte) {
	if r.refusal == nil {
		r.refusal = &Error{Op: opName(r.cmd), Offset: r.off, Length: r.n, Errno: errnoOf(code), Message: string(message)}
	}
}

func (d decoder) lookup(cookie uint64) (*request, error) {
	d.c.mu.Lock()
	defer d.c.mu.Unlock()
	if r := d.c.pending[cookie]; r != nil {
		return r, nil
	}
	return nil, protocolError("reply to an unknown request")
}

// finish ends a request whose reply is complete.
func (d decoder) finish(cookie uint64, r *request) error {
	if r.refusal == nil {
		if r.cmd == cmdRead && !r.pieces.cover(r.n) {
			return protocolError("read of %d bytes at %d not answered in full", r.n, r.off)
		}
		if r.cmd == cmdBlockStatus && len(r.extents) == 0 {
			return protocolError("block status without an answer for %q", r.context)
		}
	}
	d.c.mu.Lock()
	defer d.c.mu.Unlock()
	delete(d.c.pending, cookie)
	r.finish(nil)
	return nil
}

// claim takes r's buffer for writing, unless its caller has left.
func (d decoder) claim(r *request) bool {
	d.c.mu.Lock()
	defer d.c.mu.Unlock()
	if r.abandoned != nil {
		return false
	}
	d.c.receiving = r
	return true
}

func (d decoder) release(r *request) {
	d.c.mu.Lock()
	defer d.c.mu.Unlock()
	d.c.receiving = nil
	if r.abandoned != nil {
		close(r.abandoned)
	}
}

// arrive records a piece of a read's answer: within the request, and never twice.
func (r *request) arrive(off, n int64) error {
	if n == 0 || n > r.n-off || !r.pieces.add(off, off+n) {
		return protocolError("data of %d bytes at offset %d for a read of %d bytes at %d", n, r.off+off, r.n, r.off)
	}
	return nil
}

// pieces are disjoint ranges in order; neighbours are merged.
type pieces []struct{ start, end int64 }

// add returns false for a range that overlaps, and for one piece too many.
func (p *pieces) add(start, end int64) bool {
	s := *p
	i := len(s)
	for i > 0 && s[i-1].start >= start {
		i--
	}
	if i > 0 && s[i-1].end > start || i < len(s) && s[i].start < end {
		return false
	}
	switch left, right := i > 0 && s[i-1].end == start, i < len(s) && s[i].start == end; {
	case left && right:
		s[i-1].end = s[i].end
		s = slices.Delete(s, i, i+1)
	case left:
		s[i-1].end = end
	case right:
		s[i].start = start
	case len(s) == maxPieces:
		return false
	default:
		s = slices.Insert(s, i, struct{ start, end int64 }{start, end})
	}
	*p = s
	return true
}

// cover says whether the range from 0 to n is complete.
func (p pieces) cover(n int64) bool {
	return len(p) == 1 && p[0].start == 0 && p[0].end == n
}
