package worker

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/nasfleet/nasfleet/internal/exec"
	"github.com/nasfleet/nasfleet/messages"
)

// A restore cannot be done twice: its files exist. Neither can a delete.
func TestWhatIsDoneIsReportedAndNotDoneAgain(t *testing.T) {
	entered, state := make(chan struct{}, 1), t.TempDir()
	r := start(t, Config{Grace: time.Second, StateDir: state}, func(_ context.Context, c messages.Command, rep exec.Reporter) (exec.Outcome, error) {
		rep.Verified(c.Head().JobID, messages.Verification{Disks: 3})
		entered <- struct{}{}
		return exec.Outcome{BackupID: "B", Deleted: []exec.Deleted{{ID: "B", Zone: zone, Host: host}}, Restored: map[string]string{"vda": "/a"}, Notes: []string{"n"}}, nil
	})
	r.out.fail = errors.New("no server")
	id, data := take(t, "vm1", 1)
	d := newDelivery(id, data)
	r.queue.c <- d
	<-entered
	r.stop()
	if err := <-r.ended; err != nil {
		t.Fatal(err)
	}

	r = start(t, Config{StateDir: state}, func(context.Context, messages.Command, exec.Reporter) (exec.Outcome, error) {
		t.Error("the job was done again")
		return exec.Outcome{}, nil
	})
	r.out.catalog["B"] = messages.CatalogEntry{ID: "B"}
	if _, how := r.deliver(id, data); how != "ack" {
		t.Errorf("ended by %s", how)
	}
	if got, want := r.out.kinds(id), []messages.Kind{messages.KindVerified, messages.KindSucceeded}; !slices.Equal(got, want) {
		t.Errorf("events %v, want %v", got, want)
	}
	if ev := r.out.last(id); ev.Attempt != 1 || ev.BackupID != "B" || ev.Restored["vda"] != "/a" || !slices.Equal(ev.Notes, []string{"n"}) {
		t.Errorf("event %+v", ev)
	}
	if len(r.out.catalog) != 0 {
		t.Errorf("the catalog keeps %v", r.out.catalog)
	}
}

func TestAStopWithoutNATSSpendsNoAttempt(t *testing.T) {
	out := newOutbox()
	out.away = context.Canceled
	w, err := New(Config{Zone: zone, Host: host, StateDir: t.TempDir()}, nil, out, fakeExecutor(
		func(context.Context, messages.Command, exec.Reporter) (exec.Outcome, error) {
			t.Error("the job was run although nobody could be told")
			return exec.Outcome{}, nil
		}))
	if err != nil {
		t.Fatal(err)
	}
	defer w.journal.close()
	words, stop := context.WithCancel(context.Background())
	stop()
	id, data := take(t, "vm1", 1)
	d := newDelivery(id, data)
	w.handle(context.Background(), words, d)
	if r, err := w.journal.read(id); r.Attempts != 0 || err != nil {
		t.Errorf("%d attempts are spent, %v", r.Attempts, err)
	}
	if len(d.ends) != 0 {
		t.Errorf("the command was ended by %s", <-d.ends)
	}
}

func TestAQueueThatIsGoneEndsTheWorker(t *testing.T) {
	q := &fakeQueue{gone: make(chan struct{})}
	out := newOutbox()
	w, err := New(Config{Zone: zone, Host: host, StateDir: t.TempDir()}, q, out, nil)
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go func() { ended <- w.Run(ctx) }()
	close(q.gone)
	select {
	case err := <-ended:
		if err == nil || !out.gone {
			t.Errorf("it ended with %v, and said that it is gone: %t", err, out.gone)
		}
	case <-time.After(10 * time.Second):
		t.Fatal("the worker hangs on without a queue")
	}
}

// The queue gives up a command after 1000 deliveries.
func TestABusyVMIsWaitedForForDays(t *testing.T) {
	deliveries, waited := 0, time.Duration(0)
	for waited < 3*24*time.Hour {
		d := busyDelay(waited, 2*time.Second)
		if d < 2*time.Second || d > max(2*time.Second, waited/10) || d > maxRetryDelay {
			t.Fatalf("after %s another %s", waited, d)
		}
		waited += d
		deliveries++
	}
	if deliveries > 600 {
		t.Errorf("%d deliveries in three days", deliveries)
	}
}

// TestAHostInTroubleKeepsItsCommands: a command that is delivered too often is given up by its queue.
func TestAHostInTroubleKeepsItsCommands(t *testing.T) {
	r := newRunning()
	if d := r.hindered("job", 10*time.Second); d != 10*time.Second {
		t.Errorf("tried again after %s", d)
	}
	r.trouble["job"] = time.Now().Add(-time.Hour)
	if d := r.hindered("job", 10*time.Second); d < 6*time.Minute || d > 7*time.Minute {
		t.Errorf("after an hour tried again after %s", d)
	}
	r.unhindered("job")
	if len(r.trouble) != 0 {
		t.Error("the trouble is not forgotten")
	}
}

func TestACommandThatWaitedIsForgotten(t *testing.T) {
	entered, release := make(chan struct{}, 2), make(chan struct{})
	r := start(t, Config{}, func(context.Context, messages.Command, exec.Reporter) (exec.Outcome, error) {
		entered <- struct{}{}
		<-release
		return exec.Outcome{}, nil
	})
	first, data := take(t, "vm1", 0)
	d := newDelivery(first, data)
	r.queue.c <- d
	<-entered
	second, data := take(t, "vm1", 0)
	if d, how := r.deliver(second, data); how != "retry" || d.delay != 2*time.Second {
		t.Errorf("ended by %s with %s", how, d.delay)
	}
	close(release)
	if how := r.end(d); how != "ack" {
		t.Errorf("ended by %s", how)
	}
	if _, how := r.deliver(second, data); how != "ack" {
		t.Errorf("ended by %s", how)
	}
	r.worker.jobs.mu.Lock()
	defer r.worker.jobs.mu.Unlock()
	if len(r.worker.jobs.since) != 0 {
		t.Errorf("still waiting: %v", r.worker.jobs.since)
	}
}

// A worker that dies as it lets a command go never sees it again: the job's record must be gone by then.
func TestAJobIsForgottenBeforeItsCommandIsLetGo(t *testing.T) {
	signer, authority := newAuthority(t)
	for name, c := range map[string]struct {
		err    error
		issued time.Time
		record func(*journal, string) error
		over   bool // its last event is stored already
		how    string
	}{
		"succeeded": {how: "ack"},
		"cancelled": {err: errCancelled(), how: "ack"},
		"failed":    {err: messages.Errorf(messages.CodeWrongPassphrase, "none"), how: "term"},
		"over": {over: true, how: "ack", record: func(j *journal, id string) error {
			_, err := j.begin(id)
			return err
		}},
		"expired": {issued: time.Now().Add(-2 * time.Hour), how: "term", record: func(j *journal, id string) error {
			return j.limit(id, 5)
		}},
	} {
		t.Run(name, func(t *testing.T) {
			r := start(t, Config{Authority: authority}, func(context.Context, messages.Command, exec.Reporter) (exec.Outcome, error) {
				return exec.Outcome{}, c.err
			})
			if c.issued.IsZero() {
				c.issued = time.Now()
			}
			id, data := takeIssued(t, c.issued)
			if c.record != nil {
				if err := c.record(r.worker.journal, id); err != nil {
					t.Fatal(err)
				}
			}
			if c.over {
				if err := r.out.PublishEvent(t.Context(), messages.Event{JobID: id, Kind: messages.KindSucceeded}); err != nil {
					t.Fatal(err)
				}
			}
			d := newDelivery(id, data)
			var err error
			if d.signature, err = signer.Sign(d.Subject(), data); err != nil {
				t.Fatal(err)
			}
			d.settling = func() {
				if _, err := os.Stat(r.worker.journal.path(id)); !errors.Is(err, fs.ErrNotExist) {
					t.Errorf("the record is there: %v", err)
				}
			}
			r.queue.c <- d
			if how := r.end(d); how != c.how {
				t.Errorf("ended by %s: %+v", how, r.out.last(id))
			}
		})
	}
}

func TestProgressSnapshot(t *testing.T) {
	_, data := take(t, "vm1", 0)
	cmd, _, err := messages.Decode(data)
	if err != nil {
		t.Fatal(err)
	}
	out := newOutbox()
	j := &job{w: &Worker{cfg: Config{Zone: zone, Host: host}, out: out}, id: "J", cmd: cmd, attempt: 2}
	p := newProgress(j)
	p.Phase(messages.PhaseCopying)
	p.Disk("vdb", 1, 2)
	p.Disk("vda", 3, 4)
	p.Disk("vdb", 2, 2)
	m := p.snapshot()
	want := []messages.DiskProgress{{Name: "vda", Done: 3, Total: 4}, {Name: "vdb", Done: 2, Total: 2}}
	if m.Phase != messages.PhaseCopying || !slices.Equal(m.Disks, want) || m.Attempt != 2 || m.VM != "vm1" || m.JobID != "J" {
		t.Errorf("snapshot %+v", m)
	}
	p.Phase(messages.PhaseVerifying)
	if m := p.snapshot(); m.Phase != messages.PhaseVerifying || m.Disks != nil {
		t.Errorf("a new phase begins with %+v", m)
	}
	if out.progress != 3 {
		t.Errorf("%d reports, want the start of 2 phases and the end of one", out.progress)
	}
}

// An attempt that failed half way through a chain has deleted backups that the next attempt does not find.
func TestWhatAFailedAttemptHasDeletedLeavesTheCatalog(t *testing.T) {
	r := start(t, Config{}, func(context.Context, messages.Command, exec.Reporter) (exec.Outcome, error) {
		return exec.Outcome{Deleted: []exec.Deleted{{ID: "B", Zone: zone, Host: host}}}, messages.Errorf(messages.CodeRepositoryLost, "away")
	})
	r.out.catalog["B"], r.out.catalog["A"] = messages.CatalogEntry{ID: "B"}, messages.CatalogEntry{ID: "A"}
	id, data := take(t, "vm1", 1)
	r.deliver(id, data)
	if _, has := r.out.catalog["A"]; len(r.out.catalog) != 1 || !has {
		t.Errorf("the catalog has %v", r.out.catalog)
	}
}

// TestNotesAreBounded: what lies on a repository makes no event that no server takes.
func TestNotesAreBounded(t *testing.T) {
	if got := bounded(nil); got != nil {
		t.Errorf("got %q", got)
	}
	long := strings.Repeat("ä", 16<<20)
	notes := slices.Repeat([]string{long, "short"}, 5000)
	size := 0
	got := bounded(notes)
	for _, n := range got {
		size += len(n)
		if !utf8.ValidString(n) {
			t.Errorf("%q", n)
		}
	}
	if size > 512<<10 || got[1] != "short" || got[len(got)-1] != "and 9744 more" {
		t.Errorf("%d notes of %d bytes, the last %q", len(got), size, got[len(got)-1])
	}
}
