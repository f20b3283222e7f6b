package nbd

import (
	"errors"
	"fmt"
	"syscall"
)

// ErrDisconnected is in the chain of every error that ends a connection: the server has gone,
// or has broken the protocol. The connection is of no more use.
var ErrDisconnected = errors.New("nbd connection lost")

// ErrClosed is returned for requests on a connection after Close.
var ErrClosed = errors.New("nbd connection closed")

// Error is the failure of one request, reported by the server. The connection lives on.
// errors.Is finds its Errno.
type Error struct {
	// Op is the request: "read", "write", "write zeroes", "flush" or "block status".
	Op string
	// Offset and Length are those of the request, in bytes.
	Offset, Length int64
	// Errno is one of EPERM, EIO, ENOMEM, EINVAL, ENOSPC, EOVERFLOW, EOPNOTSUPP and ESHUTDOWN:
	// the protocol knows no others. A server reports EDQUOT as ENOSPC.
	Errno syscall.Errno
	// Message is what the server said, often empty.
	Message string
}

func (e *Error) Error() string {
	s := fmt.Sprintf("nbd %s of %d bytes at offset %d: %v", e.Op, e.Length, e.Offset, e.Errno)
	if e.Message != "" {
		s += fmt.Sprintf(" (%q)", e.Message)
	}
	return s
}

func (e *Error) Unwrap() error { return e.Errno }

// errnoOf maps an error number of the protocol, section "Error values". The numbers are those of
// Linux; a number that the protocol does not define counts as EINVAL.
func errnoOf(n uint32) syscall.Errno {
	switch e := syscall.Errno(n); e {
	case syscall.EPERM, syscall.EIO, syscall.ENOMEM, syscall.EINVAL, syscall.ENOSPC,
		syscall.EOVERFLOW, syscall.EOPNOTSUPP, syscall.ESHUTDOWN:
		return e
	}
	return syscall.EINVAL
}

func opName(cmd uint16) string {
	switch cmd {
	case cmdRead:
		return "read"
	case cmdWrite:
		return "write"
	case cmdWriteZeroes:
		return "write zeroes"
	case cmdFlush:
		return "flush"
	case cmdBlockStatus:
		return "block status"
	}
	return "request"
}

// protocolError is the end of a connection whose server broke the protocol.
func protocolError(format string, args ...any) error {
	return fmt.Errorf("%w: the server broke the protocol: %s", ErrDisconnected, fmt.Sprintf(format, args...))
}
