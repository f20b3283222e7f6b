package fleet

import (
	"context"
	"errors"
	"sync"

	"golang.org/x/sync/errgroup"

	"github.com/nasfleet/nasfleet/internal/bus"
	"github.com/nasfleet/nasfleet/messages"
)

// Result is what became of one job.
type Result struct {
	Job *Job
	// Published says that the job is stored for its host.
	Published bool
	// Duplicate says that the job had been published before; it still runs only once.
	Duplicate bool
	// Err is why the job was not published.
	Err error
	// Final is the event that ended it, nil for a job that was not followed to its end.
	Final *messages.Event
}

// Failure returns why the job was not published or did not succeed, or nil.
func (r Result) Failure() error {
	switch {
	case r.Err != nil:
		return r.Err
	case r.Final != nil:
		return Outcome(*r.Final)
	}
	return nil
}

// Observer is told what happens to jobs. Its methods are called one at a time, from several
// goroutines, and must not block for long.
type Observer interface {
	// Sent is called once for each job, when it was published or refused.
	Sent(r Result, t Tally)
	// Event is called for each event of a job, up to the final one.
	Event(j *Job, e messages.Event, t Tally)
	// Progress is called where one job is followed; of a fleet there would be too much of it.
	Progress(j *Job, p messages.Progress)
}

// Send publishes the jobs; the results tell the fate of each. The error is about all of them.
func (m *Manager) Send(ctx context.Context, jobs []*Job, o Observer) ([]Result, error) {
	r := newRun(jobs, o)
	if err := m.Fill(ctx, jobs); err != nil {
		return r.results, err
	}
	if err := m.ensure(ctx, jobs); err != nil {
		return r.results, err
	}
	return r.results, m.publish(ctx, r)
}

// Run publishes the jobs and follows them until each was refused or has its final event. When ctx
// ends first the error is of class Interrupted; what was published goes on.
func (m *Manager) Run(ctx context.Context, jobs []*Job, o Observer) ([]Result, error) {
	r := newRun(jobs, o)
	if err := m.Fill(ctx, jobs); err != nil {
		return r.results, err
	}
	if err := m.ensure(ctx, jobs); err != nil {
		return r.results, err
	}
	// Before anything is published, so that no event is missed.
	watch, err := m.bus.Watch(ctx, filterOf(jobs))
	if err != nil {
		return r.results, err
	}
	defer watch.Stop()
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return r.follow(ctx, watch) })
	group.Go(func() error {
		if err := m.publish(ctx, r); err != nil {
			return err
		}
		return m.lateEnds(ctx, r)
	})
	return r.results, group.Wait()
}

// follow takes in updates until every job is over.
func (r *run) follow(ctx context.Context, w *bus.Watch) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(r.done, cancel)()
	for {
		u, err := w.Next(ctx)
		switch {
		case r.done.Err() != nil:
			return nil
		case err != nil:
			return err
		case u.Event != nil:
			r.event(*u.Event)
		case u.Progress != nil:
			r.progress(*u.Progress)
		}
	}
}

// lateEnds looks for the ends of jobs that had been published, and may have ended, before they were
// followed.
func (m *Manager) lateEnds(ctx context.Context, r *run) error {
	for i := range r.results {
		j := r.results[i].Job
		if !r.maybeOver(i) {
			continue
		}
		final, err := m.bus.FinalEvent(ctx, j.Zone, j.Host, j.ID())
		if errors.Is(err, bus.ErrNotFound) {
			continue
		}
		if err != nil {
			return err
		}
		r.event(*final)
	}
	return nil
}

// filterOf is the narrowest filter that lets the events of all jobs through.
func filterOf(jobs []*Job) bus.Filter {
	if len(jobs) == 0 {
		return bus.Filter{}
	}
	f := bus.Filter{Zone: jobs[0].Zone, Host: jobs[0].Host, Job: jobs[0].ID()}
	for _, j := range jobs[1:] {
		f.Job = ""
		if j.Zone != f.Zone {
			f.Zone = ""
		}
		if j.Host != f.Host {
			f.Host = ""
		}
	}
	return f
}

// run is what Send and Run know of their jobs.
type run struct {
	o Observer

	mu      sync.Mutex // guards what follows and the calls of o
	results []Result
	states  []state
	index   map[string]int // by job id
	tally   Tally
	done    context.Context // ends when every job is over
	end     context.CancelFunc
}

func newRun(jobs []*Job, o Observer) *run {
	r := &run{
		o: o, results: make([]Result, len(jobs)), states: make([]state, len(jobs)), index: make(map[string]int, len(jobs)),
		tally: Tally{Jobs: len(jobs)},
	}
	r.done, r.end = context.WithCancel(context.Background())
	for i, j := range jobs {
		r.results[i].Job = j
		r.index[j.ID()] = i
	}
	r.endIfOver()
	return r
}

// jobs returns the jobs, in their order.
func (r *run) jobs() []*Job {
	jobs := make([]*Job, len(r.results))
	for i := range r.results {
		jobs[i] = r.results[i].Job
	}
	return jobs
}

// sent records that a job was published, or why not.
func (r *run) sent(i int, duplicate bool, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	// A new id can only have been published by ourselves, in a try whose ack was lost.
	duplicate = duplicate && err == nil && r.results[i].Job.chosenID
	r.results[i].Published, r.results[i].Duplicate, r.results[i].Err = err == nil, duplicate, err
	switch {
	case err != nil:
		r.move(i, rejected)
	case r.states[i] == unsent: // its first events may be here already
		r.move(i, queued)
	}
	r.o.Sent(r.results[i], r.tally)
	r.endIfOver()
}

// event records an event of one of the jobs; those of others, and what comes after the final
// event, are not ours.
func (r *run) event(e messages.Event) {
	r.mu.Lock()
	defer r.mu.Unlock()
	i, ok := r.find(e.Zone, e.Host, e.JobID)
	if !ok || r.states[i].over() {
		return
	}
	r.move(i, r.states[i].after(e.Kind))
	if e.Kind.Final() {
		r.results[i].Final = &e
	}
	r.o.Event(r.results[i].Job, e, r.tally)
	r.endIfOver()
}

func (r *run) progress(p messages.Progress) {
	r.mu.Lock()
	defer r.mu.Unlock()
	i, ok := r.find(p.Zone, p.Host, p.JobID)
	if !ok || r.states[i].over() || len(r.results) > 1 {
		return
	}
	r.o.Progress(r.results[i].Job, p)
}

// find returns the index of a job. Another host may have one of the same id, or say so.
func (r *run) find(zone, host, id string) (int, bool) {
	i, ok := r.index[id]
	if !ok {
		return 0, false
	}
	j := r.results[i].Job
	return i, j.Zone == zone && j.Host == host
}

func (r *run) move(i int, to state) {
	r.tally.move(r.states[i], to)
	r.states[i] = to
}

// maybeOver says that a job may have ended unseen.
func (r *run) maybeOver(i int) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.results[i].Duplicate && !r.states[i].over()
}

func (r *run) endIfOver() {
	if r.tally.Left() == 0 {
		r.end()
	}
}
