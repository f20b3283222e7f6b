package fleet

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/rs/zerolog"
	"go.uber.org/goleak"

	"github.com/nasfleet/nasfleet/internal/bus"
	"github.com/nasfleet/nasfleet/internal/fleet/fleettest"
	"github.com/nasfleet/nasfleet/internal/secret"
	"github.com/nasfleet/nasfleet/messages"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// start starts a server with two hosts and a Manager on it. What the Manager logs is in the buffer.
func start(t *testing.T) (*Manager, *fleettest.Fleet, *bytes.Buffer) {
	t.Helper()
	f, err := fleettest.Start()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := f.Stop(); err != nil {
			t.Error(err)
		}
	})
	if err := errors.Join(f.Host("z1", "h1"), f.Host("z2", "h2")); err != nil {
		t.Fatal(err)
	}
	log := &bytes.Buffer{}
	return New(f.Bus, secret.NewFolder(filepath.Join(t.TempDir(), "keys")), zerolog.New(log)), f, log
}

func take(t *testing.T, zone, host, vm string) *Job {
	t.Helper()
	job, err := TakeJob(Source{Zone: zone, Host: host, VM: vm}, TakeSettings{RepositorySettings: nas()}, passphrases())
	if err != nil {
		t.Fatal(err)
	}
	return job
}

// journal is an Observer that writes down what it is told.
type journal struct {
	lines []string
	on    func(line string)
}

func (j *journal) add(format string, args ...any) {
	line := fmt.Sprintf(format, args...)
	j.lines = append(j.lines, line)
	if j.on != nil {
		j.on(line)
	}
}

func (j *journal) Sent(r Result, t Tally) {
	j.add("%s sent %v, %d left", r.Job.Command.Target(), r.Published, t.Left())
}

func (j *journal) Event(job *Job, e messages.Event, t Tally) {
	j.add("%s %s, %d left", job.Command.Target(), e.Kind, t.Left())
}

func (j *journal) Progress(job *Job, p messages.Progress) {
	j.add("%s %s", job.Command.Target(), p.Phase)
}

func TestRunFollowsEachJobToItsEnd(t *testing.T) {
	m, _, log := start(t)
	jobs := []*Job{take(t, "z1", "h1", "web"), take(t, "z2", "h2", "bad"), take(t, "z1", "h1", "flaky")}
	o := &journal{}
	results, err := m.Run(t.Context(), jobs, o)
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range []string{"", "target_full: no room for bad", ""} {
		r := results[i]
		if !r.Published || r.Final == nil || r.Final.JobID != jobs[i].ID() || r.Job != jobs[i] {
			t.Errorf("%+v", r)
		}
		if err := r.Failure(); (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", r.Job.Command.Target(), err)
		}
	}
	if err := results[1].Failure(); ClassOf(err) != Failed || HintOf(err) != messages.CodeTargetFull.Hint() {
		t.Errorf("%v: %s", err, HintOf(err))
	}
	for _, want := range []string{"web accepted", "flaky retrying", "flaky succeeded", "bad failed"} {
		if !slices.ContainsFunc(o.lines, func(s string) bool { return strings.HasPrefix(s, want) }) {
			t.Errorf("no %q in %q", want, o.lines)
		}
	}
	if !strings.HasSuffix(o.lines[len(o.lines)-1], ", 0 left") || log.Len() > 0 {
		t.Errorf("%q\n%s", o.lines, log)
	}
}

func TestRunStopsWhenItsContextEnds(t *testing.T) {
	m, _, _ := start(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	o := &journal{on: func(line string) {
		if line == "hang copying" {
			cancel()
		}
	}}
	results, err := m.Run(ctx, []*Job{take(t, "z1", "h1", "hang")}, o)
	if ClassOf(err) != Interrupted || !results[0].Published || results[0].Final != nil || results[0].Failure() != nil {
		t.Errorf("%v, %+v", err, results)
	}
	results, err = m.Run(ctx, []*Job{take(t, "z1", "h1", "late")}, &journal{})
	if ClassOf(err) != Interrupted || results[0].Published {
		t.Errorf("%v, %+v", err, results)
	}
}

func TestSameJobTwiceIsOneJob(t *testing.T) {
	m, _, _ := start(t)
	var ends []*messages.Event
	for i := range 2 {
		src := Source{Zone: "z1", Host: "h1", VM: "web", JobID: "01JD0000000000000000000001"}
		job, err := TakeJob(src, TakeSettings{RepositorySettings: nas()}, passphrases())
		if err != nil {
			t.Fatal(err)
		}
		results, err := m.Run(t.Context(), []*Job{job}, &journal{})
		if err != nil || results[0].Duplicate != (i == 1) || results[0].Failure() != nil {
			t.Fatalf("%v, %+v", err, results[0])
		}
		ends = append(ends, results[0].Final)
	}
	if !ends[0].Time.Equal(ends[1].Time) {
		t.Error("the job ran twice")
	}
}

func TestNothingToDoIsDone(t *testing.T) {
	m, _, _ := start(t)
	if results, err := m.Run(t.Context(), nil, &journal{}); err != nil || len(results) > 0 {
		t.Errorf("%v, %v", results, err)
	}
}

func TestJobsForHostsThatAreNotThere(t *testing.T) {
	m, f, log := start(t)
	var jobs []*Job
	for i := range 7 {
		jobs = append(jobs, take(t, "z1", fmt.Sprintf("absent%d", i), "web"))
	}
	results, err := m.Send(t.Context(), jobs, &journal{})
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range results {
		if !r.Published {
			t.Errorf("%+v", r)
		}
		if _, err := f.Bus.Command(t.Context(), r.Job.Zone, r.Job.Host, r.Job.ID()); err != nil {
			t.Error(err)
		}
	}
	if s := log.String(); !strings.Contains(s, "7 jobs wait for hosts that are not announced: z1/absent0, z1/absent1") || strings.Contains(s, "absent5") {
		t.Error(s)
	}

	// What has to be sealed cannot wait: there is no key to seal it with.
	sealed, err := TakeJob(Source{Zone: "z1", Host: "absent1", VM: "web"},
		TakeSettings{RepositorySettings: nas(), Encrypt: new(true), PassphraseFile: "-"}, passphrases())
	if err != nil {
		t.Fatal(err)
	}
	results, err = m.Run(t.Context(), []*Job{sealed}, &journal{})
	if err != nil || results[0].Published || ClassOf(results[0].Failure()) != NotFound {
		t.Errorf("%v, %+v", err, results)
	}
	if _, err := f.Bus.Command(t.Context(), "z1", "absent1", sealed.ID()); !errors.Is(err, bus.ErrNotFound) {
		t.Errorf("it was published: %v", err)
	}
}

func TestSealedForItsHostOnly(t *testing.T) {
	m, _, _ := start(t)
	settings := TakeSettings{RepositorySettings: nas(), Encrypt: new(true), PassphraseFile: "-"}
	job, err := TakeJob(Source{Zone: "z1", Host: "h1", VM: "web"}, settings, passphrases())
	if err != nil {
		t.Fatal(err)
	}
	results, err := m.Run(t.Context(), []*Job{job}, &journal{})
	if err != nil || results[0].Failure() != nil {
		t.Fatal(err, results[0].Failure())
	}
	sealed, err := m.Seal(t.Context(), "z1", "h1", passphrases(), "-")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := m.Seal(t.Context(), "z1", "h2", passphrases(), "-"); ClassOf(err) != NotFound {
		t.Error(err)
	}
	// By hand, for the host and for another.
	for host, want := range map[string]messages.Code{"z1/h1": "", "z2/h2": messages.CodePassphraseForeign} {
		zone, name, _ := strings.Cut(host, "/")
		byHand := TakeSettings{RepositorySettings: nas(), Encrypt: new(true), Detail: map[string]string{messages.DetailPassphrase: sealed}}
		job, err := TakeJob(Source{Zone: zone, Host: name, VM: "web"}, byHand, passphrases())
		if err != nil {
			t.Fatal(err)
		}
		results, err := m.Run(t.Context(), []*Job{job}, &journal{})
		if err != nil {
			t.Fatal(err)
		}
		var got messages.Code
		if failure := results[0].Final.Error; failure != nil {
			got = failure.Code
		}
		if got != want {
			t.Errorf("%s: %q, want %q", host, got, want)
		}
	}
}

func TestRestoreTakesItsPlaceFromTheCatalog(t *testing.T) {
	m, f, _ := start(t)
	entry := fleettest.Entry(&messages.TakeBackup{
		Header: messages.Header{JobID: "01JD0000000000000000000001"}, VM: "web", BackupPath: "t/1",
		Repository: messages.Repository{Type: "nfs", Address: "s:/e", MountOptions: "ro"}, Details: messages.Details{Encryption: true},
	}, "z2", "h2")
	if err := f.Bus.PutBackup(t.Context(), entry); err != nil {
		t.Fatal(err)
	}
	s := RestoreSettings{BackupSettings: BackupSettings{Backup: entry.ID}, To: "/r"}
	if _, err := m.RestoreJob(t.Context(), s, passphrases()); ClassOf(err) != Usage || !strings.Contains(HintOf(err), "--passphrase-file") {
		t.Errorf("%v: %s", err, HintOf(err))
	}
	s.PassphraseFile = "-"
	job, err := m.RestoreJob(t.Context(), s, passphrases())
	if err != nil {
		t.Fatal(err)
	}
	if c := job.Command.(*messages.RestoreBackup); c.Backup != entry.Ref() || job.Zone != "z2" || job.Host != "h2" {
		t.Errorf("%+v", job)
	}
	s.Zone, s.Host = "z1", "h1"
	if job, err = m.RestoreJob(t.Context(), s, passphrases()); err != nil || job.Zone != "z1" || job.Host != "h1" {
		t.Errorf("%+v, %v", job, err)
	}
	s.To, s.ToVM, s.Define = "", "web", true
	if _, err = m.RestoreJob(t.Context(), s, passphrases()); ClassOf(err) != Usage {
		t.Error(err)
	}
	s.ToVM, s.Define, s.ToRBD = "", false, []string{"vda=p/a=b,c", "vdb=p/d"}
	job, err = m.RestoreJob(t.Context(), s, passphrases())
	if err != nil || !maps.Equal(job.Command.(*messages.RestoreBackup).ToRBD, map[string]string{"vda": "p/a=b,c", "vdb": "p/d"}) {
		t.Errorf("%+v, %v", job, err)
	}
	for _, images := range [][]string{{"vda"}, {"vda=p"}, {"vda=p/a", "vda=p/b"}, {"vda=p/a", "vdb=p/a"}} {
		s.ToRBD = images
		if _, err := m.RestoreJob(t.Context(), s, passphrases()); ClassOf(err) != Usage {
			t.Errorf("%q: %v", images, err)
		}
	}
	// Deleting reads nothing and needs no passphrase.
	if job, err = m.DeleteJob(t.Context(), BackupSettings{Backup: entry.ID}, true); err != nil || job.Host != "h2" || !job.Command.(*messages.DeleteBackup).Cascade {
		t.Errorf("%+v, %v", job, err)
	}
}

// A host that enters a backup which another one took gets no job by it, and no passphrase.
func TestABackupThatTwoHostsClaim(t *testing.T) {
	m, f, _ := start(t)
	cmd := &messages.TakeBackup{Header: messages.Header{JobID: "01JD0000000000000000000001"}, VM: "web", Repository: messages.Repository{Type: "dir", Address: "/r"}}
	for _, host := range []string{"h1", "h2"} {
		if err := f.Bus.PutBackup(t.Context(), fleettest.Entry(cmd, "z2", host)); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		host string
		want Class
	}{{"", Usage}, {"h3", Usage}, {"h2", 0}} {
		job, err := m.VerifyJob(t.Context(), BackupSettings{Backup: cmd.JobID, Host: c.host}, ReadSettings{}, passphrases())
		switch {
		case c.want == 0 && (err != nil || job.Host != c.host || job.Zone != "z2"):
			t.Errorf("named by its host: %+v, %v", job, err)
		case c.want != 0 && (ClassOf(err) != c.want || !strings.Contains(err.Error(), "z2/h1, z2/h2")):
			t.Errorf("host %q: %v", c.host, err)
		}
	}
}

func TestWatchOneJobEndsWithIt(t *testing.T) {
	m, _, _ := start(t)
	job := take(t, "z2", "h2", "bad")
	if _, err := m.Run(t.Context(), []*Job{job}, &journal{}); err != nil {
		t.Fatal(err)
	}
	var kinds []messages.Kind
	err := m.Watch(t.Context(), bus.Filter{Job: job.ID()}, func(u bus.Update) error {
		kinds = append(kinds, u.Event.Kind)
		return nil
	})
	if ClassOf(err) != Failed || !strings.Contains(err.Error(), "no room") || !slices.Equal(kinds, []messages.Kind{"accepted", "failed"}) {
		t.Errorf("%v, %v", kinds, err)
	}
	full := errors.New("no space on the terminal")
	if err := m.Watch(t.Context(), bus.Filter{Job: job.ID()}, func(bus.Update) error { return full }); !errors.Is(err, full) {
		t.Error(err)
	}
	if err := m.Watch(t.Context(), bus.Filter{Zone: "*"}, nil); ClassOf(err) != Usage {
		t.Error(err)
	}
}

// What another host tells of a job ends no watch of it, and is not shown.
func TestWatchOneJobHearsItsHostAlone(t *testing.T) {
	m, f, _ := start(t)
	watch := func(f bus.Filter, each func()) (told []string, err error) {
		err = m.Watch(t.Context(), f, func(u bus.Update) error {
			if u.Event != nil {
				told = append(told, u.Event.Host+" "+string(u.Event.Kind))
			}
			each()
			return nil
		})
		return told, err
	}
	forge := func(job *Job) {
		t.Helper()
		e := messages.Cancelled("z1", "h1", job.Command, 1, messages.Errorf(messages.CodeCancelled, "another host says so"))
		if err := f.Bus.PublishEvent(t.Context(), e); err != nil {
			t.Error(err)
		}
	}
	// The watch is there before the job is, and hears of the other host while the job runs.
	job := take(t, "z2", "h2", "hang")
	ended := make(chan error, 1)
	go func() {
		once := sync.OnceFunc(func() {
			forge(job)
			if _, err := m.Cancel(t.Context(), JobAddress{ID: job.ID()}); err != nil {
				t.Error(err)
			}
		})
		told, err := watch(bus.Filter{Job: job.ID()}, once)
		if want := []string{"h2 accepted", "h2 cancelled"}; !slices.Equal(told, want) {
			err = fmt.Errorf("told %v, %w", told, err)
		} else if ClassOf(err) == Failed {
			err = nil // as a job that was cancelled ends
		}
		ended <- err
	}()
	if _, err := f.Bus.Publish(t.Context(), "z2", "h2", job.Command); err != nil {
		t.Fatal(err)
	}
	if err := <-ended; err != nil {
		t.Error(err)
	}

	// It hears of the other host first of all.
	job = take(t, "z2", "h2", "web")
	forge(job)
	if _, err := m.Run(t.Context(), []*Job{job}, &journal{}); err != nil {
		t.Fatal(err)
	}
	want := []string{"h2 accepted", "h2 succeeded"}
	if told, err := watch(bus.Filter{Job: job.ID()}, func() {}); err != nil || !slices.Equal(told, want) {
		t.Errorf("told %v, %v", told, err)
	}
	// Where two hosts have a job of that id, one has to be named.
	if _, err := f.Bus.Publish(t.Context(), "z1", "h1", job.Command); err != nil {
		t.Fatal(err)
	}
	if _, err := watch(bus.Filter{Job: job.ID()}, func() {}); ClassOf(err) != Usage || !strings.Contains(err.Error(), "z1/h1, z2/h2") {
		t.Errorf("of two hosts: %v", err)
	}
	if told, err := watch(bus.Filter{Job: job.ID(), Host: "h2"}, func() {}); err != nil || !slices.Equal(told, want) {
		t.Errorf("told %v, %v", told, err)
	}
}

func TestClassesAndHints(t *testing.T) {
	for _, c := range []struct {
		err   error
		class Class
		hint  string
	}{
		{fmt.Errorf("x: %w", bus.ErrUnreachable), Unreachable, "NATS server"},
		{fmt.Errorf("x: %w", bus.ErrUnauthorized), Unreachable, "credentials"},
		{fmt.Errorf("x: %w", bus.ErrNotFound), NotFound, ""},
		{fmt.Errorf("x: %w", bus.ErrNoStream), NotFound, "JetStream"},
		{fmt.Errorf("x: %w", context.Canceled), Interrupted, ""},
		{refused(messages.Errorf(messages.CodeUnknownDetail, "x")), Usage, "spelling"},
		{refused(messages.Errorf(messages.CodeInvalidMessage, "x")), Usage, ""},
		{errors.New("x"), Failed, ""},
		{Outcome(messages.Event{Kind: messages.KindCancelled}), Failed, ""},
	} {
		if got := ClassOf(c.err); got != c.class {
			t.Errorf("%v: class %d, want %d", c.err, got, c.class)
		}
		if got := HintOf(c.err); !strings.Contains(got, c.hint) || (got == "") != (c.hint == "") {
			t.Errorf("%v: hint %q", c.err, got)
		}
	}
}

func TestFilterIsAsNarrowAsCanBe(t *testing.T) {
	a, b, c := take(t, "z1", "h1", "a"), take(t, "z1", "h1", "b"), take(t, "z2", "h1", "c")
	for want, jobs := range map[bus.Filter][]*Job{
		{}:                                    nil,
		{Zone: "z1", Host: "h1", Job: a.ID()}: {a},
		{Zone: "z1", Host: "h1"}:              {a, b},
		{Host: "h1"}:                          {a, b, c},
	} {
		if got := filterOf(jobs); got != want {
			t.Errorf("%+v, want %+v", got, want)
		}
	}
}

// TestOnlyItsHostEndsAJob: what another host says of a job of that id is not about ours.
func TestOnlyItsHostEndsAJob(t *testing.T) {
	job := take(t, "z1", "h1", "web1")
	r := newRun([]*Job{job}, &journal{})
	r.sent(0, false, nil)
	ended := messages.Event{Kind: messages.KindSucceeded, JobID: job.ID(), Zone: "z1", Host: "h2"}
	r.event(ended)
	if r.results[0].Final != nil || r.done.Err() != nil {
		t.Error("another host has ended the job")
	}
	ended.Host = "h1"
	r.event(ended)
	if r.results[0].Final == nil || r.done.Err() == nil {
		t.Error("its host has not ended the job")
	}
}
