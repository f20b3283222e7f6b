package worker

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/nasfleet/nasfleet/messages"
)

// running knows the jobs at work and the VMs they work on.
type running struct {
	mu   sync.Mutex
	byID map[string]*job
	// vms maps a VM to the job on it.
	vms map[string]string
	// since is when a command began to wait for its VM.
	since map[string]time.Time
}

func newRunning() *running {
	return &running{byID: map[string]*job{}, vms: map[string]string{}, since: map[string]time.Time{}}
}

// enter admits a job. A command that is at work already was delivered again, because its
// extensions were lost with the connection: the running job takes the new delivery over. A
// command whose VM is busy waits its turn in the stream.
func (r *running) enter(j *job) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if same := r.byID[j.id]; same != nil {
		j.log.Info().Msg("delivered again while it runs")
		same.d.replace(j.d)
		return false
	}
	for _, vm := range worksOn(j.cmd) {
		if other, busy := r.vms[vm]; busy {
			j.log.Debug().Str("vm", vm).Str("behind", other).Msg("waits for another job on its vm")
			j.settle(j.d.retry(busyDelay(r.waited(j.id), j.w.cfg.BusyDelay)))
			return false
		}
	}
	delete(r.since, j.id)
	r.byID[j.id] = j
	for _, vm := range worksOn(j.cmd) {
		r.vms[vm] = j.id
	}
	j.w.cfg.Metrics.running.Inc()
	return true
}

// waited returns how long a command has waited for its VM.
func (r *running) waited(job string) time.Duration {
	began, waits := r.since[job]
	if !waits {
		began = time.Now()
		r.since[job] = began
	}
	return time.Since(began)
}

// busyDelay is a tenth of the time waited, so that a command that waits for hours is delivered some
// dozens of times: the queue gives up a command that was delivered too often.
func busyDelay(waited, first time.Duration) time.Duration {
	return max(first, min(waited/10, maxRetryDelay))
}

// worksOn names the VMs that no other job may work on meanwhile.
func worksOn(cmd messages.Command) []string {
	vms := []string{cmd.Target()}
	if r, ok := cmd.(*messages.RestoreBackup); ok && r.ToVM != "" && r.ToVM != r.Target() {
		vms = append(vms, r.ToVM)
	}
	return vms
}

// leave makes room for the next job on the VM. It may be called again.
func (r *running) leave(j *job) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.byID[j.id] != j {
		return
	}
	delete(r.byID, j.id)
	for _, vm := range worksOn(j.cmd) {
		delete(r.vms, vm)
	}
	j.w.cfg.Metrics.running.Dec()
}

// ids lists the jobs at work.
func (r *running) ids() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	ids := make([]string, 0, len(r.byID))
	for id := range r.byID {
		ids = append(ids, id)
	}
	slices.Sort(ids)
	return ids
}

// held is the latest delivery of a command.
type held struct {
	mu sync.Mutex
	d  Delivery
}

func newHeld(d Delivery) *held { return &held{d: d} }

func (h *held) latest() Delivery {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.d
}

func (h *held) replace(by *held) {
	d := by.latest()
	h.mu.Lock()
	defer h.mu.Unlock()
	h.d = d
}

func (h *held) extend() error                 { return h.latest().Extend() }
func (h *held) ack(ctx context.Context) error { return h.latest().Ack(ctx) }
func (h *held) retry(d time.Duration) error   { return h.latest().Retry(d) }
func (h *held) giveBack() error               { return h.latest().Return() }
func (h *held) term(reason string) error      { return h.latest().Term(reason) }
