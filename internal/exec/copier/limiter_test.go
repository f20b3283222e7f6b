package copier

import (
	"context"
	"errors"
	"math"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

const mib = 1 << 20

// use takes n bytes at a time until total is used up, and does some work for each.
func use(t *testing.T, l *Limiter, n, total int64, work time.Duration) {
	for ; total > 0; total -= n {
		if err := l.Wait(t.Context(), n); err != nil {
			t.Error(err)
			return
		}
		time.Sleep(work)
	}
}

func TestLimiterRate(t *testing.T) {
	for name, test := range map[string]struct {
		users int
		n     int64
		work  time.Duration
	}{
		"one user":    {1, mib, 0},
		"three users": {3, mib, 0},
		"small uses":  {2, 64 << 10, time.Millisecond},
		"late users":  {1, mib, 7 * time.Millisecond},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := NewLimiter(50)
				time.Sleep(time.Minute) // what was not used before the first use does not count
				start := time.Now()
				var wg sync.WaitGroup
				for range test.users {
					wg.Go(func() { use(t, l, test.n, 1200*mib/int64(test.users), test.work) })
				}
				wg.Wait()
				if rate := 1200 / time.Since(start).Seconds(); math.Abs(rate-50) > 0.05 {
					t.Errorf("%.2f MiB/s, want 50", rate)
				}
			})
		})
	}
}

func TestLimiterNoBurst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := NewLimiter(1)
		start := time.Now()
		use(t, l, mib, mib, 0)
		if d := time.Since(start); d < time.Second {
			t.Errorf("the first MiB after %v", d)
		}
		time.Sleep(time.Hour)
		start = time.Now()
		use(t, l, mib, 10*mib, 0)
		if d := time.Since(start); d < 10*time.Second-slack {
			t.Errorf("10 MiB in %v after a pause", d)
		}
	})
}

func TestSetLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := NewLimiter(1)
		start := time.Now()
		var wg sync.WaitGroup
		wg.Go(func() { use(t, l, 100*mib, 100*mib, 0) })
		wg.Go(func() { use(t, l, 100*mib, 100*mib, 0) })
		time.Sleep(20 * time.Second) // 180 MiB are left, at 10 MiB/s
		l.SetLimit(10)
		wg.Wait()
		if d := time.Since(start) - 38*time.Second; d.Abs() > time.Millisecond {
			t.Errorf("off by %v", d)
		}
		l.SetLimit(1)
		start = time.Now()
		wg.Go(func() { use(t, l, 100*mib, 1000*mib, 0) })
		time.Sleep(time.Second)
		l.SetLimit(0)
		wg.Wait()
		if d := time.Since(start); d > time.Second {
			t.Errorf("without a limit after %v", d)
		}
	})
}

func TestLimiterCancel(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := NewLimiter(1)
		cause := errors.New("enough")
		ctx, cancel := context.WithCancelCause(t.Context())
		var wg sync.WaitGroup
		for range 2 { // one has its turn, one waits for it
			wg.Go(func() {
				if err := l.Wait(ctx, 1000*mib); !errors.Is(err, cause) {
					t.Errorf("got %v", err)
				}
			})
		}
		time.Sleep(10 * time.Second)
		cancel(cause)
		wg.Wait()
		start := time.Now()
		use(t, l, mib, 10*mib, 0)
		if d := time.Since(start); d < 10*time.Second-slack {
			t.Errorf("the time of those who left was used by the next: %v", d)
		}
	})
}

func TestNoLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		start := time.Now()
		use(t, nil, mib, 10*mib, 0)
		use(t, NewLimiter(0), mib, 10*mib, 0)
		use(t, NewLimiter(-1), mib, 10*mib, 0)
		if d := time.Since(start); d > 0 {
			t.Errorf("waited %v", d)
		}
	})
}
