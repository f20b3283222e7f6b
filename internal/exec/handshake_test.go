package exec

import (
	"context"
	"errors"
	"io"
	"net"
	"path/filepath"
	"testing"
	"time"

	"github.com/nasfleet/nasfleet/internal/exec/nbd"
	"github.com/nasfleet/nasfleet/messages"
)

// libvirt's job is not ended while a connection to the guest's QEMU is negotiated, and none begins after that.
func TestTheEndWaitsForHandshakes(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	server, err := net.Listen("unix", socket)
	check(t, err)
	defer func() { check(t, server.Close()) }()

	var h handshakes
	at, cancelled := endpoint{socket: socket, guest: &h}, errors.New("cancelled")
	ctx, cancel := context.WithCancelCause(t.Context())
	dialled, ended := make(chan error, 1), make(chan struct{})
	go func() {
		_, err := dial(ctx, at, messages.CodeSourceReadFailed, nbd.BaseAllocation)
		dialled <- err
	}()
	c, err := server.Accept() // and says nothing
	check(t, err)
	defer func() { check(t, c.Close()) }()
	go func() {
		h.end()
		close(ended)
	}()
	for h.enter() { // until h.end has begun
		h.under.Done()
	}
	select {
	case <-ended:
		t.Fatal("the job is ended while a connection is negotiated")
	case <-time.After(50 * time.Millisecond):
	}
	cancel(cancelled)
	<-ended
	check(t, c.SetReadDeadline(time.Now().Add(time.Minute)))
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, io.EOF) {
		t.Errorf("when the job is ended the client is not gone: %v", err)
	}
	if err := <-dialled; !errors.Is(err, cancelled) {
		t.Errorf("the connection ended with %v", err)
	}

	if _, err := dial(t.Context(), at, messages.CodeSourceReadFailed, nbd.BaseAllocation); messages.CodeOf(err) != messages.CodeSourceReadFailed {
		t.Errorf("let in at the end: %v", err)
	}
	h.open()
	if !h.enter() {
		t.Error("nobody is let in by the next attempt to begin")
	}
	h.under.Done()
}
