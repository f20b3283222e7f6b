package worker

import (
	"context"
	"maps"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/oklog/ulid/v2"
	"pgregory.net/rapid"

	"github.com/nasfleet/nasfleet/internal/exec"
	"github.com/nasfleet/nasfleet/messages"
)

// TestJobTimeout: a job that would go on for ever. Its command's time wins over the host's.
func TestJobTimeout(t *testing.T) {
	for name, c := range map[string]struct {
		host    time.Duration
		command int
	}{
		"the host's":    {50 * time.Millisecond, 0},
		"the command's": {time.Hour, 1},
	} {
		t.Run(name, func(t *testing.T) {
			entered := make(chan string, 1)
			r := start(t, Config{JobTimeout: c.host}, hang(entered))
			id, data := takeWith(t, func(h *messages.Header) { h.Timeout = c.command })
			if _, how := r.deliver(id, data); how != "term" {
				t.Errorf("ended by %s", how)
			}
			<-entered
			if ev := r.out.last(id); ev.Kind != messages.KindFailed || ev.Error.Code != messages.CodeJobTimeout || ev.Error.Retryable {
				t.Errorf("%+v", ev.Error)
			}
		})
	}
}

// TestJobTimeoutCountsAllAttempts: the time began with the first one, which the worker did not outlive.
func TestJobTimeoutCountsAllAttempts(t *testing.T) {
	state := t.TempDir()
	id, data := takeWith(t, func(h *messages.Header) { h.Timeout = 3600 })
	j, err := openJournal(state, zone, host)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := j.begin(id); err != nil {
		t.Fatal(err)
	}
	if _, err := j.update(id, func(r *record) { r.Since = time.Now().Add(-2 * time.Hour) }); err != nil {
		t.Fatal(err)
	}
	j.close()
	r := start(t, Config{StateDir: state}, func(context.Context, messages.Command, exec.Reporter) (exec.Outcome, error) {
		t.Error("an attempt was made after the job's time")
		return exec.Outcome{}, nil
	})
	if _, how := r.deliver(id, data); how != "term" || r.out.last(id).Error.Code != messages.CodeJobTimeout {
		t.Errorf("ended by %s with %+v", how, r.out.last(id).Error)
	}
	if got := r.exec.cleaned(); !slices.Equal(got, []string{id}) {
		t.Errorf("cleaned up after %v", got)
	}
}

// TestNoWaitBeyondTheDeadline: an attempt that could only begin when the time is over is not waited for.
func TestNoWaitBeyondTheDeadline(t *testing.T) {
	r := start(t, Config{RetryDelay: time.Hour}, func(context.Context, messages.Command, exec.Reporter) (exec.Outcome, error) {
		return exec.Outcome{}, messages.Errorf(messages.CodeMountFailed, "no route")
	})
	id, data := takeWith(t, func(h *messages.Header) { h.Timeout = 60 })
	if _, how := r.deliver(id, data); how != "term" {
		t.Errorf("ended by %s", how)
	}
	ev := r.out.last(id)
	if want := "job_timeout: the job was not done in 1m0s; the last attempt: mount_failed: no route"; ev.Error == nil || ev.Error.Message != want {
		t.Errorf("%+v", ev.Error)
	}
}

// TestPoisonThatFailsLeavesRoomForOthers: a job that panics is an error to the worker; see exec.
func TestPoisonThatFailsLeavesRoomForOthers(t *testing.T) {
	r := start(t, Config{Jobs: 1, RetryDelay: time.Hour}, func(_ context.Context, c messages.Command, _ exec.Reporter) (exec.Outcome, error) {
		if c.Target() == "poison" {
			return exec.Outcome{}, messages.Errorf(messages.CodeInternal, "panic: a defect")
		}
		return exec.Outcome{}, nil
	})
	id, data := take(t, "poison", 3)
	for attempt := range 3 {
		if _, how := r.deliver(id, data); (how == "term") != (attempt == 2) {
			t.Errorf("attempt %d ended by %s", attempt+1, how)
		}
		other, data := take(t, "vm1", 0)
		if _, how := r.deliver(other, data); how != "ack" {
			t.Errorf("another job ended by %s", how)
		}
	}
	if ev := r.out.last(id); ev.Kind != messages.KindFailed || ev.Attempt != 3 {
		t.Errorf("%+v", ev)
	}
}

// TestPoisonThatKillsTheWorker lets one worker after the other take what is there, in any order, until
// it takes a command that kills it. Such a command fails when its attempts are spent, and of those
// beside it, which lose an attempt each time that they are at work when it kills, none fails.
func TestPoisonThatKillsTheWorker(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		attempts := rapid.IntRange(2, 6).Draw(t, "attempts")
		dir, err := os.MkdirTemp("", "journal")
		if err != nil {
			t.Fatal(err)
		}
		defer func() { _ = os.RemoveAll(dir) }()
		j, err := openJournal(dir, zone, host)
		if err != nil {
			t.Fatal(err)
		}
		defer j.close()
		p := &poisoned{t: t, attempts: attempts, journal: j, left: map[string]*job{}}
		p.poison = p.add("poison")
		for range rapid.IntRange(1, 4).Draw(t, "jobs at the first kill") {
			p.add("")
		}
		for p.left[p.poison] != nil {
			if p.kills > attempts || p.lives > 100*attempts {
				t.Fatalf("the poison is still there after %d kills and %d other lives", p.kills, p.lives)
			}
			p.live()
			p.add("")
		}
		if p.kills != attempts {
			t.Fatalf("%d kills, want as many as the poison has attempts, %d", p.kills, attempts)
		}
	})
}

// poisoned is a host with a command that kills its worker.
type poisoned struct {
	t        *rapid.T
	attempts int
	journal  *journal
	poison   string
	left     map[string]*job
	// kills counts the workers that were killed, lives those that were not.
	kills, lives int
}

// add publishes a job on a VM of its own.
func (p *poisoned) add(vm string) string {
	w := &Worker{cfg: Config{Zone: zone, Host: host}.withDefaults()}
	j := w.newJob(context.Background(), context.Background(), ulid.Make().String(), nil)
	j.stop(nil)
	if vm == "" {
		vm = j.id
	}
	j.cmd = &messages.TakeBackup{Header: messages.Header{JobID: j.id, Attempts: p.attempts}, VM: vm}
	p.left[j.id] = j
	return j.id
}

// live is one worker's life. All that it takes is at work at the same time; if the poison is among it
// nothing comes to an end, and if not, everything does.
func (p *poisoned) live() {
	r := newRunning()
	var taken []string
	for _, id := range rapid.Permutation(slices.Sorted(maps.Keys(p.left))).Draw(p.t, "order") {
		rec, err := p.journal.read(id)
		if err != nil {
			p.t.Fatal(err)
		}
		if rec.Attempts >= p.attempts {
			if id != p.poison {
				p.t.Fatalf("a job beside the poison has no attempt left: %+v", rec)
			}
			delete(p.left, id)
			continue
		}
		j := p.left[id]
		if ok, _ := r.enter(j, rec.dangerous(p.attempts)); !ok {
			continue
		}
		if _, err := p.journal.begin(id); err != nil {
			p.t.Fatal(err)
		}
		if id == p.poison {
			p.kills++
			return
		}
		taken = append(taken, id)
	}
	p.lives++
	for _, id := range taken {
		p.journal.end(id)
		delete(p.left, id)
	}
}
