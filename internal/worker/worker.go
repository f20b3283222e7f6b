package worker

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/rs/zerolog"

	"github.com/nasfleet/nasfleet/internal/exec"
	"github.com/nasfleet/nasfleet/messages"
)

// Delivery is one command handed to this worker. Exactly one of its last four methods ends it;
// a delivery that is not ended comes back after the queue's AckWait.
type Delivery interface {
	// Job is the job id in the command's subject. It may be anything that fits a subject.
	Job() string
	// Subject is where the command came on.
	Subject() string
	Data() []byte
	// Signature is what the command carries beside its bytes, or "". Nobody has checked it.
	Signature() string
	// Extend says that the command is still worked on.
	Extend() error
	// Ack ends the command for good, and returns once the server has noted it.
	Ack(context.Context) error
	// Retry gives it back for later.
	Retry(time.Duration) error
	// Return gives it back at once.
	Return() error
	// Term ends a command that is not to be tried again.
	Term(reason string) error
}

// Queue hands out the host's commands, oldest first.
type Queue interface {
	// Next blocks until there is one. It rides out a lost connection, and fails only when ctx has
	// ended or the queue is gone for good.
	Next(context.Context) (Delivery, error)
}

// Outbox takes what the worker has to say. PublishEvent and the catalog's methods return once the
// server has stored it; they try again until ctx ends.
type Outbox interface {
	PublishEvent(context.Context, messages.Event) error
	PublishProgress(messages.Progress) error
	// FinalEvent returns the event that ended a job, or nil.
	FinalEvent(ctx context.Context, zone, host, job string) (*messages.Event, error)
	PutBackup(context.Context, messages.CatalogEntry) error
	RemoveBackup(ctx context.Context, zone, host, id string) error
	Announce(context.Context, messages.HostInfo) error
	Withdraw(ctx context.Context, zone, host string) error
}

// Authority says whether a command is the publisher's own; see secret.Verifier.
type Authority interface {
	// Verify checks a signature over a command's bytes and the subject it came on.
	Verify(subject, signature string, data []byte) error
	// VerifyTime checks that a command is not too old to be begun.
	VerifyTime(issued, now time.Time) error
}

// Executor does a job once; see exec.Executor.
type Executor interface {
	Run(context.Context, messages.Command, exec.Reporter) (exec.Outcome, error)
	// CleanUp ends what killed attempts at a command left, when there is to be no other.
	CleanUp(context.Context, messages.Command) error
}

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
	// Grace is how long running jobs have to end when the worker stops. Default 30 s.
	Grace time.Duration
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
		journal: j, jobs: newRunning(), started: time.Now(),
	}, nil
}

// Run works until ctx ends, and then gives running jobs Config.Grace to end before they are
// stopped and given back. It returns nil after such a stop, and closes the journal.
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
	if !waitFor(done, w.cfg.Grace) {
		stopJobs(messages.Errorf(messages.CodeShuttingDown, "the worker is stopping"))
		if !waitFor(done, lastWords) {
			stopWords()
			<-done
		}
	}
	return err
}

// loop takes commands as long as there is a free slot. It fetches only then, so that a command
// waits in the stream, where another worker or a cancel can see it, and not in this process.
func (w *Worker) loop(ctx, jobs, words context.Context, wg *sync.WaitGroup) error {
	slots := make(chan struct{}, w.cfg.Jobs)
	for {
		select {
		case slots <- struct{}{}:
		case <-ctx.Done():
			return nil
		}
		d, err := w.queue.Next(ctx)
		if ctx.Err() != nil {
			if d != nil {
				err = d.Return()
			}
			return ignoreCancelled(err)
		}
		if err != nil {
			return fmt.Errorf("take a command: %w", err)
		}
		wg.Go(func() {
			defer func() { <-slots }()
			w.handle(jobs, words, d)
		})
	}
}

func ignoreCancelled(err error) error {
	if errors.Is(err, context.Canceled) {
		return nil
	}
	return err
}

func waitFor(done <-chan struct{}, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-done:
		return true
	case <-t.C:
		return false
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
