package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"
)

// hurry is closed when the worker is to end at once: its jobs are still stopped and cleaned up, and
// not given the grace.
type hurry <-chan struct{}

// catchSignals returns a context that ends at the first SIGTERM or SIGINT, and a hurry that is
// closed at the second. From then on the program is the kernel's to end. release must be called.
func catchSignals() (ctx context.Context, h hurry, release func()) {
	ctx, stop := context.WithCancel(context.Background())
	signals, second, done := make(chan os.Signal, 2), make(chan struct{}), make(chan struct{})
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT)
	released := make(chan struct{})
	go func() {
		defer close(done)
		defer signal.Stop(signals)
		for _, heed := range []func(){stop, func() { close(second) }} {
			select {
			case <-signals:
				heed()
			case <-released:
				return
			}
		}
	}()
	return ctx, second, func() { close(released); <-done; stop() }
}
