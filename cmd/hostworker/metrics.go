package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/rs/zerolog"

	"github.com/nasfleet/nasfleet/internal/worker"
)

// serveMetrics serves /metrics and /healthz on addr, and returns what stops it. An empty addr
// serves nothing.
func serveMetrics(addr string, m *worker.Metrics, healthy func() bool, log zerolog.Logger) (func(), error) {
	if addr == "" {
		return func() {}, nil
	}
	registry := prometheus.NewRegistry()
	registry.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	if err := m.Register(registry); err != nil {
		return nil, fmt.Errorf("register the metrics: %w", err)
	}
	mux := http.NewServeMux()
	mux.Handle("/metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{}))
	mux.HandleFunc("/healthz", func(w http.ResponseWriter, _ *http.Request) {
		if !healthy() {
			http.Error(w, "no connection to NATS", http.StatusServiceUnavailable)
			return
		}
		_, _ = fmt.Fprintln(w, "ok")
	})
	listener, err := (&net.ListenConfig{}).Listen(context.Background(), "tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("serve metrics: %w", err)
	}
	server := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second}
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
			log.Error().Err(err).Msg("serve metrics")
		}
	}()
	log.Info().Str("addr", listener.Addr().String()).Msg("serves metrics")
	return func() { _ = server.Close(); <-done }, nil
}

// makeFolders makes the worker's own folders.
func makeFolders(private string, shared string) error {
	if err := os.MkdirAll(private, 0o711); err != nil { // the scratch folder is below it by default
		return fmt.Errorf("make the state folder: %w", err)
	}
	if err := os.MkdirAll(shared, 0o711); err != nil {
		return fmt.Errorf("make the run folder: %w", err)
	}
	return nil
}
