package worker

import (
	"context"
	"slices"
	"testing"
	"time"

	"github.com/oklog/ulid/v2"

	"github.com/nasfleet/nasfleet/internal/exec"
	"github.com/nasfleet/nasfleet/internal/secret"
	"github.com/nasfleet/nasfleet/messages"
)

// newAuthority makes a publisher's key, and what holds commands of the last hour against it.
func newAuthority(t *testing.T) (*secret.Signer, *secret.Verifier) {
	t.Helper()
	signer, err := secret.NewSigner()
	if err != nil {
		t.Fatal(err)
	}
	authority, err := secret.NewVerifier(time.Hour, signer.Public())
	if err != nil {
		t.Fatal(err)
	}
	return signer, authority
}

// A host that was given the publisher's key begins nothing that is not signed with it for this
// host and job, as it is, and of late.
func TestAuthority(t *testing.T) {
	signer, authority := newAuthority(t)
	ran := make(chan string, 8)
	r := start(t, Config{Authority: authority}, func(_ context.Context, c messages.Command, _ exec.Reporter) (exec.Outcome, error) {
		ran <- c.Head().JobID
		return exec.Outcome{}, nil
	})
	sign := func(subject string, data []byte) string {
		s, err := signer.Sign(subject, data)
		if err != nil {
			t.Fatal(err)
		}
		return s
	}
	deliver := func(job string, data []byte, signature string) string {
		d := newDelivery(job, data)
		d.signature = signature
		r.queue.c <- d
		return r.end(d)
	}
	for name, tt := range map[string]struct {
		sign func(job string, data []byte) string
		age  time.Duration
		want messages.Code
	}{
		"unsigned":         {func(string, []byte) string { return "" }, 0, messages.CodeCommandUnsigned},
		"altered":          {func(j string, d []byte) string { return sign(messages.JobSubject(zone, host, j), d[1:]) }, 0, messages.CodeCommandForged},
		"for another host": {func(j string, d []byte) string { return sign(messages.JobSubject(zone, "h2", j), d) }, 0, messages.CodeCommandReaddressed},
		"for another zone": {func(j string, d []byte) string { return sign(messages.JobSubject("z2", host, j), d) }, 0, messages.CodeCommandReaddressed},
		"for another job": {func(_ string, d []byte) string {
			return sign(messages.JobSubject(zone, host, ulid.Make().String()), d)
		}, 0, messages.CodeCommandReaddressed},
		"expired": {func(j string, d []byte) string { return sign(messages.JobSubject(zone, host, j), d) }, 2 * time.Hour, messages.CodeCommandExpired},
	} {
		job, data := takeIssued(t, time.Now().Add(-tt.age))
		if how := deliver(job, data, tt.sign(job, data)); how != "term" {
			t.Errorf("%s: ended by %s", name, how)
		}
		if e := r.out.last(job); e.Kind != messages.KindFailed || e.Error == nil || e.Error.Code != tt.want || e.Error.Retryable {
			t.Errorf("%s: %+v", name, e)
		}
	}
	if len(ran) != 0 {
		t.Errorf("%d refused commands ran", len(ran))
	}
	job, data := takeIssued(t, time.Now())
	if how := deliver(job, data, sign(messages.JobSubject(zone, host, job), data)); how != "ack" || <-ran != job {
		t.Errorf("the publisher's own command ended by %s", how)
	}
	// Under the name of a job that has ended, a forgery does not contradict its end.
	before := len(r.out.kinds(job))
	if how := deliver(job, data, ""); how != "ack" || len(r.out.kinds(job)) != before {
		t.Errorf("a forgery under an ended job's name ended by %s: %v", how, r.out.kinds(job))
	}
}

// TestSameName: a message that bears the name of a job and is not its command does not end that job a
// second time, neither while it is at work nor when it is over.
func TestSameName(t *testing.T) {
	entered, leave := make(chan struct{}), make(chan struct{})
	r := start(t, Config{}, func(context.Context, messages.Command, exec.Reporter) (exec.Outcome, error) {
		close(entered)
		<-leave
		return exec.Outcome{}, nil
	})
	job, data := take(t, "vm1", 1)
	d := newDelivery(job, data)
	r.queue.c <- d
	<-entered
	if _, how := r.deliver(job, []byte("{}")); how != "term" {
		t.Errorf("at work: ended by %s", how)
	}
	close(leave)
	if how := r.end(d); how != "ack" {
		t.Errorf("the job ended by %s", how)
	}
	if _, how := r.deliver(job, []byte("{}")); how != "ack" {
		t.Errorf("over: ended by %s", how)
	}
	if got := r.out.kinds(job); !slices.Equal(got, []messages.Kind{messages.KindAccepted, messages.KindSucceeded}) {
		t.Errorf("events %v", got)
	}
}

// A job that was begun in time is seen through, however long it takes.
func TestExpiresOnlyBeforeItBegins(t *testing.T) {
	signer, authority := newAuthority(t)
	job, data := takeIssued(t, time.Now().Add(-2*time.Hour))
	state := t.TempDir()
	j, err := openJournal(state, zone, host)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := j.begin(job); err != nil {
		t.Fatal(err)
	}
	j.close()
	r := start(t, Config{Authority: authority, StateDir: state}, func(context.Context, messages.Command, exec.Reporter) (exec.Outcome, error) {
		return exec.Outcome{}, nil
	})
	d := newDelivery(job, data)
	if d.signature, err = signer.Sign(d.Subject(), data); err != nil {
		t.Fatal(err)
	}
	r.queue.c <- d
	if how := r.end(d); how != "ack" {
		t.Errorf("ended by %s: %+v", how, r.out.last(job))
	}
}

func takeIssued(t *testing.T, at time.Time) (string, []byte) {
	t.Helper()
	id := ulid.Make().String()
	data, err := messages.Encode(&messages.TakeBackup{
		Header:     messages.Header{Version: 1, Type: messages.TypeTake, JobID: id, IssuedAt: at},
		VM:         "vm-" + id,
		Repository: messages.Repository{Type: messages.RepositoryDir, Address: "/nas"},
	})
	if err != nil {
		t.Fatal(err)
	}
	return id, data
}
