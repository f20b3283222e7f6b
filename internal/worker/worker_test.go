package worker

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"sync/atomic"
	"testing"
	"time"

	"github.com/nasfleet/nasfleet/internal/exec"
	"github.com/nasfleet/nasfleet/messages"
)

func succeed(_ context.Context, c messages.Command, r exec.Reporter) (exec.Outcome, error) {
	r.Phase(messages.PhaseCopying)
	r.Disk("vda", 1, 2)
	id := c.Head().JobID
	r.Verified(id, messages.Verification{Disks: 1})
	return exec.Outcome{BackupID: id, Backup: &messages.CatalogEntry{ID: id}}, nil
}

func TestSuccessIsStoredBeforeTheAck(t *testing.T) {
	r := start(t, Config{}, succeed)
	id, data := take(t, "vm1", 0)
	if _, how := r.deliver(id, data); how != "ack" {
		t.Errorf("ended by %s", how)
	}
	want := []messages.Kind{messages.KindAccepted, messages.KindVerified, messages.KindSucceeded}
	if got := r.out.kinds(id); !slices.Equal(got, want) {
		t.Errorf("events %v, want %v", got, want)
	}
	if ev := r.out.last(id); ev.BackupID != id || ev.Attempt != 1 || ev.VM != "vm1" || ev.Zone != zone || ev.Host != host {
		t.Errorf("event %+v", ev)
	}
	if _, ok := r.out.catalog[id]; !ok {
		t.Error("the catalog does not know the backup")
	}
}

func TestAJobThatHasEndedIsOnlyAcknowledged(t *testing.T) {
	var runs atomic.Int32
	r := start(t, Config{}, func(ctx context.Context, c messages.Command, rep exec.Reporter) (exec.Outcome, error) {
		runs.Add(1)
		return succeed(ctx, c, rep)
	})
	id, data := take(t, "vm1", 0)
	r.deliver(id, data)
	if _, how := r.deliver(id, data); how != "ack" || runs.Load() != 1 {
		t.Errorf("ended by %s after %d runs", how, runs.Load())
	}
}

func TestRetriesUpToTheAttempts(t *testing.T) {
	r := start(t, Config{RetryDelay: time.Minute}, func(context.Context, messages.Command, exec.Reporter) (exec.Outcome, error) {
		return exec.Outcome{}, messages.Errorf(messages.CodeMountFailed, "no route")
	})
	id, data := take(t, "vm1", 2)
	d, how := r.deliver(id, data)
	if how != "retry" || d.delay < 45*time.Second || d.delay > 75*time.Second {
		t.Errorf("first attempt: %s after %s", how, d.delay)
	}
	if ev := r.out.last(id); ev.Kind != messages.KindRetrying || ev.Error.NextAttempt == nil || !ev.Error.Retryable || ev.Error.Hint == "" {
		t.Errorf("event %+v", ev)
	}
	if _, how := r.deliver(id, data); how != "term" {
		t.Errorf("second attempt: %s", how)
	}
	if ev := r.out.last(id); ev.Kind != messages.KindFailed || ev.Attempt != 2 || ev.Error.Code != messages.CodeMountFailed {
		t.Errorf("event %+v", ev)
	}
}

func TestPermanentErrorsAreNotRetried(t *testing.T) {
	r := start(t, Config{}, func(context.Context, messages.Command, exec.Reporter) (exec.Outcome, error) {
		return exec.Outcome{}, messages.Errorf(messages.CodeVMNotFound, "no such vm")
	})
	id, data := take(t, "vm1", 5)
	if _, how := r.deliver(id, data); how != "term" || r.out.last(id).Kind != messages.KindFailed {
		t.Errorf("ended by %s with %s", how, r.out.last(id).Kind)
	}
}

func TestUnreadableCommandsAreAnsweredOnce(t *testing.T) {
	r := start(t, Config{}, func(context.Context, messages.Command, exec.Reporter) (exec.Outcome, error) {
		t.Error("an unreadable command was run")
		return exec.Outcome{}, nil
	})
	id, data := take(t, "vm1", 0)
	for name, c := range map[string]struct {
		job, data string
		code      messages.Code
	}{
		"not JSON":          {"JOB1", "hello", messages.CodeInvalidMessage},
		"too new":           {"JOB2", `{"version":99,"type":"TakeBackup"}`, messages.CodeUnsupportedVersion},
		"lacks a field":     {"JOB3", `{"version":1,"type":"TakeBackup"}`, messages.CodeInvalidMessage},
		"another job's":     {"JOB4", string(data), messages.CodeInvalidMessage},
		"an unknown detail": {id, string(data[:len(data)-1]) + `,"details":{"encrpytion":"true"}}`, messages.CodeUnknownDetail},
	} {
		if _, how := r.deliver(c.job, []byte(c.data)); how != "term" {
			t.Errorf("%s: ended by %s", name, how)
		}
		if ev := r.out.last(c.job); ev.Kind != messages.KindFailed || ev.Error == nil || ev.Error.Code != c.code {
			t.Errorf("%s: event %+v", name, ev)
		}
	}
}

func TestNoTwoJobsOnOneVM(t *testing.T) {
	entered, release := make(chan string), make(chan struct{})
	r := start(t, Config{Jobs: 3}, func(_ context.Context, c messages.Command, _ exec.Reporter) (exec.Outcome, error) {
		entered <- c.Target()
		<-release
		return exec.Outcome{}, nil
	})
	first, data := take(t, "vm1", 0)
	d1 := newDelivery(first, data)
	r.queue.c <- d1
	<-entered
	second, data := take(t, "vm1", 0)
	if _, how := r.deliver(second, data); how != "retry" {
		t.Errorf("the second job on the vm: %s", how)
	}
	if kinds := r.out.kinds(second); kinds != nil {
		t.Errorf("a job that waits has events %v", kinds)
	}
	third, data := take(t, "vm2", 0)
	d3 := newDelivery(third, data)
	r.queue.c <- d3
	if vm := <-entered; vm != "vm2" {
		t.Errorf("%s entered", vm)
	}
	close(release)
	if a, b := r.end(d1), r.end(d3); a != "ack" || b != "ack" {
		t.Errorf("ended by %s and %s", a, b)
	}
}

func TestARunningJobTakesOverItsRedelivery(t *testing.T) {
	entered, release := make(chan struct{}), make(chan struct{})
	r := start(t, Config{AckWait: 30 * time.Millisecond}, func(context.Context, messages.Command, exec.Reporter) (exec.Outcome, error) {
		close(entered)
		<-release
		return exec.Outcome{}, nil
	})
	id, data := take(t, "vm1", 0)
	first, again := newDelivery(id, data), newDelivery(id, data)
	r.queue.c <- first
	<-entered
	r.queue.c <- again
	<-again.extended // by the running job, which holds it now
	close(release)
	if how := r.end(again); how != "ack" {
		t.Errorf("ended by %s", how)
	}
	select {
	case how := <-first.ends:
		t.Errorf("the first delivery was ended as well, by %s", how)
	default:
	}
}

func TestShutdownGivesBackWithoutAnAttempt(t *testing.T) {
	entered := make(chan struct{}, 1)
	state := t.TempDir()
	hang := func(ctx context.Context, _ messages.Command, _ exec.Reporter) (exec.Outcome, error) {
		entered <- struct{}{}
		<-ctx.Done()
		return exec.Outcome{}, context.Cause(ctx)
	}
	r := start(t, Config{Grace: time.Millisecond, StateDir: state}, hang)
	id, data := take(t, "vm1", 1)
	d := newDelivery(id, data)
	r.queue.c <- d
	<-entered
	r.stop()
	if how := r.end(d); how != "return" {
		t.Errorf("ended by %s", how)
	}
	if err := <-r.ended; err != nil {
		t.Fatal(err)
	}
	if !r.out.gone {
		t.Error("the host did not say that it is gone")
	}
	// The next worker has the only attempt to spend.
	r = start(t, Config{StateDir: state}, succeed)
	if _, how := r.deliver(id, data); how != "ack" || r.out.last(id).Attempt != 1 {
		t.Errorf("ended by %s in attempt %d", how, r.out.last(id).Attempt)
	}
}

func TestGraceLetsJobsEnd(t *testing.T) {
	entered, release := make(chan struct{}), make(chan struct{})
	r := start(t, Config{Grace: time.Minute}, func(context.Context, messages.Command, exec.Reporter) (exec.Outcome, error) {
		close(entered)
		<-release
		return exec.Outcome{}, nil
	})
	id, data := take(t, "vm1", 0)
	d := newDelivery(id, data)
	r.queue.c <- d
	<-entered
	r.stop()
	close(release)
	if how := r.end(d); how != "ack" {
		t.Errorf("ended by %s", how)
	}
}

func TestAKilledWorkerSpendsItsAttempts(t *testing.T) {
	state := t.TempDir()
	id, data := take(t, "vm1", 2)
	j, err := openJournal(state, zone, host)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 { // two attempts that never ended
		if _, err := j.begin(id); err != nil {
			t.Fatal(err)
		}
	}
	j.close()
	r := start(t, Config{StateDir: state}, func(context.Context, messages.Command, exec.Reporter) (exec.Outcome, error) {
		t.Error("a third attempt was run")
		return exec.Outcome{}, nil
	})
	if _, how := r.deliver(id, data); how != "term" || r.out.last(id).Error.Code != messages.CodeInternal {
		t.Errorf("ended by %s with %+v", how, r.out.last(id).Error)
	}
	if got := r.exec.cleaned(); !slices.Equal(got, []string{id}) {
		t.Errorf("cleaned up after %v", got)
	}
	if left, _ := filepath.Glob(filepath.Join(state, "*", "*.json")); left != nil {
		t.Errorf("the journal keeps %v", left)
	}
}

func TestAnEventThatIsNotStoredKeepsTheCommand(t *testing.T) {
	entered := make(chan struct{}, 1)
	r := start(t, Config{Grace: time.Second}, func(context.Context, messages.Command, exec.Reporter) (exec.Outcome, error) {
		entered <- struct{}{}
		return exec.Outcome{}, nil
	})
	id, data := take(t, "vm1", 0)
	d := newDelivery(id, data)
	r.out.fail = errors.New("no server")
	r.queue.c <- d
	<-entered
	r.stop()
	if err := <-r.ended; err != nil {
		t.Fatal(err)
	}
	select {
	case how := <-d.ends:
		t.Errorf("the command was let go by %s although nothing was stored", how)
	default:
	}
}

func TestTwoWorkersOfOneName(t *testing.T) {
	state := t.TempDir()
	start(t, Config{StateDir: state}, succeed)
	if _, err := New(Config{Zone: zone, Host: host, StateDir: state}, nil, nil, nil); err == nil {
		t.Error("a second worker of the same name was let in")
	}
	w, err := New(Config{Zone: zone, Host: "h2", StateDir: state}, nil, nil, nil)
	if err != nil {
		t.Errorf("a worker of another name: %v", err)
	} else {
		w.journal.close()
	}
}

func TestJournalSurvivesATornRecord(t *testing.T) {
	state := t.TempDir()
	j, err := openJournal(state, zone, host)
	if err != nil {
		t.Fatal(err)
	}
	defer j.close()
	id, _ := take(t, "vm1", 0)
	if err := os.WriteFile(j.path(id), []byte(`{"att`), 0o600); err != nil {
		t.Fatal(err)
	}
	if r, err := j.begin(id); r.Attempts != 2 || err != nil {
		t.Errorf("attempt %d, %v", r.Attempts, err)
	}
}

func TestDecide(t *testing.T) {
	coded := func(c messages.Code) error { return messages.Errorf(c, "cause") }
	for name, c := range map[string]struct {
		err      error
		attempt  int
		kind     messages.Kind
		ends     ending
		attempts int
	}{
		"success":                       {nil, 1, messages.KindSucceeded, acked, 3},
		"shutdown":                      {coded(messages.CodeShuttingDown), 3, "", returned, 3},
		"cancelled":                     {coded(messages.CodeCancelled), 1, messages.KindCancelled, acked, 3},
		"transient":                     {coded(messages.CodeMountFailed), 2, messages.KindRetrying, delayed, 3},
		"transient, last attempt":       {coded(messages.CodeMountFailed), 3, messages.KindFailed, terminated, 3},
		"permanent":                     {coded(messages.CodeWrongPassphrase), 1, messages.KindFailed, terminated, 3},
		"an error without a code":       {errors.New("x"), 1, messages.KindRetrying, delayed, 3},
		"an error without a code, last": {errors.New("x"), 3, messages.KindFailed, terminated, 3},
	} {
		if d := decide(c.err, c.attempt, bounds{attempts: c.attempts, firstDelay: time.Second}); d.kind != c.kind || d.ends != c.ends {
			t.Errorf("%s: %+v", name, d)
		}
	}
}

func TestRetryDelayGrowsAndIsBounded(t *testing.T) {
	for attempt, want := range map[int]time.Duration{1: 10 * time.Second, 2: 20 * time.Second, 4: 80 * time.Second, 90: maxRetryDelay} {
		for range 100 {
			if d := retryDelay(attempt, 10*time.Second); d < want*3/4 || d > want*5/4 {
				t.Fatalf("attempt %d: %s, want %s give or take a quarter", attempt, d, want)
			}
		}
	}
}
