package nbd

import (
	"context"
	"encoding/binary"
	"fmt"
	"math"
	"net"
	"syscall"
)

// Extent is a range of one status in a metadata context.
type Extent struct {
	// Offset and Length are in bytes.
	Offset, Length int64
	// Flags are those of the context; for BaseAllocation FlagHole and FlagZero.
	Flags uint32
}

// ZeroFlags tell WriteZeroes how.
type ZeroFlags uint16

const (
	// MayPunch lets the server free the storage.
	MayPunch ZeroFlags = 0
	// NoHole makes the server keep the storage allocated.
	NoHole ZeroFlags = cmdFlagNoHole
)

// maxZeroes is how much WriteZeroes asks for in one request, in bytes.
const maxZeroes = 1 << 30

// request is a request in flight.
type request struct {
	cmd   uint16
	flags uint16
	off   int64
	n     int64
	out   []byte // payload of a write

	// The receiver alone uses these, until done is closed.
	buf     []byte // of a read
	pieces  pieces // of buf that have arrived
	context string // the context that block status asks for
	extents []Extent
	seen    []uint32 // contexts that block status has answered
	refusal *Error

	abandoned chan struct{} // guarded by Conn.mu; closed when buf is left
	done      chan struct{}
	err       error // set before done is closed
}

// finish ends r, unless err is nil with the server's refusal or success.
func (r *request) finish(err error) {
	if err == nil && r.refusal != nil {
		err = r.refusal
	}
	r.err = err
	close(r.done)
}

// ReadAt fills p from the export at off.
func (c *Conn) ReadAt(ctx context.Context, p []byte, off int64) error {
	if len(p) == 0 {
		return nil
	}
	r := &request{cmd: cmdRead, off: off, n: int64(len(p)), buf: p}
	// Without holes in the reply the server looks up no block status: callers know it already.
	if c.structured && c.flags&flagSendDF != 0 {
		r.flags = cmdFlagDF
	}
	return c.do(ctx, r)
}

// WriteAt writes p to the export at off. The server has it when WriteAt returns, on stable
// storage only after Flush.
func (c *Conn) WriteAt(ctx context.Context, p []byte, off int64) error {
	if len(p) == 0 {
		return nil
	}
	return c.do(ctx, &request{cmd: cmdWrite, off: off, n: int64(len(p)), out: p})
}

// WriteZeroes makes n bytes at off read as zeroes.
func (c *Conn) WriteZeroes(ctx context.Context, off, n int64, flags ZeroFlags) error {
	for n > 0 {
		step := min(n, maxZeroes)
		r := &request{cmd: cmdWriteZeroes, flags: uint16(flags), off: off, n: step}
		if err := c.do(ctx, r); err != nil {
			return err
		}
		off, n = off+step, n-step
	}
	return nil
}

// Flush makes what has been written so far stable. A server without a cache to flush says so in
// its flags, and Flush then does nothing.
func (c *Conn) Flush(ctx context.Context) error {
	if c.flags&flagSendFlush == 0 {
		return nil
	}
	return c.do(ctx, &request{cmd: cmdFlush})
}

// BlockStatus returns the extents of a metadata context that Dial was given. They are in order
// and without gaps from off on; the server may describe less than length bytes, but at least one
// extent. Neighbours of the same flags are one extent.
func (c *Conn) BlockStatus(ctx context.Context, meta string, off, length int64) ([]Extent, error) {
	if length == 0 {
		return nil, nil
	}
	r := &request{cmd: cmdBlockStatus, off: off, n: length, context: meta}
	if !c.hasContext(meta) {
		return nil, fmt.Errorf("metadata context %q was not negotiated: %w", meta, r.refuse(syscall.EINVAL))
	}
	if err := c.do(ctx, r); err != nil {
		return nil, err
	}
	return r.extents, nil
}

func (c *Conn) hasContext(name string) bool {
	for _, n := range c.contexts {
		if n == name {
			return true
		}
	}
	return false
}

// refuse is the error of a request that is wrong before it is sent.
func (r *request) refuse(errno syscall.Errno) error {
	return &Error{Op: opName(r.cmd), Offset: r.off, Length: r.n, Errno: errno}
}

// do sends r and waits for its reply.
func (c *Conn) do(ctx context.Context, r *request) error {
	if err := c.check(r); err != nil {
		return err
	}
	cookie, err := c.send(ctx, r)
	if err != nil {
		return err
	}
	select {
	case <-r.done:
		return r.err
	case <-ctx.Done():
		return c.abandon(ctx, cookie, r)
	}
}

// check refuses what the server would, or must not even see.
func (c *Conn) check(r *request) error {
	least := int64(c.minBlock)
	switch {
	case c.ReadOnly() && (r.cmd == cmdWrite || r.cmd == cmdWriteZeroes):
		return r.refuse(syscall.EPERM)
	case c.flags&flagSendWriteZeroes == 0 && r.cmd == cmdWriteZeroes:
		return r.refuse(syscall.EOPNOTSUPP)
	case r.off < 0, r.n < 0, r.n > c.size, r.off > c.size-r.n, r.n > math.MaxUint32,
		(r.cmd == cmdRead || r.cmd == cmdWrite) && r.n > int64(c.maxBlock),
		r.off%least != 0, r.n%least != 0:
		return r.refuse(syscall.EINVAL)
	}
	return nil
}

// send registers r and writes it out. With an error r is not in flight.
func (c *Conn) send(ctx context.Context, r *request) (cookie uint64, err error) {
	select {
	case c.sending <- struct{}{}:
	case <-ctx.Done():
		return 0, context.Cause(ctx)
	case <-c.done:
		return 0, c.cause()
	}
	defer func() { <-c.sending }()
	if ctx.Err() != nil {
		return 0, context.Cause(ctx)
	}
	if cookie, err = c.register(r); err != nil {
		return 0, err
	}
	var h [requestHeaderSize]byte
	binary.BigEndian.PutUint32(h[0:], magicRequest)
	binary.BigEndian.PutUint16(h[4:], r.flags)
	binary.BigEndian.PutUint16(h[6:], r.cmd)
	binary.BigEndian.PutUint64(h[8:], cookie)
	binary.BigEndian.PutUint64(h[16:], uint64(r.off))
	binary.BigEndian.PutUint32(h[24:], uint32(r.n))

	interrupted := interrupt(ctx, c.nc.SetWriteDeadline)
	n, err := (&net.Buffers{h[:], r.out}).WriteTo(c.nc)
	switch cut := interrupted(); {
	case err == nil:
		return cookie, nil
	case cut && n == 0:
		c.forget(cookie)
		return 0, context.Cause(ctx)
	}
	return 0, c.halfSent(ctx, r, err)
}

// halfSent ends the connection after a request that the server may have a part of.
func (c *Conn) halfSent(ctx context.Context, r *request, err error) error {
	c.fail(fmt.Errorf("%w: %s at offset %d was cut short: %w", ErrDisconnected, opName(r.cmd), r.off, err))
	<-r.done
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return r.err
}

func (c *Conn) register(r *request) (cookie uint64, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil {
		return 0, c.err
	}
	r.done = make(chan struct{})
	c.cookie++
	c.pending[c.cookie] = r
	return c.cookie, nil
}

// forget takes back a request that was never sent.
func (c *Conn) forget(cookie uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.pending, cookie)
}

func (c *Conn) cause() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.err
}

// abandon leaves r to the receiver, which throws its reply away. It returns when the receiver
// does not touch r's buffer any more.
func (c *Conn) abandon(ctx context.Context, cookie uint64, r *request) error {
	c.mu.Lock()
	if c.pending[cookie] != r {
		c.mu.Unlock()
		<-r.done
		return r.err
	}
	r.abandoned = make(chan struct{})
	busy := c.receiving == r
	if busy {
		_ = c.nc.SetReadDeadline(longAgo())
	}
	c.mu.Unlock()
	if busy {
		<-r.abandoned
	}
	return context.Cause(ctx)
}
