// Package nbdtest starts real NBD servers for tests: qemu-storage-daemon on a unix socket.
package nbdtest

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/nasfleet/nasfleet/internal/exec/nbd"
	"github.com/nasfleet/nasfleet/internal/exec/proc"
)

// ExportName is the name of the export of every server.
const ExportName = "disk"

// Server is a storage daemon with one export.
type Server struct {
	// Socket is the path of its unix socket.
	Socket string
	proc   *proc.Process
}

// Start starts a storage daemon. The last of its arguments' block nodes must be named "top";
// options are those of its export ("writable=on"). It ends with the test.
func Start(t testing.TB, options string, args ...string) *Server {
	t.Helper()
	s := &Server{Socket: filepath.Join(ShortDir(t), "s")}
	// The daemon inherits a listening socket: a client can connect at once, and waits in the
	// socket's queue until the export is there.
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: s.Socket})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	f, err := l.File()
	if err != nil {
		t.Fatal(err)
	}
	if options != "" {
		options = "," + options
	}
	args = append(args,
		"--nbd-server", "addr.type=fd,addr.str=3,max-connections=0",
		"--export", fmt.Sprintf("type=nbd,id=e,node-name=top,name=%s%s", ExportName, options))
	s.proc, err = proc.Start(proc.Spec{Path: "qemu-storage-daemon", Args: args, ExtraFiles: []*os.File{f}})
	for _, c := range []interface{ Close() error }{f, l} {
		if err := c.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Stop(t) })
	return s
}

// Raw serves a raw image file, which must exist.
func Raw(t testing.TB, path, options string) *Server {
	t.Helper()
	return Start(t, options, "--blockdev", "driver=file,node-name=file,discard=unmap,filename="+path,
		"--blockdev", "driver=raw,node-name=top,discard=unmap,file=file")
}

// Qcow2 serves a qcow2 image file, which must exist.
func Qcow2(t testing.TB, path, options string) *Server {
	t.Helper()
	return Start(t, options, "--blockdev", "driver=file,node-name=file,discard=unmap,filename="+path,
		"--blockdev", "driver=qcow2,node-name=top,discard=unmap,file=file")
}

// Compressed serves a qcow2 image file through the compress filter.
func Compressed(t testing.TB, path string) *Server {
	t.Helper()
	return Start(t, "writable=on", "--blockdev", "driver=file,node-name=file,filename="+path,
		"--blockdev", "driver=qcow2,node-name=image,file=file",
		"--blockdev", "driver=compress,node-name=top,file=image")
}

// PID returns the daemon's process id.
func (s *Server) PID() int { return s.proc.PID() }

// Done is closed when the daemon has ended.
func (s *Server) Done() <-chan struct{} { return s.proc.Done() }

// Kill ends the daemon at once.
func (s *Server) Kill(t testing.TB) {
	t.Helper()
	if err := s.proc.Kill(); err != nil {
		t.Error(err)
	}
}

// Stop ends the daemon, which closes its images, and waits for it.
func (s *Server) Stop(t testing.TB) {
	t.Helper()
	if err := s.proc.Stop(); err != nil {
		t.Error(err)
	}
}

// Dial connects to the server's export, with base:allocation and more contexts. The connection
// is closed with the test.
func (s *Server) Dial(t testing.TB, contexts ...string) *nbd.Conn {
	t.Helper()
	c, err := nbd.Dial(context.Background(), s.Socket, nbd.Options{
		Export:       ExportName,
		MetaContexts: append([]string{nbd.BaseAllocation}, contexts...),
	})
	if err != nil {
		t.Fatalf("%v; the daemon said: %s", err, s.proc.Stderr())
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return c
}

// URI returns the server's address for the tools of others.
func (s *Server) URI() string { return "nbd+unix:///" + ExportName + "?socket=" + s.Socket }

// ShortDir returns a folder for sockets, whose paths may have 107 bytes only. It goes with the
// test.
func ShortDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "nf")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

// Run runs a tool to its end and returns its standard output.
func Run(t testing.TB, path string, args ...string) string {
	t.Helper()
	out, err := proc.Run(context.Background(), proc.Spec{Path: path, Args: args})
	if err != nil {
		t.Fatalf("%s %s: %v", path, strings.Join(args, " "), err)
	}
	return string(out)
}

// CreateQcow2 creates an empty qcow2 image file of a virtual size in bytes; options are those of
// qemu-img create -o, or "".
func CreateQcow2(t testing.TB, path string, size int64, options string) {
	t.Helper()
	args := []string{"create", "-q", "-f", "qcow2"}
	if options != "" {
		args = append(args, "-o", options)
	}
	Run(t, "qemu-img", append(args, path, fmt.Sprint(size))...)
}
