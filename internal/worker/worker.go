package worker

import (
	"context"
	"fmt"
	"math"
	"sync"
	"time"

	"github.com/rs/zerolog"

	"github.com/nasfleet/nasfleet/messages"
)

// Config of a Worker. Zero durations mean the defaults.
type Config struct {
	Zone, Host string
	Version    string
	// SealKey is announced, so that passphrases can be sealed for this host.
	SealKey string
	// Authority checks each command; nil is for a host that takes whatever lies in its queue.
	Authority Authority
	// Jobs is how many run at a time, never two for one VM. Default 2.
	Jobs int
	// StateDir keeps the journal of attempts.
	StateDir string
	// AckWait is the queue's; a running job's command is extended at a third of it. Default 60 s.
	AckWait time.Duration
	// RetryDelay is the wait before the second attempt; it doubles with each, with a jitter, up to
	// 10 minutes. Default 10 s.
	RetryDelay time.Duration
	// BusyDelay is how long a command waits at first for another one on its VM. Default 2 s.
	BusyDelay time.Duration
	// JobTimeout is how long a job may take, all its attempts together, where its command does not
	// say; 0 for as long as it likes.
	JobTimeout time.Duration
	// Grace is how long running jobs have to end when the worker stops. Default 30 s.
	Grace time.Duration
	// Hurry ends the grace when it is closed; nil for never.
	Hurry <-chan struct{}
	// AnnounceEvery is how often the host says that it is alive. Default 15 s.
	AnnounceEvery time.Duration
	// ProgressEvery is how often a running job says how far it is. Default 1 s.
	ProgressEvery time.Duration
	Metrics       *Metrics
	Log           zerolog.Logger
}

// withDefaults fills in what was left zero.
func (c Config) withDefaults() Config {
	if c.Jobs == 0 {
		c.Jobs = 2
	}
	for d, value := range map[*time.Duration]time.Duration{
		&c.AckWait:       time.Minute,
		&c.RetryDelay:    10 * time.Second,
		&c.BusyDelay:     2 * time.Second,
		&c.Grace:         30 * time.Second,
		&c.AnnounceEvery: 15 * time.Second,
		&c.ProgressEvery: time.Second,
	} {
		if *d == 0 {
			*d = value
		}
	}
	if c.Metrics == nil {
		c.Metrics = NewMetrics()
	}
	return c
}

// lastWords is how long a job that was told to stop has to clean up and publish why.
const lastWords = 15 * time.Second

// Worker works off one host's commands.
type Worker struct {
	cfg     Config
	queue   Queue
	out     Outbox
	exec    Executor
	journal *journal
	jobs    *running
	started time.Time
	// pulse is answered by the main loop.
	pulse chan chan<- []string
}

// New returns a Worker. It fails if another worker of the same zone and host uses StateDir.
func New(cfg Config, queue Queue, out Outbox, executor Executor) (*Worker, error) {
	cfg = cfg.withDefaults()
	j, err := openJournal(cfg.StateDir, cfg.Zone, cfg.Host)
	if err != nil {
		return nil, err
	}
	return &Worker{
		cfg: cfg, queue: queue, out: out, exec: executor,
		journal: j, jobs: newRunning(), started: time.Now(), pulse: make(chan chan<- []string),
	}, nil
}

// Run works until ctx ends, and then gives running jobs Config.Grace to end, less when Config.Hurry
// is closed, before they are stopped and given back. It returns nil after such a stop, and closes
// the journal.
func (w *Worker) Run(ctx context.Context) error {
	defer w.journal.close()
	// A queue that is gone for good ends the worker as well.
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	// Jobs outlive ctx by the grace, and their last events outlive the jobs.
	jobs, stopJobs := context.WithCancelCause(context.WithoutCancel(ctx))
	words, stopWords := context.WithCancel(context.WithoutCancel(ctx))
	defer stopWords()
	defer stopJobs(nil)

	var wg sync.WaitGroup
	wg.Go(func() { w.announce(ctx, words) })
	err := w.loop(ctx, jobs, words, &wg)
	stop()

	done := make(chan struct{})
	go func() { wg.Wait(); close(done) }()
	if !w.waitFor(done, w.cfg.Grace, w.cfg.Hurry) {
		stopJobs(messages.Errorf(messages.CodeShuttingDown, "the worker is stopping"))
		if !w.waitFor(done, lastWords, nil) {
			stopWords()
			w.waitFor(done, math.MaxInt64, nil) // for those that clean up; systemd is told that they do
		}
	}
	return err
}

// Pulse returns the jobs at work, by way of the main loop: an answer says that the loop goes round,
// and that nothing holds the lock over the jobs. It fails when there is none before ctx ends.
func (w *Worker) Pulse(ctx context.Context) ([]string, error) {
	answer := make(chan []string, 1)
	select {
	case w.pulse <- answer:
	case <-ctx.Done():
		return nil, fmt.Errorf("the worker's main loop does not answer: %w", context.Cause(ctx))
	}
	select {
	case ids := <-answer:
		return ids, nil
	case <-ctx.Done():
		return nil, fmt.Errorf("the worker's jobs are locked: %w", context.Cause(ctx))
	}
}

// delivered is what a look at the queue gave.
type delivered struct {
	d   Delivery
	err error
}

// loop takes commands as long as there is a free slot. It fetches only then, so that a command
// waits in the stream, where another worker or a cancel can see it, and not in this process.
func (w *Worker) loop(ctx, jobs, words context.Context, wg *sync.WaitGroup) error {
	slots := make(chan struct{}, w.cfg.Jobs)
	var next chan delivered // nil while nothing is fetched
	for {
		free := slots
		if next != nil {
			free = nil
		}
		select {
		case free <- struct{}{}:
			next = make(chan delivered, 1)
			go w.fetch(ctx, next)
		case got := <-next:
			next = nil
			if stopped, err := w.take(ctx, got); stopped || err != nil {
				return err
			}
			wg.Go(func() {
				defer func() { <-slots }()
				w.handle(jobs, words, got.d)
			})
		case answer := <-w.pulse:
			answer <- w.jobs.ids()
		case <-ctx.Done():
			if next == nil {
				return nil
			}
			_, err := w.take(ctx, <-next)
			return err
		}
	}
}

func (w *Worker) fetch(ctx context.Context, next chan<- delivered) {
	d, err := w.queue.Next(ctx)
	next <- delivered{d, err}
}

// take looks at what was fetched. A command that comes when the worker was told to stop is given back.
func (w *Worker) take(ctx context.Context, got delivered) (stopped bool, err error) {
	switch {
	case ctx.Err() == nil && got.err != nil:
		return false, fmt.Errorf("take a command: %w", got.err)
	case ctx.Err() == nil:
		return false, nil
	case got.d != nil:
		return true, got.d.Return()
	}
	return true, nil
}

// waitFor waits for the jobs' ends, and goes on answering for the loop.
func (w *Worker) waitFor(done <-chan struct{}, d time.Duration, hurry <-chan struct{}) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	for {
		select {
		case <-done:
			return true
		case answer := <-w.pulse:
			answer <- w.jobs.ids()
		case <-hurry:
			return false
		case <-t.C:
			return false
		}
	}
}

// announce says that the host is alive, until ctx ends; then that it is gone.
func (w *Worker) announce(ctx, words context.Context) {
	tick := time.NewTicker(w.cfg.AnnounceEvery)
	defer tick.Stop()
	for {
		info := messages.HostInfo{
			Zone: w.cfg.Zone, Host: w.cfg.Host, SealKey: w.cfg.SealKey, Version: w.cfg.Version,
			StartedAt: w.started.UTC(), SeenAt: time.Now().UTC(), Running: w.jobs.ids(), Slots: w.cfg.Jobs,
		}
		if err := w.out.Announce(ctx, info); err != nil && ctx.Err() == nil {
			w.cfg.Log.Warn().Err(err).Msg("announce the host")
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			if err := w.out.Withdraw(words, w.cfg.Zone, w.cfg.Host); err != nil {
				w.cfg.Log.Debug().Err(err).Msg("withdraw the host")
			}
			return
		}
	}
}
