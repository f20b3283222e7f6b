package worker

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/oklog/ulid/v2"
	"go.uber.org/goleak"

	"github.com/nasfleet/nasfleet/internal/exec"
	"github.com/nasfleet/nasfleet/internal/exec/copier"
	"github.com/nasfleet/nasfleet/messages"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const (
	zone = "z1"
	host = "h1"
)

// fakeQueue hands out what a test puts in. It is gone for good once gone is closed.
type fakeQueue struct {
	c    chan Delivery
	gone chan struct{}
}

func (q *fakeQueue) Next(ctx context.Context) (Delivery, error) {
	select {
	case d := <-q.c:
		return d, nil
	case <-q.gone:
		return nil, errors.New("the queue is gone")
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// fakeDelivery records how it was ended.
type fakeDelivery struct {
	job       string
	signature string
	data      []byte
	ends      chan string

	// extended gets a signal for each extension; those that nobody waits for are dropped.
	extended chan struct{}
	// settling is called before the command is let go.
	settling func()

	mu    sync.Mutex
	delay time.Duration
}

func newDelivery(job string, data []byte) *fakeDelivery {
	return &fakeDelivery{job: job, data: data, ends: make(chan string, 4), extended: make(chan struct{}, 1)}
}

func (d *fakeDelivery) Job() string               { return d.job }
func (d *fakeDelivery) Subject() string           { return messages.JobSubject(zone, host, d.job) }
func (d *fakeDelivery) Data() []byte              { return d.data }
func (d *fakeDelivery) Signature() string         { return d.signature }
func (d *fakeDelivery) Ack(context.Context) error { return d.end("ack") }
func (d *fakeDelivery) Return() error             { return d.end("return") }
func (d *fakeDelivery) Term(string) error         { return d.end("term") }

func (d *fakeDelivery) end(how string) error {
	if d.settling != nil {
		d.settling()
	}
	d.ends <- how
	return nil
}

func (d *fakeDelivery) Retry(delay time.Duration) error {
	d.mu.Lock()
	d.delay = delay
	d.mu.Unlock()
	return d.end("retry")
}

func (d *fakeDelivery) Extend() error {
	select {
	case d.extended <- struct{}{}:
	default:
	}
	return nil
}

// fakeOutbox keeps what was published, and knows the final event of each job.
type fakeOutbox struct {
	mu       sync.Mutex
	events   []messages.Event
	commands map[string][]byte
	catalog  map[string]messages.CatalogEntry
	progress int
	hosts    []messages.HostInfo
	gone     bool
	// fail makes PublishEvent fail for final events, away for all.
	fail, away error
	// before is called before an event is stored, looked once, after a look for a final event.
	before func(messages.Event)
	looked func()
	// behind makes it know no final event yet.
	behind atomic.Bool
}

func newOutbox() *fakeOutbox { return &fakeOutbox{catalog: map[string]messages.CatalogEntry{}} }

func (o *fakeOutbox) PublishEvent(_ context.Context, e messages.Event) error {
	if o.before != nil {
		o.before(e)
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.away != nil {
		return o.away
	}
	if o.fail != nil && e.Kind.Final() {
		return o.fail
	}
	o.events = append(o.events, e)
	return nil
}

func (o *fakeOutbox) PublishAccepted(ctx context.Context, e messages.Event) (bool, error) {
	if final, _ := o.FinalEvent(ctx, e.Zone, e.Host, e.JobID); final != nil && final.Kind == messages.KindCancelled {
		return false, nil
	}
	return true, o.PublishEvent(ctx, e)
}

func (o *fakeOutbox) Command(_ context.Context, _, _, job string) ([]byte, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.commands[job], nil
}

// published makes a command known, as its stream does.
func (o *fakeOutbox) published(job string, data []byte) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.commands == nil {
		o.commands = map[string][]byte{}
	}
	o.commands[job] = data
}

func (o *fakeOutbox) PublishProgress(messages.Progress) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.progress++
	return nil
}

func (o *fakeOutbox) FinalEvent(_ context.Context, _, _, job string) (*messages.Event, error) {
	if looked := o.looked; looked != nil {
		o.looked = nil
		defer looked()
	}
	if o.behind.Load() {
		return nil, nil
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	for i := range o.events {
		if e := o.events[i]; e.JobID == job && e.Kind.Final() {
			return &e, nil
		}
	}
	return nil, nil
}

func (o *fakeOutbox) PutBackup(_ context.Context, e messages.CatalogEntry) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.catalog[e.ID] = e
	return nil
}

func (o *fakeOutbox) RemoveBackup(_ context.Context, _, _, id string) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	delete(o.catalog, id)
	return nil
}

func (o *fakeOutbox) Announce(_ context.Context, h messages.HostInfo) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.hosts = append(o.hosts, h)
	return nil
}

func (o *fakeOutbox) Withdraw(context.Context, string, string) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.gone = true
	return nil
}

// kinds lists the kinds of a job's events, in order.
func (o *fakeOutbox) kinds(job string) []messages.Kind {
	o.mu.Lock()
	defer o.mu.Unlock()
	var ks []messages.Kind
	for _, e := range o.events {
		if e.JobID == job {
			ks = append(ks, e.Kind)
		}
	}
	return ks
}

// all returns a job's events, in order.
func (o *fakeOutbox) all(job string) []messages.Event {
	o.mu.Lock()
	defer o.mu.Unlock()
	var all []messages.Event
	for _, e := range o.events {
		if e.JobID == job {
			all = append(all, e)
		}
	}
	return all
}

func (o *fakeOutbox) setAway(err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.away = err
}

func (o *fakeOutbox) last(job string) messages.Event {
	o.mu.Lock()
	defer o.mu.Unlock()
	for i := len(o.events) - 1; i >= 0; i-- {
		if o.events[i].JobID == job {
			return o.events[i]
		}
	}
	return messages.Event{}
}

// fakeExecutor does what the test says.
type fakeExecutor func(context.Context, messages.Command, exec.Reporter) (exec.Outcome, error)

func (f fakeExecutor) Run(ctx context.Context, c messages.Command, l *copier.Limiter, r exec.Reporter) (exec.Outcome, error) {
	if l == nil {
		return exec.Outcome{}, errors.New("the job has no limiter")
	}
	out, err := f(ctx, c, r)
	if err == nil {
		r.Done(out)
	}
	return out, err
}

func (f fakeExecutor) CleanUp(context.Context, messages.Command) (*exec.Outcome, error) {
	return nil, nil
}

// cleaner notes whose leftovers it was told to clean up, and tells the limits that jobs begin with.
type cleaner struct {
	fakeExecutor
	limits chan<- int
	// found is what a killed attempt had done.
	found *exec.Outcome
	mu    sync.Mutex
	ids   []string
}

func (c *cleaner) Run(ctx context.Context, cmd messages.Command, l *copier.Limiter, r exec.Reporter) (exec.Outcome, error) {
	if c.limits != nil {
		c.limits <- l.Limit()
	}
	return c.fakeExecutor.Run(ctx, cmd, l, r)
}

func (c *cleaner) CleanUp(_ context.Context, cmd messages.Command) (*exec.Outcome, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ids = append(c.ids, cmd.Head().JobID)
	return c.found, nil
}

func (c *cleaner) cleaned() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.ids
}

// rig is a worker between fakes.
type rig struct {
	t      *testing.T
	queue  *fakeQueue
	out    *fakeOutbox
	exec   *cleaner
	worker *Worker
	stop   context.CancelFunc
	ended  chan error
}

// start runs a worker; the test's end stops it.
func start(t *testing.T, cfg Config, f fakeExecutor) *rig {
	t.Helper()
	cfg.Zone, cfg.Host = zone, host
	if cfg.StateDir == "" {
		cfg.StateDir = t.TempDir()
	}
	r := &rig{t: t, queue: &fakeQueue{c: make(chan Delivery, 16)}, out: newOutbox(), exec: &cleaner{fakeExecutor: f}, ended: make(chan error, 1)}
	w, err := New(cfg, r.queue, r.out, r.exec)
	if err != nil {
		t.Fatal(err)
	}
	r.worker = w
	ctx, cancel := context.WithCancel(context.Background())
	r.stop = cancel
	go func() { r.ended <- w.Run(ctx); close(r.ended) }()
	t.Cleanup(func() {
		cancel()
		if err := <-r.ended; err != nil {
			t.Errorf("the worker ended with %v", err)
		}
	})
	return r
}

// take makes a TakeBackup command for a VM.
func take(t *testing.T, vm string, attempts int) (string, []byte) {
	t.Helper()
	return takeOf(t, vm, func(h *messages.Header) { h.Attempts = attempts })
}

// takeWith makes one with something in its header.
func takeWith(t *testing.T, set func(*messages.Header)) (string, []byte) {
	t.Helper()
	return takeOf(t, "vm1", set)
}

func takeOf(t *testing.T, vm string, set func(*messages.Header)) (string, []byte) {
	t.Helper()
	id := ulid.Make().String()
	cmd := &messages.TakeBackup{
		Header:     messages.Header{Version: 1, Type: messages.TypeTake, JobID: id, IssuedAt: time.Now()},
		VM:         vm,
		Repository: messages.Repository{Type: messages.RepositoryDir, Address: "/nas"},
	}
	set(&cmd.Header)
	data, err := messages.Encode(cmd)
	if err != nil {
		t.Fatal(err)
	}
	return id, data
}

// deliver gives the worker a command and returns how the delivery ended.
func (r *rig) deliver(job string, data []byte) (*fakeDelivery, string) {
	r.t.Helper()
	d := newDelivery(job, data)
	r.queue.c <- d
	return d, r.end(d)
}

func (r *rig) end(d *fakeDelivery) string {
	r.t.Helper()
	select {
	case how := <-d.ends:
		return how
	case <-time.After(10 * time.Second):
		r.t.Fatal("the delivery was not ended")
		return ""
	}
}
