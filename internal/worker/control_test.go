package worker

import (
	"context"
	"errors"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/oklog/ulid/v2"

	"github.com/nasfleet/nasfleet/internal/exec"
	"github.com/nasfleet/nasfleet/messages"
)

// hang is a job that runs until it is told to stop.
func hang(entered chan<- string) fakeExecutor {
	return func(ctx context.Context, c messages.Command, _ exec.Reporter) (exec.Outcome, error) {
		entered <- c.Head().JobID
		<-ctx.Done()
		return exec.Outcome{}, context.Cause(ctx)
	}
}

func (r *rig) control(action messages.Action, job string, limit ...int) messages.ControlReply {
	req := messages.NewControlRequest(action, job)
	if len(limit) > 0 {
		req.BandwidthLimit = &limit[0]
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	return r.worker.Control(ctx, Request{ControlRequest: req})
}

func (r *rig) refused(reply messages.ControlReply, want messages.Code) {
	r.t.Helper()
	if reply.Reply != messages.ReplyRefused || reply.Error == nil || reply.Error.Code != want || reply.Error.Hint == "" {
		r.t.Errorf("reply %+v, want %s", reply, want)
	}
}

func TestCancelOfARunningJob(t *testing.T) {
	entered := make(chan string, 1)
	r := start(t, Config{}, hang(entered))
	id, data := take(t, "vm1", 0)
	d := newDelivery(id, data)
	r.queue.c <- d
	<-entered
	if got := r.control(messages.ActionCancel, id); got.Reply != messages.ReplyCancelling || got.JobID != id {
		t.Errorf("%+v", got)
	}
	if how := r.end(d); how != "ack" {
		t.Errorf("ended by %s", how)
	}
	if ev := r.out.last(id); ev.Kind != messages.KindCancelled || ev.Attempt != 1 || ev.Error.Code != messages.CodeCancelled {
		t.Errorf("%+v", ev)
	}
	r.out.published(id, data)
	r.refused(r.control(messages.ActionCancel, id), messages.CodeJobOver)
	r.refused(r.control(messages.ActionThrottle, id, 1), messages.CodeJobOver)
}

func TestCancelOfAJobThatWaits(t *testing.T) {
	r := start(t, Config{}, func(context.Context, messages.Command, exec.Reporter) (exec.Outcome, error) {
		t.Error("a cancelled job was run")
		return exec.Outcome{}, nil
	})
	id, data := take(t, "vm1", 0)
	r.refused(r.control(messages.ActionCancel, id), messages.CodeJobNotFound)
	r.out.published(id, data)
	if got := r.control(messages.ActionCancel, id); got.Reply != messages.ReplyCancelled {
		t.Errorf("%+v", got)
	}
	if ev := r.out.last(id); ev.Kind != messages.KindCancelled || ev.Attempt != 0 || ev.VM != "vm1" || ev.Type != messages.TypeTake {
		t.Errorf("%+v", ev)
	}
	if _, how := r.deliver(id, data); how != "ack" {
		t.Errorf("the command ended by %s", how)
	}
	if got := r.out.kinds(id); !slices.Equal(got, []messages.Kind{messages.KindCancelled}) {
		t.Errorf("events %v", got)
	}
	if r.exec.cleaned() != nil {
		t.Error("cleaned up after a job that never began")
	}
	unreadable := ulid.Make().String()
	r.out.published(unreadable, []byte("hello"))
	r.refused(r.control(messages.ActionCancel, unreadable), messages.CodeInvalidMessage)
}

// TestCancelOfARetryingJob: between two attempts. The next delivery only acknowledges.
func TestCancelOfARetryingJob(t *testing.T) {
	runs := 0
	r := start(t, Config{}, func(context.Context, messages.Command, exec.Reporter) (exec.Outcome, error) {
		runs++
		return exec.Outcome{}, messages.Errorf(messages.CodeMountFailed, "no route")
	})
	id, data := take(t, "vm1", 3)
	r.out.published(id, data)
	if _, how := r.deliver(id, data); how != "retry" {
		t.Fatalf("ended by %s", how)
	}
	if got := r.control(messages.ActionCancel, id); got.Reply != messages.ReplyCancelled {
		t.Errorf("%+v", got)
	}
	if _, how := r.deliver(id, data); how != "ack" || runs != 1 {
		t.Errorf("ended by %s after %d runs", how, runs)
	}
	if ev := r.out.last(id); ev.Kind != messages.KindCancelled || ev.Attempt != 1 {
		t.Errorf("%+v", ev)
	}
}

// TestCancelAndDelivery lets requests and deliveries of the same jobs meet: each job ends once, run
// or cancelled.
func TestCancelAndDelivery(t *testing.T) {
	r := start(t, Config{Jobs: 8, BusyDelay: time.Millisecond}, func(ctx context.Context, _ messages.Command, _ exec.Reporter) (exec.Outcome, error) {
		return exec.Outcome{}, context.Cause(ctx)
	})
	var wg sync.WaitGroup
	for range 200 {
		id, data := take(t, "vm-"+ulid.Make().String(), 0)
		r.out.published(id, data)
		wg.Go(func() {
			for {
				if _, how := r.deliver(id, data); how != "retry" {
					return
				}
			}
		})
		wg.Go(func() {
			reply := r.control(messages.ActionCancel, id)
			if reply.Reply == messages.ReplyRefused && reply.Error.Code != messages.CodeJobOver {
				t.Errorf("%+v", reply.Error)
			}
		})
		wg.Wait()
		finals := 0
		for _, k := range r.out.kinds(id) {
			if k.Final() {
				finals++
			}
		}
		if finals != 1 {
			t.Fatalf("job %s has the events %v", id, r.out.kinds(id))
		}
	}
}

// TestCancelAsTheAttemptEnds: the attempt failed, and its retrying event is on its way. The request
// waits for that, and cancels the job that waits for its next attempt.
func TestCancelAsTheAttemptEnds(t *testing.T) {
	r := start(t, Config{}, func(context.Context, messages.Command, exec.Reporter) (exec.Outcome, error) {
		return exec.Outcome{}, messages.Errorf(messages.CodeMountFailed, "no route")
	})
	id, data := take(t, "vm1", 3)
	r.out.published(id, data)
	hold, held := make(chan struct{}), make(chan struct{})
	r.out.before = func(e messages.Event) {
		if e.Kind == messages.KindRetrying {
			close(held)
			<-hold
		}
	}
	d := newDelivery(id, data)
	r.queue.c <- d
	<-held
	reply := make(chan messages.ControlReply)
	go func() { reply <- r.control(messages.ActionCancel, id) }()
	close(hold)
	if got := <-reply; got.Reply != messages.ReplyCancelled {
		t.Errorf("%+v", got)
	}
	if how := r.end(d); how != "retry" {
		t.Errorf("ended by %s", how)
	}
	if _, how := r.deliver(id, data); how != "ack" || r.out.last(id).Kind != messages.KindCancelled {
		t.Errorf("ended by %s, %+v", how, r.out.last(id))
	}
}

// TestCancelOutlivesTheWorker: it was told to end, and died before it had. The next worker does not
// begin the job again, cleans up after it, and says that it was cancelled.
func TestCancelOutlivesTheWorker(t *testing.T) {
	state := t.TempDir()
	id, data := take(t, "vm1", 3)
	j, err := openJournal(state, zone, host)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := j.begin(id); err != nil {
		t.Fatal(err)
	}
	if err := j.cancel(id); err != nil {
		t.Fatal(err)
	}
	j.close()
	r := start(t, Config{StateDir: state}, func(context.Context, messages.Command, exec.Reporter) (exec.Outcome, error) {
		t.Error("the job was begun again")
		return exec.Outcome{}, nil
	})
	if _, how := r.deliver(id, data); how != "ack" || r.out.last(id).Kind != messages.KindCancelled {
		t.Errorf("ended by %s with %+v", how, r.out.last(id))
	}
	if got := r.exec.cleaned(); !slices.Equal(got, []string{id}) {
		t.Errorf("cleaned up after %v", got)
	}
}

// TestAKilledAttemptThatHadDoneTheJob: it committed and died before it could note that. Told to end or
// out of attempts, the job has succeeded: its backup is there.
func TestAKilledAttemptThatHadDoneTheJob(t *testing.T) {
	for name, told := range map[string]bool{"cancelled": true, "out of attempts": false} {
		t.Run(name, func(t *testing.T) {
			state := t.TempDir()
			id, data := take(t, "vm1", 1)
			j, err := openJournal(state, zone, host)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := j.begin(id); err != nil {
				t.Fatal(err)
			}
			if told {
				if err := j.cancel(id); err != nil {
					t.Fatal(err)
				}
			}
			j.close()
			r := start(t, Config{StateDir: state}, nil)
			r.exec.found = &exec.Outcome{BackupID: id, Backup: &messages.CatalogEntry{ID: id}}
			if _, how := r.deliver(id, data); how != "ack" || r.out.last(id).Kind != messages.KindSucceeded || r.out.last(id).BackupID != id {
				t.Errorf("ended by %s with %+v", how, r.out.last(id))
			}
		})
	}
}

// endedCommand is a delivery whose job is being told to end just as it is acknowledged.
type endedCommand struct {
	*fakeDelivery
	acking func()
}

func (d *endedCommand) Ack(ctx context.Context) error {
	d.acking()
	return d.fakeDelivery.Ack(ctx)
}

// TestCancelOfAnEndedCommand: the job is over, and its command comes back just as somebody cancels it.
// The job is not told to end, and nothing of it stays in the journal.
func TestCancelOfAnEndedCommand(t *testing.T) {
	r := start(t, Config{}, nil)
	id, data := take(t, "vm1", 1)
	cmd, _, err := messages.Decode(data)
	if err != nil {
		t.Fatal(err)
	}
	if err := r.out.PublishEvent(t.Context(), messages.Cancelled(zone, host, cmd, 0, errCancelled())); err != nil {
		t.Fatal(err)
	}
	d := &endedCommand{newDelivery(id, data), func() {
		j, release, err := r.worker.jobs.seize(t.Context(), id)
		if err != nil || j == nil {
			t.Errorf("%v, %v", j, err)
			return
		}
		release()
		if reply, err := j.tell(); !errors.Is(err, errEnding) {
			t.Errorf("a job that is over is %s: %v", reply, err)
		}
	}}
	r.queue.c <- d
	if how := r.end(d.fakeDelivery); how != "ack" {
		t.Errorf("ended by %s", how)
	}
	r.stop()
	if err := <-r.ended; err != nil {
		t.Fatal(err)
	}
	if rec, err := r.worker.journal.read(id); err != nil || rec.Cancelled {
		t.Errorf("the journal keeps a job that is over: %+v, %v", rec, err)
	}
}

// TestCancelOfAnEndingJob: the job's end is just being stored, and a server of the cluster that is behind does
// not know of it when that is done. The job has one end all the same.
func TestCancelOfAnEndingJob(t *testing.T) {
	r := start(t, Config{}, func(context.Context, messages.Command, exec.Reporter) (exec.Outcome, error) {
		return exec.Outcome{}, nil
	})
	id, data := take(t, "vm1", 1)
	answer := make(chan error, 1)
	r.out.before = func(e messages.Event) {
		if e.Kind != messages.KindSucceeded {
			return
		}
		asked := make(chan struct{})
		go func() {
			_, err := r.worker.change(t.Context(), id,
				func(*job) (messages.Reply, error) { close(asked); return "", errEnding },
				func(*job) (messages.Reply, error) { return messages.ReplyCancelled, nil })
			answer <- err
		}()
		<-asked
		r.out.behind.Store(true)
	}
	r.out.published(id, data)
	if _, how := r.deliver(id, data); how != "ack" {
		t.Errorf("ended by %s", how)
	}
	if err := <-answer; messages.CodeOf(err) != messages.CodeJobOver {
		t.Errorf("told %v", err)
	}
}

// TestCancelledByOthers: the management side cancelled the job as it was being accepted.
func TestCancelledByOthers(t *testing.T) {
	r := start(t, Config{}, func(context.Context, messages.Command, exec.Reporter) (exec.Outcome, error) {
		t.Error("a cancelled job was run")
		return exec.Outcome{}, nil
	})
	id, data := take(t, "vm1", 1)
	cmd, _, err := messages.Decode(data)
	if err != nil {
		t.Fatal(err)
	}
	r.out.looked = func() { // between the look for a final event and the accepted event
		_ = r.out.PublishEvent(context.Background(), messages.Cancelled(zone, host, cmd, 0, errCancelled()))
	}
	if _, how := r.deliver(id, data); how != "retry" {
		t.Errorf("ended by %s", how)
	}
	if _, how := r.deliver(id, data); how != "ack" {
		t.Errorf("ended by %s", how)
	}
	if got := r.out.kinds(id); !slices.Equal(got, []messages.Kind{messages.KindCancelled}) {
		t.Errorf("events %v", got)
	}
}

// TestCancelOfADoneJob: it has succeeded, and only its report is late.
func TestCancelOfADoneJob(t *testing.T) {
	state := t.TempDir()
	id, data := take(t, "vm1", 3)
	j, err := openJournal(state, zone, host)
	if err != nil {
		t.Fatal(err)
	}
	if err := j.done(id, result{Outcome: exec.Outcome{BackupID: id}}); err != nil {
		t.Fatal(err)
	}
	j.close()
	r := start(t, Config{StateDir: state}, nil)
	r.out.published(id, data)
	r.refused(r.control(messages.ActionCancel, id), messages.CodeJobOver)
	if _, how := r.deliver(id, data); how != "ack" || r.out.last(id).Kind != messages.KindSucceeded {
		t.Errorf("ended by %s", how)
	}
}

func TestThrottle(t *testing.T) {
	state, entered, limits := t.TempDir(), make(chan string, 2), make(chan int, 2)
	r := start(t, Config{StateDir: state, Grace: time.Millisecond}, hang(entered))
	r.exec.limits = limits
	id, data := take(t, "vm1", 0)
	r.out.published(id, data)

	// While it waits.
	if got := r.control(messages.ActionThrottle, id, 7); got.Reply != messages.ReplyNoted {
		t.Errorf("%+v", got)
	}
	d := newDelivery(id, data)
	r.queue.c <- d
	<-entered
	if got := <-limits; got != 7 {
		t.Errorf("the job began with the limit %d", got)
	}
	// While it runs, twice in one attempt.
	for _, mib := range []int{3, 0} {
		if got := r.control(messages.ActionThrottle, id, mib); got.Reply != messages.ReplyThrottled {
			t.Errorf("%+v", got)
		}
	}
	var changes []messages.Throttle
	for _, e := range r.out.all(id) {
		if e.Kind == messages.KindThrottled {
			changes = append(changes, *e.Throttled)
		}
	}
	if want := []messages.Throttle{{From: 0, To: 7}, {From: 7, To: 3}, {From: 3, To: 0}}; !slices.Equal(changes, want) {
		t.Errorf("events %v", changes)
	}
	r.control(messages.ActionThrottle, id, 5)
	r.stop()
	if how := r.end(d); how != "return" {
		t.Errorf("ended by %s", how)
	}
	if err := <-r.ended; err != nil {
		t.Fatal(err)
	}
	// For the next attempt, of the next worker.
	r = start(t, Config{StateDir: state}, hang(entered))
	r.exec.limits = limits
	d = newDelivery(id, data)
	r.queue.c <- d
	<-entered
	if got := <-limits; got != 5 {
		t.Errorf("the next attempt began with the limit %d", got)
	}
	r.control(messages.ActionCancel, id)
	r.end(d)

	other := ulid.Make().String()
	list, err := messages.Encode(&messages.ListBackups{
		Header:     messages.Header{Version: 1, Type: messages.TypeList, JobID: other, IssuedAt: time.Now()},
		Repository: messages.Repository{Type: messages.RepositoryDir, Address: "/nas"},
	})
	if err != nil {
		t.Fatal(err)
	}
	r.out.published(other, list)
	r.refused(r.control(messages.ActionThrottle, other, 5), messages.CodeInvalidDetail)
}

// TestControlIsAuthenticated: a host that knows its publisher heeds nobody else.
func TestControlIsAuthenticated(t *testing.T) {
	signer, authority := newAuthority(t)
	r := start(t, Config{Authority: authority}, nil)
	id, data := take(t, "vm1", 0)
	r.out.published(id, data)
	subject := messages.ControlSubject(zone, host)
	sign := func(subject string, data []byte) string {
		s, err := signer.Sign(subject, data)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	req := Request{ControlRequest: messages.NewControlRequest(messages.ActionCancel, id), Subject: subject, Data: []byte("the request")}
	for code, signature := range map[messages.Code]string{
		messages.CodeCommandUnsigned: "", messages.CodeCommandForged: sign(subject, []byte("another")),
		messages.CodeCommandReaddressed: sign(messages.ControlSubject(zone, "h2"), req.Data),
	} {
		req.Signature = signature
		r.refused(r.worker.Control(t.Context(), req), code)
	}
	req.Signature = sign(subject, req.Data)
	// The one would be young enough for a command, the other comes from a clock that is wrong.
	for _, age := range []time.Duration{requestAge + time.Second, -2 * time.Hour} {
		old := req
		old.IssuedAt = time.Now().Add(-age)
		r.refused(r.worker.Control(t.Context(), old), messages.CodeCommandExpired)
	}
	if got := r.worker.Control(t.Context(), req); got.Reply != messages.ReplyCancelled {
		t.Errorf("%+v", got)
	}
}

// TestControlWithoutNATS: what is not stored is not said to be.
func TestControlWithoutNATS(t *testing.T) {
	r := start(t, Config{}, nil)
	id, data := take(t, "vm1", 0)
	r.out.published(id, data)
	r.out.setAway(errors.New("no server"))
	r.refused(r.control(messages.ActionCancel, id), messages.CodeTimeout)
	r.out.setAway(nil)
	if got := r.control(messages.ActionCancel, id); got.Reply != messages.ReplyCancelled {
		t.Errorf("%+v", got)
	}
}
