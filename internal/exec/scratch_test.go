package exec

import (
	"context"
	"errors"
	osexec "os/exec"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"

	"github.com/nasfleet/nasfleet/messages"
	"github.com/nasfleet/nasfleet/tests/lab"
)

const mib = 1 << 20

func TestRoom(t *testing.T) {
	began := time.Unix(1000, 0)
	type look struct {
		after   time.Duration
		freeMiB int64
	}
	steady := func(rate, from, seconds int64) (all []look) {
		for i := range seconds * 10 {
			all = append(all, look{100 * time.Millisecond, from - i*rate/10})
		}
		return all
	}
	for name, c := range map[string]struct {
		looks []look
		full  bool
	}{
		"nothing happens":                {steady(0, 5000, 60), false},
		"below the reserve":              {[]look{{0, 511}}, true},
		"one burst":                      {[]look{{0, 5000}, {time.Second, 5000}, {20 * time.Millisecond, 4500}, {time.Second, 4500}, {time.Second, 4500}}, false},
		"slow, far from the reserve":     {steady(10, 5000, 60), false},
		"slow, into the reserve":         {steady(10, 700, 20), true},
		"fast, would last for 5 seconds": {steady(400, 5000, 8), true},
		"fast, and room enough":          {steady(400, 50000, 8), false},
		"space comes back":               {[]look{{0, 1000}, {time.Second, 900}, {time.Second, 9000}}, false},
	} {
		t.Run(name, func(t *testing.T) {
			r, now := &room{reserve: 512 * mib}, began
			var err error
			for _, l := range c.looks {
				now = now.Add(l.after)
				var pause time.Duration
				if pause, err = r.see(now, l.freeMiB*mib); err != nil {
					break
				}
				if pause < lookOften || pause > lookSeldom {
					t.Errorf("a pause of %s", pause)
				}
			}
			if full := messages.CodeOf(err) == messages.CodeScratchFull; full != c.full || !full && err != nil {
				t.Errorf("full %t: %v", full, err)
			}
		})
	}
}

// Whatever a guest writes, at up to 2 GiB a second: as long as ending the job takes less than 100 ms, the
// reserve of 512 MiB is not used up.
func TestRoomEndsInTime(t *testing.T) {
	const most, toEnd = 2048 * mib, 100 * time.Millisecond
	rapid.Check(t, func(t *rapid.T) {
		r := &room{reserve: 512 * mib}
		now, free := time.Unix(0, 0), rapid.Int64Range(512, 20000).Draw(t, "free")*mib
		for range 5000 {
			pause, err := r.see(now, free)
			if err != nil {
				if free < int64(most*toEnd.Seconds()) {
					t.Fatalf("%d MiB are left when the job is ended", free/mib)
				}
				return
			}
			rate := rapid.Int64Range(0, most).Draw(t, "rate")
			now = now.Add(pause)
			free -= int64(float64(rate) * pause.Seconds())
		}
	})
}

// The guest comes first: its job is ended as soon as the backup is given up, for whatever reason, and again
// until that succeeds.
func TestGuardian(t *testing.T) {
	e := newExecutor(t)
	bad := errors.New("libvirtd is away")
	ends := make(chan struct{}, 10)
	failOnce := func() func(context.Context) error {
		err := bad
		return func(context.Context) error {
			ends <- struct{}{}
			defer func() { err = nil }()
			return err
		}
	}
	t.Run("low", func(t *testing.T) {
		e := &Executor{cfg: e.cfg}
		e.cfg.ScratchReserve = 1 << 60
		reasons := make(chan error, 1)
		g := e.protect(t.Context(), func(err error) { reasons <- err }, failOnce())
		wantCode(t, <-reasons, messages.CodeScratchFull)
		<-ends
		<-ends
		g.leave()
	})
	t.Run("given up", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		g := e.protect(ctx, func(err error) { t.Error(err) }, failOnce())
		cancel()
		<-ends
		<-ends
		g.leave()
	})
	t.Run("a defect", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		first := true
		g := e.protect(ctx, func(err error) { t.Error(err) }, func(context.Context) error {
			ends <- struct{}{}
			if first {
				first = false
				panic("a defect")
			}
			return nil
		})
		cancel()
		<-ends
		<-ends
		g.leave()
	})
	t.Run("done", func(t *testing.T) {
		g := e.protect(t.Context(), func(err error) { t.Error(err) }, failOnce())
		time.Sleep(3 * lookSeldom)
		g.leave()
		if len(ends) > 0 {
			t.Error("a job was ended that nobody gave up")
		}
	})
}

// The kernel holds whoever removes a file in the scratch folder: the cleaning up goes on all the same.
func TestAScratchFolderThatHangs(t *testing.T) {
	e := newExecutor(t)
	e.cfg.ScratchDir = t.TempDir()
	check(t, osexec.Command("mount", "-o", "loop", lab.LoopImage(t, 128), e.cfg.ScratchDir).Run())
	t.Cleanup(func() { check(t, unix.Unmount(e.cfg.ScratchDir, 0)) })
	write(t, filepath.Join(e.cfg.ScratchDir, testJob, "vda.scratch"), make([]byte, mib))
	thaw := frozen(t, e.cfg.ScratchDir)
	defer thaw()
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	ended := make(chan error, 1)
	go func() { ended <- e.removeScratch(ctx, testJob) }()
	select {
	case err := <-ended:
		if err == nil {
			t.Error("removed in a file system that is frozen")
		}
	case <-time.After(time.Minute):
		t.Error("it hangs")
	}
	thaw()
	for exists(filepath.Join(e.cfg.ScratchDir, testJob)) {
		time.Sleep(10 * time.Millisecond) // the call that was given up ends
	}
}

func TestScratchReserve(t *testing.T) {
	e := newExecutor(t)
	check(t, e.checkScratch(t.Context()))
	e.cfg.ScratchReserve = 1 << 60
	wantCode(t, e.checkScratch(t.Context()), messages.CodeScratchFull)
	e.cfg.ScratchReserve = 0
	e.cfg.ScratchDir += "/none"
	wantCode(t, e.checkScratch(t.Context()), messages.CodeScratchFull)
}
