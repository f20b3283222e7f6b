package messages_test

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	m "github.com/nasfleet/nasfleet/messages"
)

func TestDecodeControlRequest(t *testing.T) {
	const id = `"issued_at":"2026-02-03T04:05:06Z","job_id":"` + jobID + `"`
	for _, c := range []struct {
		data string
		code m.Code
	}{
		{`{"version":1,"action":"cancel",` + id + `}`, ""},
		{`{"version":1,"action":"throttle",` + id + `,"bandwidth_limit":0}`, ""},
		{`{"version":1,"action":"throttle",` + id + `,"bandwidth_limit":1073741824}`, ""},
		{`{"version":1,"action":"throttle",` + id + `,"bandwidth_limit":1073741825}`, m.CodeInvalidDetail},
		{`{"version":1,"action":"throttle",` + id + `,"bandwidth_limit":-1}`, m.CodeInvalidDetail},
		{`{"version":1,"action":"throttle",` + id + `,"bandwidth_limit":1.5}`, m.CodeInvalidMessage},
		{`{"version":1,"action":"throttle",` + id + `,"bandwidth_limit":null}`, m.CodeInvalidMessage},
		{`{"version":1,"action":"throttle",` + id + `}`, m.CodeInvalidMessage},
		{`{"version":1,"action":"cancel",` + id + `,"bandwidth_limit":1}`, m.CodeInvalidMessage},
		{`{"version":1,"action":"pause",` + id + `}`, m.CodeInvalidMessage},
		{`{"version":1,"action":"cancel",` + id + `,"why":""}`, m.CodeInvalidMessage},
		{`{"version":1,"action":"cancel","ACTION":"cancel",` + id + `}`, m.CodeInvalidMessage},
		{`{"version":1,"action":"cancel",` + id + `,` + id + `}`, m.CodeInvalidMessage},
		{`{"version":1,"action":"cancel",` + id + `} {}`, m.CodeInvalidMessage},
		{`{"version":1,"action":"cancel","job_id":"../1"}`, m.CodeInvalidMessage},
		{`{"action":"cancel",` + id + `}`, m.CodeInvalidMessage},
		{`{"version":1,"action":"cancel","job_id":"` + jobID + `"}`, m.CodeInvalidMessage},
		{`{"version":2,"action":"cancel",` + id + `,"force":true}`, m.CodeUnsupportedVersion},
		{"null", m.CodeInvalidMessage},
		{"", m.CodeInvalidMessage},
	} {
		if r, err := m.DecodeControlRequest([]byte(c.data)); m.CodeOf(err) != c.code || (err == nil && r.JobID != jobID) {
			t.Errorf("%s: %+v, %v", c.data, r, err)
		}
	}
}

func TestDecodeControlReply(t *testing.T) {
	req := m.ControlRequest{JobID: jobID}
	failure := m.FailureOf(m.Errorf(m.CodeJobOver, "it has succeeded"))
	for name, c := range map[string]struct {
		reply m.ControlReply
		ok    bool
	}{
		"cancelled":            {m.ControlReply{Version: 1, JobID: jobID, Reply: m.ReplyCancelled}, true},
		"refused":              {m.ControlReply{Version: 1, JobID: jobID, Reply: m.ReplyRefused, Error: failure}, true},
		"refused, no reason":   {m.ControlReply{Version: 1, JobID: jobID, Reply: m.ReplyRefused}, false},
		"noted, and an error":  {m.ControlReply{Version: 1, JobID: jobID, Reply: m.ReplyNoted, Error: failure}, false},
		"about another job":    {m.ControlReply{Version: 1, JobID: backupID, Reply: m.ReplyNoted}, false},
		"of a kind from later": {m.ControlReply{Version: 1, JobID: jobID, Reply: "paused"}, false},
	} {
		data, err := json.Marshal(c.reply)
		if err != nil {
			t.Fatal(err)
		}
		got, err := m.DecodeControlReply(req, data)
		if (err == nil) != c.ok {
			t.Errorf("%s: %v", name, err)
		}
		if diff := cmp.Diff(c.reply, got); err == nil && diff != "" {
			t.Errorf("%s: %s", name, diff)
		}
	}
	if _, err := m.DecodeControlReply(req, []byte("hello")); m.CodeOf(err) != m.CodeInvalidMessage {
		t.Error(err)
	}
	grown := `{"version":1,"job_id":"` + jobID + `","reply":"noted","since":"later"}`
	if _, err := m.DecodeControlReply(req, []byte(grown)); err != nil {
		t.Errorf("a reply that has grown: %v", err)
	}
}

func TestCancelledEvent(t *testing.T) {
	cmd := validTake()
	e := m.Cancelled("z1", "h1", cmd, 2, m.Errorf(m.CodeCancelled, "cancelled on request"))
	if e.Kind != m.KindCancelled || e.JobID != cmd.JobID || e.Type != m.TypeTake || e.VM != cmd.VM || e.Zone != "z1" || e.Host != "h1" ||
		e.Attempt != 2 || e.Error == nil || e.Error.Code != m.CodeCancelled || time.Since(e.Time) > time.Minute {
		t.Errorf("%+v", e)
	}
}

func TestThrottledEventsAreEachStored(t *testing.T) {
	e := m.Event{Zone: "z1", Host: "h1", JobID: jobID, Kind: m.KindThrottled, Attempt: 1, Time: issuedAt}
	data, err := json.Marshal(e)
	if err != nil {
		t.Fatal(err)
	}
	again, err := m.DecodeEvent(data)
	if err != nil || again.MsgID() != e.MsgID() {
		t.Errorf("the same change published again has another id (%v)", err)
	}
	later := e
	later.Time = e.Time.Add(time.Nanosecond)
	if later.MsgID() == e.MsgID() {
		t.Error("another change has the same id")
	}
}

func TestHeaderTimeout(t *testing.T) {
	for timeout, ok := range map[int]bool{0: true, 1: true, 30 * 24 * 3600: true, -1: false, 30*24*3600 + 1: false} {
		cmd := validTake()
		cmd.Timeout = timeout
		err := cmd.Validate()
		if (err == nil) != ok || err != nil && (m.CodeOf(err) != m.CodeInvalidMessage || !strings.Contains(err.Error(), "timeout")) {
			t.Errorf("%d: %v", timeout, err)
		}
	}
}

// FuzzDecodeControlRequest: nothing makes it panic; what it takes is valid and stays the same; what
// it refuses has a code.
func FuzzDecodeControlRequest(f *testing.F) {
	f.Add([]byte(`{"version":1,"action":"throttle","issued_at":"2026-02-03T04:05:06Z","job_id":"` + jobID + `","bandwidth_limit":7}`))
	f.Add([]byte(`{"version":1,"action":"cancel","issued_at":"2026-02-03T04:05:06.7+01:00","job_id":"` + jobID + `"}`))
	f.Add([]byte(`{"version":9}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := m.DecodeControlRequest(data)
		if r.JobID != "" && m.CheckID("job_id", r.JobID) != nil {
			t.Fatalf("job id %q", r.JobID)
		}
		if err != nil {
			wellCoded(t, err)
			return
		}
		again, err := json.Marshal(r)
		if err != nil {
			t.Fatal(err)
		}
		got, err := m.DecodeControlRequest(again)
		if err = errors.Join(err, r.Validate()); err != nil || !cmp.Equal(r, got) {
			t.Fatalf("%s became %+v (%v)", data, got, err)
		}
	})
}
