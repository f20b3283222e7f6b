package access_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/oklog/ulid/v2"

	"github.com/nasfleet/nasfleet/internal/access"
	"github.com/nasfleet/nasfleet/internal/bus"
	"github.com/nasfleet/nasfleet/internal/secret"
	"github.com/nasfleet/nasfleet/messages"
)

func take() *messages.TakeBackup {
	return &messages.TakeBackup{
		Header: messages.Header{
			Version: messages.Version, Type: messages.TypeTake, JobID: ulid.Make().String(), IssuedAt: time.Now(),
		},
		VM: "vm", Repository: messages.Repository{Type: messages.RepositoryDir, Address: "/srv/backups"},
	}
}

func event(host, job string, kind messages.Kind) messages.Event {
	return messages.Event{
		Version: messages.Version, Kind: kind, JobID: job, Type: messages.TypeTake, Zone: zone, Host: host, VM: "vm",
		Time: time.Now().UTC(), Attempt: 1,
	}
}

func (f *testFleet) command(host string) string {
	f.t.Helper()
	cmd := take()
	if _, err := f.publish.Publish(f.t.Context(), zone, host, cmd); err != nil {
		f.t.Fatal(err)
	}
	return cmd.JobID
}

// next takes the next command of a queue.
func next(t *testing.T, c *bus.Commands) *bus.Delivery {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	d, err := c.Next(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

func (f *testFleet) queue(b *bus.Bus, host string) *bus.Commands {
	f.t.Helper()
	c, err := b.Commands(zone, host)
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(c.Stop)
	return c
}

// With its own rights a host's worker does all of its work.
func TestHostWorks(t *testing.T) {
	forBoth(t, func(t *testing.T, f *testFleet) {
		ctx, w := t.Context(), f.worker("a")
		watch, err := f.publish.Watch(ctx, bus.Filter{Zone: zone})
		if err != nil {
			t.Fatal(err)
		}
		defer watch.Stop()
		job := f.command("a")
		d := next(t, f.queue(w, "a"))
		if d.JobID != job {
			t.Fatalf("got job %s, want %s", d.JobID, job)
		}
		entry := messages.CatalogEntry{ID: job, JobID: job, Zone: zone, Host: "a", VM: "vm", CreatedAt: time.Now().UTC()}
		for what, err := range map[string]error{
			"extend": d.Extend(), "accepted": w.PublishEvent(ctx, event("a", job, messages.KindAccepted)),
			"progress": w.PublishProgress(messages.Progress{JobID: job, Zone: zone, Host: "a", Phase: messages.PhaseCopying}),
			"catalog":  w.PutBackup(ctx, entry), "announce": w.Announce(ctx, messages.HostInfo{Zone: zone, Host: "a"}),
		} {
			if err != nil {
				t.Errorf("%s: %v", what, err)
			}
		}
		if data, err := w.Command(ctx, zone, "a", job); err != nil || len(data) == 0 {
			t.Errorf("its own command: %v", err)
		}
		if _, err := w.FinalEvent(ctx, zone, "a", job); !errors.Is(err, bus.ErrNotFound) {
			t.Errorf("final event of a job that runs: %v", err)
		}
		if err := w.PublishEvent(ctx, event("a", job, messages.KindSucceeded)); err != nil {
			t.Error(err)
		}
		if e, err := w.FinalEvent(ctx, zone, "a", job); err != nil || e.Kind != messages.KindSucceeded {
			t.Errorf("final event: %v, %v", e, err)
		}
		if err := d.Ack(ctx); err != nil {
			t.Error(err)
		}
		seen := map[string]bool{}
		for len(seen) < 3 {
			bound, cancel := context.WithTimeout(ctx, patience)
			u, err := watch.Next(bound)
			cancel()
			if err != nil {
				t.Fatalf("the publisher sees %v only: %v", seen, err)
			}
			if u.Event != nil {
				seen[string(u.Event.Kind)] = true
			} else {
				seen["progress"] = true
			}
		}
		if e, err := f.publish.Backup(ctx, job); err != nil || len(e) != 1 || e[0].Host != "a" {
			t.Errorf("the catalog: %+v, %v", e, err)
		}
		if h, err := f.publish.Host(ctx, zone, "a"); err != nil || h.Host != "a" {
			t.Errorf("the hosts: %+v, %v", h, err)
		}
		if err := errors.Join(w.RemoveBackup(ctx, zone, "a", job), w.Withdraw(ctx, zone, "a")); err != nil {
			t.Error(err)
		}
	})
}

// What host a does without asking for a way around is refused at once, each time by the server.
func TestHostIsRefused(t *testing.T) {
	forBoth(t, func(t *testing.T, f *testFleet) {
		a, job, jobs := f.raw("a"), f.command("b"), messages.JobStream(zone)
		theirs := messages.JobSubject(zone, "b", job)
		for what, subject := range map[string]string{
			"read b's commands as they come":  messages.JobSubject(zone, "b", "*"),
			"read everything":                 ">",
			"read b's inbox":                  bus.HostInbox(zone, "b") + ".>",
			"read the replies of services":    "_R_.>",
			"read all inboxes":                "_INBOX.>",
			"read b's control requests":       messages.ControlSubject(zone, "b"),
			"read zone settings as they come": "$KV.>",
			"read b's events":                 messages.EventSubject(zone, "b", "*", "*"),
			"read b's progress":               messages.ProgressSubject(zone, "b", "*"),
		} {
			a.subscribeRefused(what, subject)
		}
		api := "$JS.API."
		for what, p := range map[string][2]string{
			"take b's commands":           {api + "CONSUMER.MSG.NEXT." + jobs + ".host_b", `{"batch":10,"no_wait":true}`},
			"read b's command":            {api + "DIRECT.GET." + jobs + "." + theirs, ""},
			"read b's command by number":  {api + "DIRECT.GET." + jobs, `{"seq":1}`},
			"read b's command, old way":   {api + "STREAM.MSG.GET." + jobs, `{"seq":1}`},
			"read its own, by number":     {api + "DIRECT.GET." + messages.EventStream, `{"seq":1}`},
			"look at b's queue":           {"hosts.CONSUMER.INFO." + jobs + ".host_b", ""},
			"ack b's command":             {"$JS.ACK." + jobs + ".host_b.1.1.1.1.0", "+ACK"},
			"terminate b's command":       {"$JS.ACK." + jobs + ".host_b.1.1.1.1.0", "+TERM"},
			"delete b's command":          {api + "STREAM.MSG.DELETE." + jobs, `{"seq":1}`},
			"purge b's commands":          {api + "STREAM.PURGE." + jobs, `{"filter":"` + theirs + `"}`},
			"an event as b":               {messages.EventSubject(zone, "b", job, messages.KindFailed), "{}"},
			"progress as b":               {messages.ProgressSubject(zone, "b", job), "{}"},
			"a catalog entry as b":        {bus.BucketSubject(messages.CatalogBucket, messages.CatalogKey(zone, "b", job)), "{}"},
			"an announcement as b":        {bus.BucketSubject(messages.HostBucket, messages.HostKey(zone, "b")), "{}"},
			"a control request to b":      {messages.ControlSubject(zone, "b"), "{}"},
			"a job for b":                 {messages.JobSubject(zone, "b", ulid.Make().String()), "{}"},
			"a job for itself":            {messages.JobSubject(zone, "a", ulid.Make().String()), "{}"},
			"purge the events":            {api + "STREAM.PURGE." + messages.EventStream, ""},
			"purge a bucket":              {api + "STREAM.PURGE.KV_" + messages.CatalogBucket, ""},
			"delete a bucket":             {api + "STREAM.DELETE.KV_" + messages.CatalogBucket, ""},
			"change a bucket":             {api + "STREAM.UPDATE.KV_" + messages.CatalogBucket, `{"name":"KV_BACKUP_CATALOG","allow_rollup_hdrs":true}`},
			"make a stream":               {api + "STREAM.CREATE.MINE", `{"name":"MINE"}`},
			"restore a stream":            {api + "STREAM.RESTORE.MINE", `{}`},
			"list the streams":            {api + "STREAM.NAMES", ""},
			"look at a stream":            {api + "STREAM.INFO." + jobs, `{"subjects_filter":">"}`},
			"make a consumer":             {api + "CONSUMER.CREATE." + jobs + ".mine." + messages.JobSubject(zone, "a", "*"), "{}"},
			"make its own queue push":     {api + "CONSUMER.CREATE." + jobs + ".host_a." + messages.JobSubject(zone, "a", "*"), `{"config":{"deliver_subject":"` + theirs + `"}}`},
			"make a durable, old way":     {api + "CONSUMER.DURABLE.CREATE." + jobs + ".mine", "{}"},
			"delete b's queue":            {api + "CONSUMER.DELETE." + jobs + ".host_b", ""},
			"delete its own queue":        {api + "CONSUMER.DELETE." + jobs + ".host_a", ""},
			"pause b's queue":             {api + "CONSUMER.PAUSE." + jobs + ".host_b", `{"pause_until":"2100-01-01T00:00:00Z"}`},
			"reset b's queue":             {api + "CONSUMER.RESET." + jobs + ".host_b", ""},
			"read zone settings":          {api + "DIRECT.GET.KV_" + messages.ZoneBucket + "." + bus.BucketSubject(messages.ZoneBucket, messages.ZoneKey(zone)), ""},
			"write zone settings":         {bus.BucketSubject(messages.ZoneBucket, messages.ZoneKey(zone)), "{}"},
			"ask the system account":      {"$SYS.REQ.SERVER.PING.CONNZ", ""},
			"give itself another account": {"$SYS.REQ.CLAIMS.UPDATE", ""},
			"answer a request of another": {"_R_.abcdef.ghijkl", "{}"},
			"write to b's inbox":          {bus.HostInbox(zone, "b") + ".x", "{}"},
		} {
			a.publishRefused(what, p[0], p[1])
		}
		if d := next(t, f.queue(f.worker("b"), "b")); d.JobID != job || d.NumDelivered != 1 {
			t.Errorf("b's command was touched: %+v", d)
		}
	})
}

// headers that would remove or reshape what is stored, on a's own subjects.
func TestHostileHeaders(t *testing.T) {
	forBoth(t, func(t *testing.T, f *testFleet) {
		ctx, a, b := t.Context(), f.raw("a"), f.worker("b")
		kept := messages.CatalogEntry{ID: ulid.Make().String(), Zone: zone, Host: "b", VM: "vm"}
		if err := errors.Join(b.PutBackup(ctx, kept), b.Announce(ctx, messages.HostInfo{Zone: zone, Host: "b"})); err != nil {
			t.Fatal(err)
		}
		job := f.command("b")
		own := []string{
			messages.EventSubject(zone, "a", job, messages.KindAccepted),
			bus.BucketSubject(messages.CatalogBucket, messages.CatalogKey(zone, "a", job)),
			bus.BucketSubject(messages.HostBucket, messages.HostKey(zone, "a")),
		}
		theirs := messages.JobSubject(zone, "b", ulid.Make().String())
		for what, h := range map[string]nats.Header{
			"roll the stream up":    {"Nats-Rollup": {"all"}},
			"roll the subject up":   {"Nats-Rollup": {"sub"}},
			"purge a key":           {"KV-Operation": {"PURGE"}, "Nats-Rollup": {"sub"}},
			"schedule a message":    {"Nats-Schedule": {"@every 1s"}, "Nats-Schedule-Target": {theirs}},
			"schedule one for once": {"Nats-Schedule": {"@at 2030-01-01T00:00:00Z"}, "Nats-Schedule-Target": {theirs}},
			"a batch":               {"Nats-Batch-Id": {"x"}, "Nats-Batch-Sequence": {"1"}, "Nats-Batch-Commit": {"1"}},
			"a counter":             {"Nats-Incr": {"+1"}},
		} {
			for _, subject := range own {
				m := nats.NewMsg(subject)
				m.Header, m.Data = h, []byte("{}")
				r, err := a.RequestMsg(m, patience)
				if err != nil {
					t.Fatalf("%s on %s: %v", what, subject, err)
				}
				var ack struct {
					Error *struct {
						Description string `json:"description"`
					} `json:"error"`
				}
				if err := json.Unmarshal(r.Data, &ack); err != nil || ack.Error == nil {
					t.Errorf("%s on %s: %s", what, subject, r.Data)
					continue
				}
				t.Logf("%s on %s: %s", what, subject, ack.Error.Description)
			}
		}
		if _, err := f.publish.Backup(ctx, kept.ID); err != nil {
			t.Errorf("b's catalog entry: %v", err)
		}
		if _, err := f.publish.Host(ctx, zone, "b"); err != nil {
			t.Errorf("b's announcement: %v", err)
		}
	})
}

// Using the message ids of b's events first does not have them dropped.
func TestForeignMessageIDs(t *testing.T) {
	forBoth(t, func(t *testing.T, f *testFleet) {
		ctx, a, b, job := t.Context(), f.raw("a"), f.worker("b"), f.command("b")
		kinds := []messages.Kind{messages.KindAccepted, messages.KindVerified, messages.KindRetrying, messages.KindSucceeded}
		for _, kind := range kinds {
			m := nats.NewMsg(messages.EventSubject(zone, "a", job, kind))
			m.Header.Set("Nats-Msg-Id", event("b", job, kind).MsgID())
			if _, err := a.RequestMsg(m, patience); err != nil {
				t.Fatal(err)
			}
		}
		for _, kind := range kinds {
			if err := b.PublishEvent(ctx, event("b", job, kind)); err != nil {
				t.Fatal(err)
			}
		}
		events, err := f.publish.JobEvents(ctx, zone, "b", job)
		if err != nil || len(events) != len(kinds) {
			t.Errorf("%d of b's %d events are stored, %v", len(events), len(kinds), err)
		}
	})
}

// A reply subject is not held against a user's rights. Whatever a has answered onto whichever
// subject, none of it arrives.
func TestReplySubjects(t *testing.T) {
	forBoth(t, func(t *testing.T, f *testFleet) {
		ctx, a, b := t.Context(), f.raw("a"), f.worker("b")
		jobs := messages.JobStream(zone)
		theirJob := f.command("b")
		d := next(t, f.queue(b, "b")) // in b's hands, so that an ack of a's would count
		kept := messages.CatalogEntry{ID: ulid.Make().String(), Zone: zone, Host: "b", VM: "vm"}
		if err := errors.Join(b.PutBackup(ctx, kept), b.Announce(ctx, messages.HostInfo{Zone: zone, Host: "b"})); err != nil {
			t.Fatal(err)
		}
		// What a wrote may be its own to read, and is then of its choice, headers too.
		mine := ulid.Make().String()
		chosen := nats.NewMsg(messages.EventSubject(zone, "a", mine, messages.KindAccepted))
		chosen.Data, _ = messages.Encode(take())
		if _, err := a.RequestMsg(chosen, patience); err != nil {
			t.Fatal(err)
		}
		targets := []string{
			messages.JobSubject(zone, "b", ulid.Make().String()),
			messages.JobSubject(zone, "a", ulid.Make().String()),
			messages.EventSubject(zone, "b", theirJob, messages.KindSucceeded),
			bus.BucketSubject(messages.CatalogBucket, messages.CatalogKey(zone, "b", kept.ID)),
			bus.BucketSubject(messages.HostBucket, messages.HostKey(zone, "b")),
			messages.ProgressSubject(zone, "b", theirJob),
			bus.BucketSubject(messages.ZoneBucket, messages.ZoneKey(zone)),
			"$JS.API.STREAM.PURGE." + jobs,
			"$JS.API.STREAM.DELETE." + jobs,
			"$JS.API.CONSUMER.MSG.NEXT." + jobs + ".host_b",
		}
		watch, err := f.publish.Watch(ctx, bus.Filter{Zone: zone})
		if err != nil {
			t.Fatal(err)
		}
		defer watch.Stop()
		for _, reply := range targets {
			f.command("a") // for the pull
			for what, m := range requests(jobs, mine) {
				m.Reply = reply
				if err := a.PublishMsg(m); err != nil {
					t.Fatalf("%s: %v", what, err)
				}
			}
		}
		// Replies that end a message of b's, and those of services, are refused by name.
		for _, reply := range []string{"$JS.ACK." + jobs + ".host_b.1.1.1.1.0", "_R_.abcdef.ghijkl"} {
			for what, m := range requests(jobs, mine) {
				m.Reply = reply
				if err := a.PublishMsg(m); err != nil {
					t.Fatal(err)
				}
				a.refused(what+" onto "+reply, "Publish with Reply", reply)
			}
		}
		// A trace of a message is another message that the server sends.
		traced := nats.NewMsg(messages.EventSubject(zone, "a", mine, messages.KindAccepted))
		traced.Header.Set("Nats-Trace-Dest", messages.JobSubject(zone, "b", ulid.Make().String()))
		if err := a.PublishMsg(traced); err != nil {
			t.Fatal(err)
		}
		f.settle(a, b)
		f.nothingForged(theirJob, kept.ID)
		if err := d.Ack(ctx); err != nil {
			t.Errorf("b's own ack: %v", err)
		}
		for {
			bound, cancel := context.WithTimeout(ctx, time.Second)
			u, err := watch.Next(bound)
			cancel()
			if err != nil {
				break
			}
			if u.Progress != nil {
				t.Errorf("the publisher sees progress: %+v", u.Progress)
			}
		}
	})
}

// Hosts are of one account, so that a control request can be put before b by way of a reply. b can
// tell it from the publisher's.
func TestForgedControl(t *testing.T) {
	forBoth(t, func(t *testing.T, f *testFleet) {
		ctx, a, b := t.Context(), f.raw("a"), f.worker("b")
		signer, err := secret.LoadOrCreateSigner(f.keys)
		if err != nil {
			t.Fatal(err)
		}
		authority, err := secret.NewVerifier(time.Hour, signer.Public())
		if err != nil {
			t.Fatal(err)
		}
		forged := make(chan error, 16)
		stop, err := b.ServeControl(zone, "b", func(_ context.Context, m bus.ControlMessage) messages.ControlReply {
			r := messages.ControlReply{Version: messages.Version, JobID: m.JobID, Reply: messages.ReplyCancelling}
			if err := authority.Verify(m.Subject, m.Signature, m.Data); err != nil {
				forged <- err
				r.Reply, r.Error = messages.ReplyRefused, messages.FailureOf(err)
			}
			return r
		})
		if err != nil {
			t.Fatal(err)
		}
		defer stop()
		request := messages.ControlRequest{Version: messages.Version, Action: messages.ActionCancel, JobID: ulid.Make().String(), IssuedAt: time.Now()}
		data, err := json.Marshal(request)
		if err != nil {
			t.Fatal(err)
		}
		mine := nats.NewMsg(messages.EventSubject(zone, "a", request.JobID, messages.KindAccepted))
		mine.Data = data
		mine.Header.Set(messages.SignatureHeader, "sig1."+signer.Public()+".AAAA."+messages.ControlSubject(zone, "b"))
		if _, err := a.RequestMsg(mine, patience); err != nil {
			t.Fatal(err)
		}
		get := "$JS.API.DIRECT.GET." + messages.EventStream + "." + mine.Subject
		signed := f.dial(f.as(bus.Config{Creds: access.PublisherCreds, NKey: access.PublisherNKey, Sign: signer.Sign}))
		// The publisher's own comes through, and then a's has been seen, if it is: both go to b in order.
		late := time.After(patience)
		for seen := false; !seen; {
			if err := a.PublishRequest(get, messages.ControlSubject(zone, "b"), nil); err != nil {
				t.Fatal(err)
			}
			if r, err := signed.Control(ctx, zone, "b", request); err == nil && r.Reply != messages.ReplyCancelling {
				t.Fatalf("the publisher's own request: %+v", r)
			}
			select {
			case err := <-forged:
				t.Logf("a's request to b: %v", err)
				if messages.CodeOf(err) != messages.CodeCommandForged {
					t.Error(err)
				}
				seen = true
			case <-late:
				t.Fatal("a's request did not reach b: this test shows nothing")
			default:
			}
		}
	})
}

// requests are what a host may ask, each answered with something else.
func requests(jobs, job string) map[string]*nats.Msg {
	msg := func(subject, data string) *nats.Msg {
		m := nats.NewMsg(subject)
		m.Data = []byte(data)
		return m
	}
	return map[string]*nats.Msg{
		"a PubAck":         msg(messages.EventSubject(zone, "a", job, messages.KindRetrying), "{}"),
		"a bucket's ack":   msg(bus.BucketSubject(messages.CatalogBucket, messages.CatalogKey(zone, "a", job)), "{}"),
		"a direct get":     msg("$JS.API.DIRECT.GET."+messages.EventStream+"."+messages.EventSubject(zone, "a", job, messages.KindAccepted), ""),
		"a 404":            msg("$JS.API.DIRECT.GET."+messages.EventStream+"."+messages.EventSubject(zone, "a", job, messages.KindCancelled), ""),
		"a consumer info":  msg("$JS.API.CONSUMER.INFO."+jobs+".host_a", ""),
		"its own command":  msg("$JS.API.DIRECT.GET."+jobs+"."+messages.JobSubject(zone, "a", job), ""),
		"a pull":           msg("$JS.API.CONSUMER.MSG.NEXT."+jobs+".host_a", `{"batch":1,"no_wait":true}`),
		"a bad pull":       msg("$JS.API.CONSUMER.MSG.NEXT."+jobs+".host_a", `nonsense`),
		"an ack of an ack": msg("$JS.ACK."+jobs+".host_a.1.1.1.1.0", ""),
	}
}

// settle waits until the server has done what a asked: it works off a connection in order, and what
// it answers to others goes through the same streams.
func (f *testFleet) settle(a *raw, b *bus.Bus) {
	f.t.Helper()
	for range 3 {
		m := nats.NewMsg(messages.EventSubject(zone, "a", ulid.Make().String(), messages.KindAccepted))
		if _, err := a.RequestMsg(m, patience); err != nil {
			f.t.Fatal(err)
		}
		if err := b.PublishEvent(f.t.Context(), event("b", ulid.Make().String(), messages.KindAccepted)); err != nil {
			f.t.Fatal(err)
		}
	}
}

// nothingForged checks that all that is stored was published by its owner.
func (f *testFleet) nothingForged(theirJob, kept string) {
	f.t.Helper()
	ctx := f.t.Context()
	if _, err := f.publish.Backup(ctx, kept); err != nil {
		f.t.Errorf("b's catalog entry: %v", err)
	}
	if _, err := f.publish.Host(ctx, zone, "b"); err != nil {
		f.t.Errorf("b's announcement: %v", err)
	}
	if e, err := f.publish.JobEvents(ctx, zone, "b", theirJob); err != nil || len(e) != 0 {
		f.t.Errorf("events of b's job: %+v, %v", e, err)
	}
	if err := f.publish.PublishEvent(ctx, event("b", theirJob, messages.KindSucceeded)); err != nil {
		f.t.Error(err)
	}
	if e, err := f.publish.FinalEvent(ctx, zone, "b", theirJob); err != nil {
		f.t.Errorf("b's final event is not stored: %v, %v", e, err)
	}
	stored := 0
	err := f.publish.EachCommand(ctx, bus.Range{Zone: zone}, func(c bus.StoredCommand) {
		if stored++; !strings.Contains(string(c.Data), c.Job) {
			f.t.Errorf("a job for %s was put there: %s", c.Host, c.Data)
		}
	})
	if err != nil || stored == 0 {
		f.t.Errorf("%d commands, %v", stored, err)
	}
}

// A passphrase that was sealed for b is nothing to a.
func TestSealedForAnother(t *testing.T) {
	f := newFleet(t, access.JWT)
	p, err := secret.NewPassphrase([]byte("correct horse"))
	if err != nil {
		t.Fatal(err)
	}
	public, err := f.sealers["b"].Public()
	if err != nil {
		t.Fatal(err)
	}
	sealed, err := secret.Seal(public, p)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.sealers["b"].Open(sealed); err != nil {
		t.Error(err)
	}
	_, err = f.sealers["a"].Open(sealed)
	if messages.CodeOf(err) != messages.CodePassphraseForeign {
		t.Errorf("a opened it: %v", err)
	}
	t.Log(fmt.Sprint(err))
}
