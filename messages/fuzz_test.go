package messages_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	m "github.com/nasfleet/nasfleet/messages"
)

// FuzzDecode: nothing makes Decode panic; what it takes is valid, exact JSON and stays the same
// through Encode and Decode; what it refuses has a code and never comes with a command.
func FuzzDecode(f *testing.F) {
	for _, cmd := range valid() {
		data, err := m.Encode(cmd)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	examples, err := filepath.Glob("../docs/schema/examples/*.json")
	if err != nil || len(examples) == 0 {
		f.Fatalf("no examples (%v)", err)
	}
	for _, name := range examples {
		data, err := os.ReadFile(name)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	f.Add([]byte(`{"version":1,"type":"TakeBackup","VM":"a","details":{},"details":null}`))
	f.Add([]byte(`{"version":2}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		cmd, h, err := m.Decode(data)
		if h.JobID != "" && m.CheckID("job_id", h.JobID) != nil || len(h.Type) > len(m.TypeConsolidate) {
			t.Fatalf("the header has the job id %q and the type %q", h.JobID, h.Type)
		}
		if err != nil {
			wellCoded(t, err)
			if cmd != nil {
				t.Fatalf("a command came with %v", err)
			}
			return
		}
		if err := cmd.Validate(); err != nil {
			t.Fatalf("decoded, but not valid: %v", err)
		}
		if diff := cmp.Diff(h, cmd.Head()); diff != "" {
			t.Fatal(diff)
		}
		again, err := m.Encode(cmd)
		if err != nil {
			t.Fatal(err)
		}
		got, _, err := m.Decode(again)
		if err != nil {
			t.Fatalf("%s: %v", again, err)
		}
		if diff := cmp.Diff(cmd, got); diff != "" {
			t.Fatal(diff)
		}
	})
}

// FuzzParseDetails: details are read the same from a map and from JSON, and survive both.
func FuzzParseDetails(f *testing.F) {
	f.Add([]byte(`{"compression":"true","compression_type":"zlib","encryption":"true","encryption_passphrase":"sealed1.XA.b","bandwidth_limit":"12","integrity_check":"true"}`))
	f.Add([]byte(`{"encrytpion":"true"}`))
	f.Add([]byte(`{"bandwidth_limit":"-1"}`))
	f.Add([]byte(`{"bandwidth_limit":null,"compression":"\u0074rue"}`))
	f.Add([]byte(`{"encryption":"true","encryption_passphrase":"in the clear"}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		var d m.Details
		err := json.Unmarshal(data, &d)
		var raw map[string]string
		if json.Unmarshal(data, &raw) == nil && !hasNull(data) {
			parsed, perr := m.ParseDetails(raw)
			if m.CodeOf(err) != m.CodeOf(perr) && m.CodeOf(err) != m.CodeUnknownDetail {
				t.Fatalf("JSON says %v, the map says %v", err, perr)
			}
			if err == nil && parsed != d {
				t.Fatalf("JSON gives %v, the map gives %v", d, parsed)
			}
		}
		if err != nil {
			if json.Valid(data) {
				wellCoded(t, err)
			}
			if d != (m.Details{}) {
				t.Fatalf("%v came with %v", d, err)
			}
			return
		}
		if d.BandwidthLimit < 0 || d.BandwidthLimit > 1<<30 || d.Encryption && d.Passphrase == "" || d.Type() != m.Zstd && d.Type() != m.Zlib {
			t.Fatalf("taken: %+v", d.Map())
		}
		again, err := m.ParseDetails(d.Map())
		if err != nil || again != d {
			t.Fatalf("%v became %v (%v)", d.Map(), again.Map(), err)
		}
	})
}

// FuzzDecodeEvent: nothing makes DecodeEvent panic, and what it takes stays the same.
func FuzzDecodeEvent(f *testing.F) {
	f.Add([]byte(`{"version":1,"kind":"failed","time":"2026-02-03T04:05:06.7Z","error":{"code":"timeout","next_attempt":"2026-02-03T04:05:06Z"},"restored":{"vda":"/x"},"backups":0,"seconds":1e-7}`))
	f.Add([]byte(`{"backup":{"disks":[{"name":"vda"}]},"verified":{}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		e, err := m.DecodeEvent(data)
		if err != nil {
			wellCoded(t, err)
			return
		}
		once, err := json.Marshal(e)
		if err != nil {
			t.Fatal(err)
		}
		e, err = m.DecodeEvent(once)
		if err != nil {
			t.Fatalf("%s: %v", once, err)
		}
		twice, err := json.Marshal(e)
		if err != nil || string(once) != string(twice) {
			t.Fatalf("%s\nbecame %s (%v)", once, twice, err)
		}
	})
}

// wellCoded: the error can be answered by an event that tells a person what to do.
func wellCoded(t *testing.T, err error) {
	t.Helper()
	code := m.CodeOf(err)
	if code == m.CodeInternal || code.Hint() == "" || code.Retryable() {
		t.Fatalf("code %q for %v", code, err)
	}
}

func hasNull(data []byte) bool {
	var raw map[string]*string
	if json.Unmarshal(data, &raw) != nil || raw == nil {
		return true
	}
	for _, v := range raw {
		if v == nil {
			return true
		}
	}
	return false
}
