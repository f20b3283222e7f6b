package exec

import (
	"context"
	"sync"

	"github.com/nasfleet/nasfleet/internal/exec/nbd"
	"github.com/nasfleet/nasfleet/messages"
)

// handshakes keeps the end of libvirt's job away from connections to a guest's QEMU that are still being negotiated.
// The end has QEMU stop its NBD server. QEMU 7.2, as Debian 12 has it, waits for every client then, and does not listen
// to one that it still negotiates with, not even to hear that it is gone: it waits forever, and the guest with it.
// Clients that are through are closed. One that is gone before libvirt is asked is noticed in
// time: QEMU's main loop goes round between that and the stop.
//
// Its methods may be called from any goroutine. The zero value lets connections in.
type handshakes struct {
	mu     sync.Mutex
	ending bool
	under  sync.WaitGroup
}

// open lets connections in (again).
func (h *handshakes) open() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.ending = false
}

// end lets no more in, and waits until those under way are through or gone. Each takes dialTimeout at most.
func (h *handshakes) end() {
	h.mu.Lock()
	h.ending = true
	h.mu.Unlock()
	h.under.Wait()
}

func (h *handshakes) enter() bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	if !h.ending {
		h.under.Add(1)
	}
	return !h.ending
}

// dial connects to an export.
func (h *handshakes) dial(ctx context.Context, socket string, o nbd.Options) (*nbd.Conn, error) {
	if !h.enter() {
		return nil, messages.Errorf(messages.CodeSourceReadFailed, "the backup of the VM is being ended")
	}
	defer h.under.Done()
	return nbd.Dial(ctx, socket, o)
}
