package exec

import (
	"context"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nasfleet/nasfleet/internal/exec/bounded"
	"github.com/nasfleet/nasfleet/messages"
)

// While a running VM is backed up its QEMU copies old data to the scratch folder before the guest
// overwrites it. When that file system is full the guest gets a write error, or is paused. So the room there
// is watched from before the backup begins until libvirt's job has ended, by a goroutine that waits for
// nothing else; the job is ended first and everything else cleaned up after it.
const (
	// lookSeldom and lookOften are the pauses between two looks at the room: statfs costs microseconds.
	lookSeldom = 100 * time.Millisecond
	lookOften  = 10 * time.Millisecond
	// looksLeft is how many looks are made at least, at the present rate, before the reserve is touched.
	looksLeft = 20
	// roomFor is how long the room must last at the rate of the last second. Ending libvirt's job takes a
	// fraction of it.
	roomFor = 5 * time.Second
	// rateOver is what a rate is taken over: the kernel allocates in bursts.
	rateOver = time.Second
	// statfsPatience bounds a look: guests that write to a scratch folder that hangs hang with it.
	statfsPatience = 5 * time.Second
)

// room watches how the free space of a file system shrinks, and says when it is too little.
type room struct {
	reserve int64
	past    []sighting // those of the last rateOver, and the one before
}

type sighting struct {
	at   time.Time
	free int64
}

// see takes a look's result. It returns the pause until the next look, or why the backup has to end.
func (r *room) see(now time.Time, free int64) (time.Duration, error) {
	rate := r.rate(now, free)
	if free < r.reserve {
		return 0, messages.Errorf(messages.CodeScratchFull, "%d MiB are free in the scratch folder, which is less than the reserve of %d MiB",
			free>>20, r.reserve>>20)
	}
	if float64(free) < rate*roomFor.Seconds() {
		return 0, messages.Errorf(messages.CodeScratchFull, "%d MiB are free in the scratch folder and guests use up %d MiB a second: that lasts for less than %s",
			free>>20, int64(rate)>>20, roomFor)
	}
	if rate <= 0 {
		return lookSeldom, nil
	}
	last := time.Duration(float64(free-r.reserve) / rate * float64(time.Second))
	return min(max(last/looksLeft, lookOften), lookSeldom), nil
}

// rate returns how many bytes a second were used up lately; 0 or less where nothing was.
func (r *room) rate(now time.Time, free int64) float64 {
	for len(r.past) > 1 && now.Sub(r.past[1].at) >= rateOver {
		r.past = r.past[1:]
	}
	r.past = append(r.past, sighting{now, free})
	first := r.past[0]
	// What was used in less time counts as that of a whole second: a burst is no rate.
	return float64(first.free-free) / max(now.Sub(first.at), rateOver).Seconds()
}

// scratchFree returns the free space of the scratch folder in bytes.
func (e *Executor) scratchFree(ctx context.Context) (int64, error) {
	late := messages.Errorf(messages.CodeScratchFull, "scratch folder %s: no answer within %s", e.cfg.ScratchDir, statfsPatience)
	ctx, cancel := context.WithTimeoutCause(ctx, statfsPatience, late)
	defer cancel()
	st, ok, err := bounded.Call(ctx, func() (st unix.Statfs_t, err error) { return st, unix.Statfs(e.cfg.ScratchDir, &st) })
	if !ok {
		return 0, context.Cause(ctx)
	}
	if err != nil {
		return 0, messages.Errorf(messages.CodeScratchFull, "scratch folder %s: %w", e.cfg.ScratchDir, err)
	}
	return int64(st.Bavail) * st.Bsize, nil
}

// removeScratch removes a job's scratch files. A scratch folder that hangs must not hold up what comes after.
func (e *Executor) removeScratch(ctx context.Context, job string) error {
	_, err := onHost(ctx, messages.CodeScratchFull, "remove scratch files", func() (struct{}, error) {
		return struct{}{}, os.RemoveAll(filepath.Join(e.cfg.ScratchDir, job))
	})
	return err
}

// checkScratch refuses a backup for which there is no room to begin with.
func (e *Executor) checkScratch(ctx context.Context) error {
	free, err := e.scratchFree(ctx)
	if err != nil {
		return err
	}
	_, err = (&room{reserve: e.cfg.ScratchReserve}).see(time.Now(), free)
	return err
}

// guardian protects a guest while libvirt's backup job runs.
type guardian struct {
	stop context.CancelFunc
	done chan struct{}
}

// protect begins to watch. When the room gets low it calls low with the reason; then, or when ctx ends for
// another reason, it calls end at once, and until end has succeeded: the guest does not wait for the job's
// other parts to be undone.
func (e *Executor) protect(ctx context.Context, low func(error), end func(context.Context) error) *guardian {
	quit, stop := context.WithCancel(context.WithoutCancel(ctx))
	g := &guardian{stop: stop, done: make(chan struct{})}
	go func() {
		defer close(g.done)
		if err := bounded.Try(func() error { return e.watchScratch(ctx, quit) }); err != nil {
			low(err)
		} else if ctx.Err() == nil {
			return
		}
		began := time.Now()
		try := func() error { return bounded.Try(func() error { return end(quit) }) }
		for err := try(); err != nil && quit.Err() == nil; err = try() {
			e.cfg.Log.Error().Err(err).Msg("end a backup that was given up")
			select {
			case <-time.After(reachPause):
			case <-quit.Done():
			}
		}
		e.cfg.Log.Debug().Dur("took", time.Since(began)).Msg("libvirt's job of a backup that was given up is ended")
	}()
	return g
}

// watchScratch looks at the scratch folder until ctx or quit ends; its error is why the backup has to end.
func (e *Executor) watchScratch(ctx, quit context.Context) error {
	r := &room{reserve: e.cfg.ScratchReserve}
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-timer.C:
		case <-ctx.Done():
			return nil
		case <-quit.Done():
			return nil
		}
		free, err := e.scratchFree(quit)
		if quit.Err() != nil {
			return nil
		}
		var pause time.Duration
		if err == nil {
			pause, err = r.see(time.Now(), free)
		}
		if err != nil {
			return err
		}
		timer.Reset(pause)
	}
}

// leave ends the watch. It returns when nobody ends the backup job any more.
func (g *guardian) leave() {
	g.stop()
	<-g.done
}
