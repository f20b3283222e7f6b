package worker

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/nasfleet/nasfleet/internal/exec"
	"github.com/nasfleet/nasfleet/messages"
)

// Metrics are what a host's worker counts, for Prometheus.
type Metrics struct {
	attempts *prometheus.CounterVec
	seconds  *prometheus.HistogramVec
	data     prometheus.Counter
	stored   prometheus.Counter
	running  prometheus.Gauge
}

// NewMetrics returns metrics that are not registered yet.
func NewMetrics() *Metrics {
	return &Metrics{
		attempts: prometheus.NewCounterVec(prometheus.CounterOpts{
			Name: "nasfleet_attempts_total", Help: "Attempts that ended, by command, kind of end and error code.",
		}, []string{"type", "kind", "code"}),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "nasfleet_attempt_seconds", Help: "How long attempts took, by command.",
			Buckets: prometheus.ExponentialBuckets(1, 4, 9), // 1 s to 18 h
		}, []string{"type"}),
		data: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "nasfleet_backup_data_bytes_total", Help: "Bytes of guest data copied into backups.",
		}),
		stored: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "nasfleet_backup_stored_bytes_total", Help: "Bytes that backups take on their repositories.",
		}),
		running: prometheus.NewGauge(prometheus.GaugeOpts{
			Name: "nasfleet_jobs_running", Help: "Jobs at work.",
		}),
	}
}

// Register registers the metrics.
func (m *Metrics) Register(r prometheus.Registerer) error {
	for _, c := range []prometheus.Collector{m.attempts, m.seconds, m.data, m.stored, m.running} {
		if err := r.Register(c); err != nil {
			return err
		}
	}
	return nil
}

func (m *Metrics) observe(j *job, d decision, out exec.Outcome) {
	kind := string(d.kind)
	if d.ends == returned {
		kind = "given_back"
	}
	t := string(j.cmd.Head().Type)
	m.attempts.WithLabelValues(t, kind, string(messages.CodeOf(d.err))).Inc()
	m.seconds.WithLabelValues(t).Observe(time.Since(j.started).Seconds())
	if d.err == nil && out.Backup != nil && j.cmd.Head().Type == messages.TypeTake {
		m.data.Add(float64(out.Backup.DataBytes))
		m.stored.Add(float64(out.Backup.StoredBytes))
	}
}

func (m *Metrics) refused() {
	m.attempts.WithLabelValues("unreadable", string(messages.KindFailed), string(messages.CodeInvalidMessage)).Inc()
}
