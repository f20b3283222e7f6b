package copier

import (
	"context"
	"sync"
	"time"
)

// slack is how much unused time a Limiter lets its users catch up on, so that a late timer or a
// short stall does not lower the rate.
const slack = 250 * time.Millisecond

// Limiter bounds a rate in MiB/s. Its users, the disks and phases of a job, share the rate and
// take turns. A nil Limiter does not limit. Its methods may be called from any goroutine.
type Limiter struct {
	turn chan struct{} // holds a token while somebody waits for budget

	mu      sync.Mutex
	rate    float64       // bytes a second; 0: no limit
	budget  float64       // bytes that may be used now
	want    float64       // bytes that the one whose turn it is waits for
	at      time.Time     // when budget was right; zero until the first use
	changed chan struct{} // closed by SetLimit
}

// NewLimiter returns a limiter of mib MiB/s; 0 or less means no limit.
func NewLimiter(mib int) *Limiter {
	return &Limiter{turn: make(chan struct{}, 1), changed: make(chan struct{}), rate: bytesPerSecond(mib)}
}

func bytesPerSecond(mib int) float64 { return float64(max(mib, 0)) * (1 << 20) }

// SetLimit changes the limit to mib MiB/s at once, for those who wait too; 0 or less means no
// limit.
func (l *Limiter) SetLimit(mib int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.at.IsZero() {
		l.refill()
	}
	l.rate = bytesPerSecond(mib)
	close(l.changed)
	l.changed = make(chan struct{})
}

// Limit returns the limit in force, in MiB/s; 0 is none.
func (l *Limiter) Limit() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return int(l.rate / (1 << 20))
}

// Wait returns when n bytes may be used, or with the cause of ctx's end. The time for n bytes
// passes before they are used, so that a use never begins with a burst.
func (l *Limiter) Wait(ctx context.Context, n int64) error {
	if l == nil {
		return nil
	}
	select {
	case l.turn <- struct{}{}:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	defer func() { <-l.turn }()
	l.begin(n)
	for {
		wait, changed := l.take()
		if wait <= 0 {
			return nil
		}
		t := time.NewTimer(wait)
		select {
		case <-t.C:
		case <-changed:
		case <-ctx.Done():
		}
		t.Stop()
		if ctx.Err() != nil {
			l.begin(0)
			return context.Cause(ctx)
		}
	}
}

// begin says what is waited for. Time from before counts up to the slack.
func (l *Limiter) begin(n int64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.want = 0
	l.refill()
	l.want = float64(n)
}

// take uses what is waited for, or says how long that will take.
func (l *Limiter) take() (time.Duration, <-chan struct{}) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.refill()
	if missing := l.want - l.budget; l.rate > 0 && missing > 0 {
		return time.Duration(missing/l.rate*float64(time.Second)) + 1, l.changed
	}
	if l.rate > 0 {
		l.budget -= l.want
	}
	l.want = 0
	return 0, nil
}

// refill adds what the time since the last refill is worth.
func (l *Limiter) refill() {
	now := time.Now()
	if !l.at.IsZero() {
		l.budget += now.Sub(l.at).Seconds() * l.rate
	}
	l.budget = min(l.budget, l.want+slack.Seconds()*l.rate)
	l.at = now
}
