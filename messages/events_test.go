package messages_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"

	m "github.com/nasfleet/nasfleet/messages"
)

func TestMsgID(t *testing.T) {
	base := m.Event{Zone: "z1", Host: "h1", JobID: jobID, Kind: m.KindRetrying, Attempt: 2}
	if got, want := base.MsgID(), "z1.h1."+jobID+".retrying.2"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
	again := base
	again.Time, again.Seconds, again.Notes = issuedAt, 3, []string{"x"}
	if again.MsgID() != base.MsgID() {
		t.Error("the same step published again has another id")
	}
	for name, change := range map[string]func(*m.Event){
		"zone":    func(e *m.Event) { e.Zone = "z2" },
		"host":    func(e *m.Event) { e.Host = "h2" },
		"job":     func(e *m.Event) { e.JobID = backupID },
		"kind":    func(e *m.Event) { e.Kind = m.KindFailed },
		"attempt": func(e *m.Event) { e.Attempt = 3 },
	} {
		other := base
		if change(&other); other.MsgID() == base.MsgID() {
			t.Errorf("another %s has the same id", name)
		}
	}
}

func TestFinal(t *testing.T) {
	for kind, want := range map[m.Kind]bool{
		m.KindAccepted: false, m.KindVerified: false, m.KindRetrying: false,
		m.KindSucceeded: true, m.KindFailed: true, m.KindCancelled: true, "": false,
	} {
		if kind.Final() != want {
			t.Errorf("%q: %v", kind, !want)
		}
	}
}

func TestFailureOf(t *testing.T) {
	full := m.Errorf(m.CodeTargetFull, "write vda: %w", io.ErrShortWrite)
	tests := []struct {
		name string
		err  error
		want *m.Failure
	}{
		{"nil", nil, nil},
		{"plain", io.EOF, &m.Failure{Code: m.CodeInternal, Message: "EOF", Hint: m.CodeInternal.Hint(), Retryable: true}},
		{"coded", full, &m.Failure{Code: m.CodeTargetFull, Message: "target_full: write vda: short write", Hint: m.CodeTargetFull.Hint()}},
		{"wrapped", fmt.Errorf("job: %w", full), &m.Failure{Code: m.CodeTargetFull, Message: "job: target_full: write vda: short write", Hint: m.CodeTargetFull.Hint()}},
		{"joined", errors.Join(io.EOF, full), &m.Failure{Code: m.CodeTargetFull, Message: "EOF\ntarget_full: write vda: short write", Hint: m.CodeTargetFull.Hint()}},
		{"outermost", m.Errorf(m.CodeMountFailed, "no: %w", full), &m.Failure{Code: m.CodeMountFailed, Message: "mount_failed: no: target_full: write vda: short write", Hint: m.CodeMountFailed.Hint(), Retryable: true}},
		{"hint", full.WithHint("Free %d GiB.", 3), &m.Failure{Code: m.CodeTargetFull, Message: "target_full: write vda: short write", Hint: "Free 3 GiB."}},
		{"no cause", &m.Error{Code: m.CodeTimeout}, &m.Failure{Code: m.CodeTimeout, Message: "timeout", Hint: m.CodeTimeout.Hint(), Retryable: true}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if diff := cmp.Diff(tt.want, m.FailureOf(tt.err)); diff != "" {
				t.Error(diff)
			}
		})
	}
	if full.Hint != "" {
		t.Error("WithHint changed its receiver")
	}
}

// TestFailureIsBounded: who sends a huge command cannot make its refusal too large to publish.
func TestFailureIsBounded(t *testing.T) {
	for _, s := range []string{"x", "é", "\x01", "\xff"} {
		huge := edit(t, m.TypeTake, set("vm", strings.Repeat(s, 1<<20)))
		_, _, err := m.Decode([]byte(huge))
		refused(t, err, m.CodeInvalidMessage, "vm")
		f := m.FailureOf(fmt.Errorf("%s %w", strings.Repeat(s, 5000), err))
		if len(f.Message) > 5000 || !utf8.ValidString(f.Message) {
			t.Errorf("%q: a message of %d bytes", s, len(f.Message))
		}
		if data, err := json.Marshal(f); err != nil || len(data) > 32<<10 {
			t.Errorf("%q: an event of %d bytes (%v)", s, len(data), err)
		}
	}
}

func TestErrors(t *testing.T) {
	coded := m.Errorf(m.CodeTimeout, "late: %w", io.EOF)
	if !errors.Is(coded, io.EOF) {
		t.Error("the cause is lost")
	}
	if m.CodeOf(nil) != "" || m.CodeOf(io.EOF) != m.CodeInternal || m.CodeOf(fmt.Errorf("x: %w", coded)) != m.CodeTimeout {
		t.Error("CodeOf")
	}
	if m.EnsureCode(m.CodeTimeout, nil) != nil {
		t.Error("EnsureCode made an error of nil")
	}
	if err := m.EnsureCode(m.CodeInternal, coded); m.CodeOf(err) != m.CodeTimeout {
		t.Errorf("EnsureCode hid a code: %v", err)
	}
	if err := m.EnsureCode(m.CodeTimeout, io.EOF); m.CodeOf(err) != m.CodeTimeout || !errors.Is(err, io.EOF) {
		t.Errorf("EnsureCode: %v", err)
	}
}

func TestDecodeEvent(t *testing.T) {
	next, backups := issuedAt.Add(time.Minute), 3
	want := m.Event{
		Version: 1, Kind: m.KindRetrying, JobID: jobID, Type: m.TypeTake, Zone: "z1", Host: "h1", VM: "web-1", Time: issuedAt, Attempt: 2,
		Error:    &m.Failure{Code: m.CodeMountFailed, Message: "m", Hint: "h", Retryable: true, NextAttempt: &next},
		BackupID: backupID, Verified: &m.Verification{Disks: 1, Bytes: 2, Seconds: 0.5}, Restored: map[string]string{"vda": "/r/vda.qcow2"},
		Backups: &backups, Notes: []string{"sda left out"}, Seconds: 12.25,
		Backup: &m.CatalogEntry{ID: backupID, Zone: "z1", Host: "h1", VM: "web-1", JobID: backupID, CreatedAt: issuedAt, Mode: m.ModeFull,
			Disks: []m.CatalogDisk{{Name: "vda", File: "vda.qcow2", VirtualBytes: 3}}, BackupPath: "daily/a", Repository: repo()},
	}
	data, err := json.Marshal(want)
	if err != nil {
		t.Fatal(err)
	}
	newer := strings.TrimSuffix(string(data), "}") + `,"colour":"blue"}`
	for _, in := range []string{string(data), newer} {
		got, err := m.DecodeEvent([]byte(in))
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Error(diff)
		}
	}
	if want.Backup.Ref() != backupRef() {
		t.Errorf("the backup lies at %+v", want.Backup.Ref())
	}
	for _, bad := range []string{"", "x", "[]", `{"attempt":"1"}`, string(data) + "{}"} {
		got, err := m.DecodeEvent([]byte(bad))
		refused(t, err, m.CodeInvalidMessage, "not an event")
		if diff := cmp.Diff(m.Event{}, got); diff != "" {
			t.Errorf("%q: part of an event came with the error: %s", bad, diff)
		}
	}
}
