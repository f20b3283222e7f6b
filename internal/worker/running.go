package worker

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/nasfleet/nasfleet/messages"
)

// running knows the jobs at work and the VMs they work on. Its lock decides between a command that
// is delivered and a request to change its job.
type running struct {
	mu   sync.Mutex
	byID map[string]*job
	// vms maps a VM to the job on it.
	vms map[string]string
	// dangerous is the job at work that may be what kills the worker; "" for none.
	dangerous string
	// since is when a command began to wait for its turn.
	since map[string]time.Time
	// trouble is when the host could first not begin a job, of those that it still cannot.
	trouble map[string]time.Time
	// held are the jobs that wait and are being changed; the channel closes when that is over.
	held map[string]chan struct{}
}

func newRunning() *running {
	return &running{byID: map[string]*job{}, vms: map[string]string{}, since: map[string]time.Time{}, trouble: map[string]time.Time{}, held: map[string]chan struct{}{}}
}

// enter admits a job. A command that is at work already was delivered again, because its
// extensions were lost with the connection: the running job takes the new delivery over, and the
// delay is 0. A command that has to wait its turn goes back into the stream for the delay: its VM
// is busy, it is being changed, or it may be what kills the worker and another one that may be is
// at work: beside each other the innocent one would lose its attempts to the other.
func (r *running) enter(j *job, dangerous bool) (ok bool, delay time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if same := r.byID[j.id]; same != nil {
		j.log.Info().Msg("delivered again while it runs")
		same.d.replace(j.d)
		return false, 0
	}
	if behind := r.obstacle(j, dangerous); behind != "" {
		j.log.Debug().Str("behind", behind).Msg("waits its turn")
		return false, busyDelay(r.waited(j.id), j.w.cfg.BusyDelay)
	}
	delete(r.since, j.id)
	r.byID[j.id] = j
	for _, vm := range worksOn(j.cmd) {
		r.vms[vm] = j.id
	}
	if dangerous {
		r.dangerous = j.id
	}
	j.w.cfg.Metrics.running.Inc()
	return true, 0
}

// obstacle returns what a command has to wait for, or "".
func (r *running) obstacle(j *job, dangerous bool) string {
	if r.held[j.id] != nil {
		return "a request to change it"
	}
	if dangerous && r.dangerous != "" {
		return r.dangerous
	}
	for _, vm := range worksOn(j.cmd) {
		if other, busy := r.vms[vm]; busy {
			return other
		}
	}
	return ""
}

// seize returns a job that is at work. One that is not is kept from being begun until release is
// called.
func (r *running) seize(ctx context.Context, id string) (at *job, release func(), err error) {
	for {
		r.mu.Lock()
		if j := r.byID[id]; j != nil {
			r.mu.Unlock()
			return j, func() {}, nil
		}
		other, busy := r.held[id]
		if !busy {
			mine := make(chan struct{})
			r.held[id] = mine
			r.mu.Unlock()
			return nil, func() { r.release(id, mine) }, nil
		}
		r.mu.Unlock()
		select {
		case <-other:
		case <-ctx.Done():
			return nil, nil, context.Cause(ctx)
		}
	}
}

func (r *running) release(id string, mine chan struct{}) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.held, id)
	close(mine)
}

// waited returns how long a command has waited for its turn.
func (r *running) waited(job string) time.Duration {
	began, waits := r.since[job]
	if !waits {
		began = time.Now()
		r.since[job] = began
	}
	return time.Since(began)
}

// hindered returns the delay until a job is tried to be begun again that the host could not begin.
func (r *running) hindered(job string, first time.Duration) time.Duration {
	r.mu.Lock()
	defer r.mu.Unlock()
	began, known := r.trouble[job]
	if !known {
		began = time.Now()
		r.trouble[job] = began
	}
	return busyDelay(time.Since(began), first)
}

// unhindered forgets the trouble with a job.
func (r *running) unhindered(job string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.trouble, job)
}

// busyDelay is a tenth of the time waited, so that a command that waits for hours is delivered some
// dozens of times: the queue gives up a command that was delivered too often.
func busyDelay(waited, first time.Duration) time.Duration {
	return max(first, min(waited/10, maxRetryDelay))
}

// worksOn names the VMs and RBD images that no other job may work on meanwhile.
func worksOn(cmd messages.Command) []string {
	vms := []string{cmd.Target()}
	if r, ok := cmd.(*messages.RestoreBackup); ok && r.ToVM != "" && r.ToVM != r.Target() {
		vms = append(vms, r.ToVM)
	} else if ok {
		for _, image := range r.ToRBD { // no VM's name has a slash
			vms = append(vms, "rbd/"+image)
		}
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
	if r.dangerous == j.id {
		r.dangerous = ""
	}
	close(j.left)
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
