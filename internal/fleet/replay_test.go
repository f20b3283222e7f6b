package fleet

import (
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/nats-io/nats.go"
	"github.com/oklog/ulid/v2"

	"github.com/nasfleet/nasfleet/internal/fleet/fleettest"
	"github.com/nasfleet/nasfleet/internal/secret"
	"github.com/nasfleet/nasfleet/messages"
)

// ran publishes the jobs and follows them to their ends.
func ran(t *testing.T, m *Manager, jobs ...*Job) {
	t.Helper()
	if _, err := m.Run(t.Context(), jobs, &journal{}); err != nil {
		t.Fatal(err)
	}
}

// raw puts anything into the stream of commands.
func raw(t *testing.T, f *fleettest.Fleet, subject, data string) {
	t.Helper()
	nc, err := nats.Connect(f.URL)
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	if _, err := nc.Request(subject, []byte(data), 10*time.Second); err != nil {
		t.Fatal(err)
	}
}

func list(t *testing.T, m *Manager, f JobFilter, state JobState, limit int) []string {
	t.Helper()
	jobs, err := m.Jobs(t.Context(), f, state, limit)
	if err != nil {
		t.Fatal(err)
	}
	var vms []string
	for _, j := range jobs {
		vms = append(vms, fmt.Sprintf("%s %s %d %s", j.VM, j.State, j.Attempt, j.Code))
	}
	return vms
}

func plan(t *testing.T, m *Manager, s ReplaySettings) []Replay {
	t.Helper()
	p, err := m.PlanReplay(t.Context(), s)
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func published(p []Replay) (jobs []*Job) {
	for _, r := range p {
		if r.Job != nil {
			jobs = append(jobs, r.Job)
		}
	}
	return jobs
}

// event tells an event of a job of a host that is not there.
func event(t *testing.T, f *fleettest.Fleet, j *Job, kind messages.Kind, code messages.Code) {
	t.Helper()
	e := messages.Event{Version: 1, Kind: kind, JobID: j.ID(), Zone: j.Zone, Host: j.Host, Time: time.Now(), Attempt: 1}
	if code != "" {
		e.Error = messages.FailureOf(messages.Errorf(code, "told by a test"))
	}
	if err := f.Bus.PublishEvent(t.Context(), e); err != nil {
		t.Fatal(err)
	}
}

func TestJobsAreListed(t *testing.T) {
	m, f, _ := start(t)
	if jobs := list(t, m, JobFilter{}, "", 0); jobs != nil {
		t.Errorf("%q", jobs)
	}
	for _, j := range []*Job{take(t, "z1", "h1", "web"), take(t, "z2", "h2", "bad"), take(t, "z1", "h1", "flaky"), take(t, "z1", "h1", "gone")} {
		ran(t, m, j) // one after the other, for their order
	}
	waiting, tried := take(t, "z1", "absent", "waiting"), take(t, "z2", "absent", "tried")
	for _, j := range []*Job{waiting, tried} {
		if _, err := m.Send(t.Context(), []*Job{j}, &journal{}); err != nil {
			t.Fatal(err)
		}
	}
	event(t, f, tried, messages.KindRetrying, messages.CodeTimeout)
	all := []string{"web succeeded 1 ", "bad failed 1 target_full", "flaky succeeded 2 ", "gone cancelled 1 cancelled", "waiting queued 0 ", "tried retrying 1 timeout"}
	for name, c := range map[string]struct {
		filter JobFilter
		state  JobState
		limit  int
		want   []string
	}{
		"all":          {want: all},
		"newest":       {limit: 2, want: all[4:]},
		"zone":         {filter: JobFilter{Zone: "z2"}, want: []string{all[1], all[5]}},
		"host":         {filter: JobFilter{Host: "absent"}, want: all[4:]},
		"vm":           {filter: JobFilter{VM: "flaky"}, want: all[2:3]},
		"code":         {filter: JobFilter{Code: "target_full"}, want: all[1:2]},
		"state":        {state: JobQueued, want: all[4:5]},
		"since":        {filter: JobFilter{Since: time.Hour}, want: all},
		"since now":    {filter: JobFilter{Since: 1}},
		"several":      {filter: JobFilter{Zone: "z1", Host: "h1", VM: "web", Since: time.Hour}, state: JobSucceeded, want: all[:1]},
		"none of them": {filter: JobFilter{VM: "web"}, state: JobFailed},
	} {
		if got := list(t, m, c.filter, c.state, c.limit); !slices.Equal(got, c.want) {
			t.Errorf("%s: %q", name, got)
		}
	}
	for _, f := range []JobFilter{{Zone: "*"}, {Host: "a.b"}, {Since: -1}, {Code: "mount_faild"}} {
		if _, err := m.Jobs(t.Context(), f, "", 0); ClassOf(err) != Usage {
			t.Errorf("%+v: %v", f, err)
		}
	}
	if _, err := m.Jobs(t.Context(), JobFilter{}, "", -1); ClassOf(err) != Usage {
		t.Error(err)
	}
	if _, err := m.Jobs(t.Context(), JobFilter{Zone: "nowhere"}, "", 0); ClassOf(err) != NotFound {
		t.Error(err)
	}
}

func TestReplayTwiceIsOneJob(t *testing.T) {
	m, f, _ := start(t)
	settings := TakeSettings{RepositorySettings: nas(), Encrypt: new(true), Compress: new(true), PassphraseFile: "-", Attempts: 2}
	old, err := TakeJob(Source{Zone: "z1", Host: "h1", VM: "down"}, settings, passphrases())
	if err != nil {
		t.Fatal(err)
	}
	ran(t, m, old)
	byID, byFilter := ReplaySettings{Jobs: []string{old.ID(), old.ID()}}, ReplaySettings{Failed: true}

	// Two operators at once plan the same job.
	first, second, again := plan(t, m, byID), plan(t, m, byFilter), plan(t, m, byID)
	if len(first) != 1 || first[0].Job.ID() != second[0].Job.ID() || first[0].Job.ID() == old.ID() {
		t.Fatalf("%+v\n%+v", first, second)
	}
	for i, p := range [][]Replay{first, second, again} {
		results, err := m.Run(t.Context(), published(p), &journal{})
		if err != nil || results[0].Failure() != nil || results[0].Duplicate != (i > 0) {
			t.Errorf("%d: %v, %+v", i, err, results[0])
		}
	}
	if got := list(t, m, JobFilter{}, "", 0); len(got) != 2 {
		t.Errorf("%q", got)
	}

	// The command is as it was, its sealed passphrase too: the host opened it.
	data, err := f.Bus.Command(t.Context(), "z1", "h1", first[0].Job.ID())
	if err != nil {
		t.Fatal(err)
	}
	cmd, head, err := messages.Decode(data)
	if err != nil || head.Replays != old.ID() || head.IssuedAt.Before(old.Command.Head().IssuedAt) {
		t.Errorf("%+v, %v", head, err)
	}
	ignore := cmpopts.IgnoreFields(messages.Header{}, "JobID", "IssuedAt", "Replays")
	if diff := cmp.Diff(old.Command, cmd, ignore); diff != "" {
		t.Error(diff)
	}

	// Now a filter leaves it out, and its id gives the replay there is.
	if p := plan(t, m, byFilter); len(p) != 1 || p[0].Job != nil || p[0].LeftOut != "already replayed as "+first[0].Job.ID() {
		t.Errorf("%+v", p)
	}
	if p := plan(t, m, byID); p[0].Old.ReplayedAs != first[0].Job.ID() || p[0].Job.ID() != first[0].Job.ID() {
		t.Errorf("%+v", p)
	}
}

func TestReplayOfAReplay(t *testing.T) {
	m, _, _ := start(t)
	chain := []*Job{take(t, "z2", "h2", "bad")}
	ran(t, m, chain[0])
	for range 2 {
		p := published(plan(t, m, ReplaySettings{Failed: true, JobFilter: JobFilter{Zone: "z2"}}))
		if len(p) != 1 || p[0].Command.Head().Replays != chain[len(chain)-1].ID() {
			t.Fatalf("%+v", p)
		}
		ran(t, m, p...)
		chain = append(chain, p[0])
	}
	for i, j := range chain {
		s, err := m.Job(t.Context(), j.ID(), "", "")
		if err != nil {
			t.Fatal(err)
		}
		var before, after string
		if i > 0 {
			before = chain[i-1].ID()
		}
		if i+1 < len(chain) {
			after = chain[i+1].ID()
		}
		if s.Replays != before || s.ReplayedAs != after || len(s.Events) != 2 {
			t.Errorf("%d: %+v", i, s)
		}
	}
}

// TestReplayByHand: a replay that somebody published under an id of his own counts as one.
func TestReplayByHand(t *testing.T) {
	m, _, _ := start(t)
	old, byHand := take(t, "z1", "h1", "bad"), take(t, "z1", "h1", "web")
	ran(t, m, old)
	byHand.Command.(*messages.TakeBackup).Replays = old.ID()
	ran(t, m, byHand)
	if p := plan(t, m, ReplaySettings{Jobs: []string{old.ID()}}); p[0].Job.ID() != byHand.ID() {
		t.Errorf("%+v", p)
	}
	if p := plan(t, m, ReplaySettings{Failed: true}); published(p) != nil {
		t.Errorf("%+v", p)
	}
}

// TestReplaySignsNothingForeign: a replay is signed, so what somebody else put into the stream is not replayed.
func TestReplaySignsNothingForeign(t *testing.T) {
	m, f, _ := start(t)
	signer, err := secret.LoadOrCreateSigner(m.keys)
	if err != nil {
		t.Fatal(err)
	}
	jobs := map[string]*Job{"own": take(t, "z9", "h9", "own"), "foreign": take(t, "z9", "h9", "foreign")}
	if err := f.Bus.EnsureZone(t.Context(), "z9"); err != nil {
		t.Fatal(err)
	}
	nc, err := nats.Connect(f.URL)
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	for name, j := range jobs {
		msg := nats.NewMsg(messages.JobSubject(j.Zone, j.Host, j.ID()))
		if msg.Data, err = messages.Encode(j.Command); err != nil {
			t.Fatal(err)
		}
		signature, err := signer.Sign(msg.Subject, msg.Data)
		if err != nil {
			t.Fatal(err)
		}
		if name == "own" {
			msg.Header.Set(messages.SignatureHeader, signature)
		}
		if _, err := nc.RequestMsg(msg, 10*time.Second); err != nil {
			t.Fatal(err)
		}
		event(t, f, j, messages.KindFailed, messages.CodeMountFailed)
	}
	for _, r := range plan(t, m, ReplaySettings{Failed: true}) {
		if (r.Job != nil) != (r.Old.VM == "own") {
			t.Errorf("%s: replayed %v, left out because %q", r.Old.VM, r.Job != nil, r.LeftOut)
		}
	}
	if _, err := m.PlanReplay(t.Context(), ReplaySettings{Jobs: []string{jobs["foreign"].ID()}}); ClassOf(err) != Usage || !errors.Is(err, errNotOwn) {
		t.Errorf("%v", err)
	}
	plan(t, m, ReplaySettings{Jobs: []string{jobs["own"].ID()}})
}

func TestReplayRefusals(t *testing.T) {
	m, f, _ := start(t)
	done, waiting, running, retrying := take(t, "z1", "h1", "web"), take(t, "z1", "absent", "a"), take(t, "z1", "absent", "b"), take(t, "z1", "absent", "c")
	ran(t, m, done)
	if _, err := m.Send(t.Context(), []*Job{waiting, running, retrying}, &journal{}); err != nil {
		t.Fatal(err)
	}
	event(t, f, running, messages.KindAccepted, "")
	event(t, f, retrying, messages.KindRetrying, messages.CodeTimeout)
	failed := take(t, "z1", "h1", "bad")
	ran(t, m, failed)
	orphan := take(t, "z1", "absent", "expired")
	event(t, f, orphan, messages.KindFailed, messages.CodeTimeout)
	for name, c := range map[string]struct {
		settings ReplaySettings
		class    Class
		want     string
	}{
		"nothing asked for":   {ReplaySettings{JobFilter: JobFilter{Zone: "z1"}}, Usage, "no job is asked for"},
		"id and filter":       {ReplaySettings{Jobs: []string{failed.ID()}, Failed: true}, Usage, "--job goes without"},
		"no ULID":             {ReplaySettings{Jobs: []string{"*"}}, Usage, "is not a ULID"},
		"unknown":             {ReplaySettings{Jobs: []string{failed.ID(), ulid.Make().String()}}, NotFound, "there is no job"},
		"on another host":     {ReplaySettings{Jobs: []string{failed.ID()}, JobFilter: JobFilter{Host: "h2"}}, NotFound, "there is no job"},
		"succeeded":           {ReplaySettings{Jobs: []string{failed.ID(), done.ID()}}, Usage, "has succeeded"},
		"queued":              {ReplaySettings{Jobs: []string{waiting.ID()}}, Usage, "has not ended, it is queued"},
		"running":             {ReplaySettings{Jobs: []string{running.ID()}}, Usage, "has not ended, it is running"},
		"retrying":            {ReplaySettings{Jobs: []string{retrying.ID()}}, Usage, "has not ended, it is retrying"},
		"its command is gone": {ReplaySettings{Jobs: []string{orphan.ID()}}, NotFound, "no longer stored"},
		"misspelt code":       {ReplaySettings{Failed: true, JobFilter: JobFilter{Code: "nope"}}, Usage, "no code"},
	} {
		if p, err := m.PlanReplay(t.Context(), c.settings); ClassOf(err) != c.class || err == nil || !strings.Contains(err.Error(), c.want) || p != nil {
			t.Errorf("%s: %v (%v)", name, err, p)
		}
	}
	if p := plan(t, m, ReplaySettings{Failed: true, Cancelled: true}); len(p) != 1 || p[0].Old.JobID != failed.ID() {
		t.Errorf("%+v", p)
	}
}

// TestHostileCommands: what cannot be read is listed as such, is never replayed, and shows nothing
// of its content.
func TestHostileCommands(t *testing.T) {
	m, f, _ := start(t)
	const plain = "hunter2-in-the-clear"
	good, err := messages.Encode(take(t, "z1", "absent", "web").Command)
	if err != nil {
		t.Fatal(err)
	}
	ids := []string{ulid.Make().String(), ulid.Make().String(), ulid.Make().String(), "no-ulid", ulid.Make().String()}
	raw(t, f, "backup.jobs.z1.absent."+ids[0], "not JSON")
	raw(t, f, "backup.jobs.z1.absent."+ids[1], string(good)) // of another id
	raw(t, f, "backup.jobs.z1.absent."+ids[2], strings.Replace(string(good), `"details":{}`,
		`"details":{"encryption":"true","encryption_passphrase":"`+plain+`"}`, 1))
	raw(t, f, "backup.jobs.z1.absent."+ids[3], string(good))
	raw(t, f, "backup.jobs.z1.H_1."+ids[4], string(good))
	for i, id := range ids[:3] {
		j := take(t, "z1", "absent", "x")
		j.Command.(*messages.TakeBackup).JobID = id
		event(t, f, j, messages.KindFailed, []messages.Code{messages.CodeInvalidMessage, messages.CodeMountFailed, messages.CodePassphraseUnsealed}[i])
	}
	jobs, err := m.Jobs(t.Context(), JobFilter{}, "", 0)
	if err != nil || len(jobs) != len(ids) {
		t.Fatalf("%+v, %v", jobs, err)
	}
	for i, j := range jobs {
		if j.JobID != ids[i] || j.CommandError == "" || j.Type != "" || j.VM != "" {
			t.Errorf("%+v", j)
		}
	}
	p := plan(t, m, ReplaySettings{Failed: true})
	if len(p) != 3 || published(p) != nil || p[0].LeftOut != "its command is not readable" {
		t.Errorf("%+v", p)
	}
	for _, id := range ids[:3] {
		if _, err := m.PlanReplay(t.Context(), ReplaySettings{Jobs: []string{id}}); ClassOf(err) != Usage || !strings.Contains(err.Error(), "not readable") {
			t.Error(err)
		}
		s, err := m.Job(t.Context(), id, "", "")
		if err != nil || s.Command != nil || len(s.Events) != 1 {
			t.Errorf("%+v, %v", s, err)
		}
		if data, err := json.Marshal(s); err != nil || strings.Contains(string(data), plain) {
			t.Errorf("%s, %v", data, err)
		}
	}
	if s, err := m.Job(t.Context(), "no-ulid", "", ""); err != nil || s.CommandError == "" {
		t.Errorf("%+v, %v", s, err)
	}
}

func TestStory(t *testing.T) {
	m, f, _ := start(t)
	settings := TakeSettings{RepositorySettings: nas(), Encrypt: new(true), PassphraseFile: "-"}
	job, err := TakeJob(Source{Zone: "z1", Host: "h1", VM: "flaky"}, settings, passphrases())
	if err != nil {
		t.Fatal(err)
	}
	ran(t, m, job)
	s, err := m.Job(t.Context(), job.ID(), "", "")
	if err != nil {
		t.Fatal(err)
	}
	var kinds []messages.Kind
	for _, e := range s.Events {
		kinds = append(kinds, e.Kind)
	}
	if want := []messages.Kind{"accepted", "retrying", "accepted", "succeeded"}; !slices.Equal(kinds, want) || s.State != JobSucceeded || s.Attempt != 2 {
		t.Errorf("%v, %+v", kinds, s.Status)
	}
	data, err := json.Marshal(s.Command)
	if err != nil || strings.Contains(string(data), messages.SealedPrefix) || !strings.Contains(string(data), `"(sealed)"`) {
		t.Errorf("%s, %v", data, err)
	}
	if job.Command.(*messages.TakeBackup).Details.Passphrase == "(sealed)" {
		t.Error("the job itself was redacted")
	}

	// What another host tells of the id is not the job's; without the command it is all there is.
	other := take(t, "z2", "h2", "x")
	other.Command.(*messages.TakeBackup).JobID = job.ID()
	event(t, f, other, messages.KindFailed, messages.CodeTimeout)
	if s, err := m.Job(t.Context(), job.ID(), "", ""); err != nil || s.Host != "h1" || s.State != JobSucceeded {
		t.Errorf("%+v, %v", s, err)
	}
	if s, err := m.Job(t.Context(), job.ID(), "z2", "h2"); err != nil || s.CommandError != commandGone || s.State != JobFailed {
		t.Errorf("%+v, %v", s, err)
	}

	// The id of two hosts' jobs needs a host.
	raw(t, f, "backup.jobs.z1.absent."+job.ID(), "x")
	if _, err := m.Job(t.Context(), job.ID(), "", ""); ClassOf(err) != Usage || !strings.Contains(err.Error(), "z1/absent, z1/h1") {
		t.Error(err)
	}
	if _, err := m.Job(t.Context(), job.ID(), "z1", "h1"); err != nil {
		t.Error(err)
	}
	for id, class := range map[string]Class{ulid.Make().String(): NotFound, "x": NotFound, "*": Usage} {
		if _, err := m.Job(t.Context(), id, "", ""); ClassOf(err) != class {
			t.Errorf("%q: %v", id, err)
		}
	}
}

func TestRestoresAreReplayedByNameOnly(t *testing.T) {
	m, _, _ := start(t)
	head, err := newHeader(messages.TypeRestore, "", 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	repository := messages.Repository{Type: messages.RepositoryDir, Address: "/nas"}
	job := &Job{Zone: "z1", Host: "h1", Command: &messages.RestoreBackup{
		Header: head, Backup: messages.BackupRef{ID: head.JobID, VM: "bad", Repository: repository}, ToVM: "web",
	}}
	ran(t, m, job)
	if p := plan(t, m, ReplaySettings{Failed: true}); len(p) != 1 || p[0].Job != nil || !strings.Contains(p[0].LeftOut, "only by its id") {
		t.Errorf("%+v", p)
	}
	if p := plan(t, m, ReplaySettings{Jobs: []string{job.ID()}}); p[0].Job == nil {
		t.Errorf("%+v", p)
	}
}

func TestReplayID(t *testing.T) {
	at := time.UnixMilli(1_770_000_000_123)
	const old = "01KGDZ3D80A1B2C3D4E5F6G7H8"
	id, err := replayID(old, at)
	if err != nil || messages.CheckID("id", id) != nil {
		t.Fatal(id, err)
	}
	if again, _ := replayID(old, at); again != id {
		t.Error("not the same id")
	}
	if u := ulid.MustParse(id); !ulid.Time(u.Time()).Equal(at) {
		t.Error(ulid.Time(u.Time()))
	}
	other, _ := replayID(id, at)
	later, _ := replayID(old, at.Add(time.Millisecond))
	if other == id || later == id {
		t.Error("other jobs have the same id")
	}
	if id, err := replayID(old, time.Date(99999, 1, 1, 0, 0, 0, 0, time.UTC)); err == nil {
		t.Error(id)
	}
	var e *messages.Error
	if _, err := replayID(old, time.Time{}); err == nil || errors.As(err, &e) {
		t.Error(err)
	}
}
