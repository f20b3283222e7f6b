package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/rs/zerolog"

	"github.com/nasfleet/nasfleet/internal/worker"
)

// serveMetrics serves /metrics and /healthz on addr, and returns what stops it. An empty addr
// serves nothing. ailing says why the worker cannot work right now, or "".
func serveMetrics(addr string, m *worker.Metrics, ailing func() string, log zerolog.Logger) (func(), error) {
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
		if why := ailing(); why != "" {
			http.Error(w, why, http.StatusServiceUnavailable)
			return
		}
		_, _ = fmt.Fprintln(w, "ok")
	})
	listener, err := listen(context.Background(), addr)
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

func listen(ctx context.Context, addr string) (net.Listener, error) {
	return new(net.ListenConfig).Listen(ctx, "tcp", addr)
}
