package worker

import (
	"context"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/nasfleet/nasfleet/internal/exec"
	"github.com/nasfleet/nasfleet/messages"
)

// progress is the exec.Reporter of a job: it keeps the latest and publishes it about once a
// second, because the copier reports thousands of times a second.
type progress struct {
	j      *job
	cancel context.CancelFunc
	done   chan struct{}

	mu    sync.Mutex
	phase messages.Phase
	disks map[string]messages.DiskProgress
	// verified is to be published when the attempt ends.
	verified *messages.Event
}

func newProgress(j *job) *progress {
	return &progress{j: j, disks: map[string]messages.DiskProgress{}}
}

// Phase implements exec.Reporter.
func (p *progress) Phase(ph messages.Phase) {
	p.mu.Lock()
	ended := len(p.disks) > 0
	p.mu.Unlock()
	if ended {
		p.publish() // how far the last phase came, so that a bar is seen to its end
	}
	p.mu.Lock()
	p.phase = ph
	clear(p.disks)
	p.mu.Unlock()
	p.j.log.Debug().Str("phase", string(ph)).Msg("phase")
	p.publish()
}

// Disk implements exec.Reporter.
func (p *progress) Disk(name string, done, total int64) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.disks[name] = messages.DiskProgress{Name: name, Done: done, Total: total}
}

// Verified implements exec.Reporter. It does not wait for NATS: a backup that was read back is to
// be committed, whoever can hear of it.
func (p *progress) Verified(backupID string, v messages.Verification) {
	ev := p.j.verified(backupID, v)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.verified = &ev
}

// Done implements exec.Reporter: it notes what there is to report.
func (p *progress) Done(out exec.Outcome) {
	p.mu.Lock()
	res := result{Outcome: out, Verified: p.verified}
	p.mu.Unlock()
	if err := p.j.w.journal.done(p.j.id, res); err != nil {
		p.j.log.Error().Err(err).Msg("write the journal")
	}
}

func (p *progress) start(ctx context.Context) {
	ctx, p.cancel = context.WithCancel(ctx)
	p.done = make(chan struct{})
	go func() {
		defer close(p.done)
		tick := time.NewTicker(p.j.w.cfg.ProgressEvery)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				p.publish()
			case <-ctx.Done():
				return
			}
		}
	}()
}

// stop ends the reports with a last one, and returns the verify result, or nil.
func (p *progress) stop() *messages.Event {
	p.cancel()
	<-p.done
	p.publish()
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.verified
}

// publish is not retried: progress that is late is of no use.
func (p *progress) publish() {
	if err := p.j.w.out.PublishProgress(p.snapshot()); err != nil {
		p.j.log.Debug().Err(err).Msg("publish progress")
	}
}

func (p *progress) snapshot() messages.Progress {
	p.mu.Lock()
	defer p.mu.Unlock()
	m := messages.Progress{
		JobID: p.j.id, Zone: p.j.w.cfg.Zone, Host: p.j.w.cfg.Host, VM: p.j.cmd.Target(),
		Attempt: p.j.attempt, Phase: p.phase,
	}
	for _, d := range p.disks {
		m.Disks = append(m.Disks, d)
	}
	slices.SortFunc(m.Disks, func(a, b messages.DiskProgress) int { return strings.Compare(a.Name, b.Name) })
	return m
}
