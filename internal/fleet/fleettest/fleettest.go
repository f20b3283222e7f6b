// Package fleettest is a NATS server with hosts that answer every job at once, for the tests of
// the management side. What a host does is told by the name of the job's VM; see Host.
package fleettest

import (
	"context"
	"fmt"
	"os"
	"sync"

	"github.com/rs/zerolog"

	"github.com/nasfleet/nasfleet/internal/bus"
	"github.com/nasfleet/nasfleet/internal/secret"
	"github.com/nasfleet/nasfleet/messages"
)

// Passphrase begins every one that the hosts take; any other is a wrong_passphrase.
const Passphrase = "correct horse battery staple"

// Fleet is a server and its hosts.
type Fleet struct {
	// URL of the server, and the folder with its streams.
	URL, Dir string
	Bus      *bus.Bus

	server *bus.Server
	ctx    context.Context
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu  sync.Mutex
	err error
	// locks holds the passphrases of the backups that were taken, by their ids.
	locks map[string][]string
	hosts map[string]*answerer // by HostKey
}

// Start starts a server.
func Start() (*Fleet, error) {
	dir, err := os.MkdirTemp("", "nf")
	if err != nil {
		return nil, err
	}
	f := &Fleet{Dir: dir, locks: map[string][]string{}, hosts: map[string]*answerer{}}
	f.ctx, f.cancel = context.WithCancel(context.Background())
	if f.server, err = bus.StartServer(f.ctx, bus.ServerConfig{Dir: dir, Listen: "127.0.0.1:0", Log: zerolog.Nop()}); err != nil {
		return nil, err
	}
	f.URL = f.server.ClientURL()
	if f.Bus, err = bus.Connect(f.ctx, bus.Config{URL: f.URL, Name: "fleettest"}); err != nil {
		f.server.Stop()
	}
	return f, err
}

// Stop ends the hosts and the server and returns the first error a host had.
func (f *Fleet) Stop() error {
	f.cancel()
	f.wg.Wait()
	f.Bus.Close()
	f.server.Stop()
	if err := os.RemoveAll(f.Dir); err != nil {
		return err
	}
	return f.err
}

// slots is how many jobs a host answers at a time.
const slots = 8

// Host starts a host: it announces itself and answers its jobs, a few at a time.
//
//	a VM named bad…    fails with target_full
//	a VM named flaky…  succeeds at its second attempt
//	a VM named down…   fails with mount_failed, and succeeds when the job is replayed
//	a VM named gone…   is cancelled
//	a VM named hang…   goes on copying until it is cancelled or the fleet stops; it can be throttled
//	any other          succeeds; the backup it takes is in the catalog, an incremental as the child of the newest
func (f *Fleet) Host(zone, host string) error {
	key, err := secret.NewKey()
	if err != nil {
		return err
	}
	h := &answerer{f: f, key: key, zone: zone, host: host, hanging: hanging{byID: map[string]*hung{}}}
	if err := f.Bus.EnsureZone(f.ctx, zone); err != nil {
		return err
	}
	if err := h.announce(); err != nil {
		return err
	}
	commands, err := f.Bus.Commands(zone, host)
	if err != nil {
		return err
	}
	stop, err := f.Bus.ServeControl(zone, host, h.control)
	if err != nil {
		return err
	}
	f.wg.Go(func() {
		defer stop()
		h.stayAlive()
	})
	f.mu.Lock()
	f.hosts[messages.HostKey(zone, host)] = h
	f.mu.Unlock()
	for range slots {
		f.wg.Go(func() {
			defer commands.Stop()
			for f.ctx.Err() == nil {
				d, err := commands.Next(f.ctx)
				if err == nil {
					err = h.answer(d)
				}
				if err != nil && f.ctx.Err() == nil {
					f.fail(fmt.Errorf("host %s/%s: %w", zone, host, err))
					return
				}
			}
		})
	}
	return nil
}

// Rekey gives a host another key, as one that is installed anew has.
func (f *Fleet) Rekey(zone, host string) error {
	key, err := secret.NewKey()
	if err != nil {
		return err
	}
	f.mu.Lock()
	h := f.hosts[messages.HostKey(zone, host)]
	h.key = key
	f.mu.Unlock()
	return h.announce()
}

func (f *Fleet) fail(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.err == nil {
		f.err = err
	}
}
