package main

import (
	"encoding/json"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/nasfleet/nasfleet/messages"
)

const (
	sourceDir = "../../../messages"
	schemaDir = "../../../docs/schema"
	sealed    = messages.SealedPrefix + "XA.b"
)

func read(t *testing.T, name string) []byte {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(schemaDir, name))
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// TestUpToDate: docs/schema is what the types give now, no more and no less.
func TestUpToDate(t *testing.T) {
	want, err := generate(sourceDir)
	if err != nil {
		t.Fatal(err)
	}
	for name, data := range want {
		if diff := cmp.Diff(string(data), string(read(t, name))); diff != "" {
			t.Errorf("%s is out of date; run go generate ./messages\n%s", name, diff)
		}
	}
	kept, err := filepath.Glob(filepath.Join(schemaDir, "*.json"))
	if err != nil || len(kept) != len(want) {
		t.Errorf("kept: %v, generated: %v (%v)", kept, slices.Sorted(maps.Keys(want)), err)
	}
}

// TestWrite: what is written from the root, as go generate does, is what the tests look at.
func TestWrite(t *testing.T) {
	out := t.TempDir()
	t.Chdir("../../..")
	if err := write("messages", out); err != nil {
		t.Fatal(err)
	}
	for _, v := range slices.Concat(commands(), requests(), reports()) {
		name := reflect.TypeOf(v).Name() + ".schema.json"
		got, err := os.ReadFile(filepath.Join(out, name))
		if err != nil {
			t.Fatal(err)
		}
		kept, err := os.ReadFile(filepath.Join("docs/schema", name))
		if err != nil || string(got) != string(kept) {
			t.Errorf("%s differs (%v)", name, err)
		}
	}
	if err := write("nowhere", out); err == nil {
		t.Error("a source that is not there is no error")
	}
}

// TestEveryFieldIsThere: no field is left out of the schemas.
func TestEveryFieldIsThere(t *testing.T) {
	var has func(t *testing.T, root, s object, typ reflect.Type)
	has = func(t *testing.T, root, s object, typ reflect.Type) {
		properties := s["properties"].(object)
		for f := range typ.Fields() {
			if f.Anonymous {
				has(t, root, s, f.Type)
				continue
			}
			name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
			p, ok := properties[name].(object)
			if !ok {
				t.Errorf("%s.%s is missing", typ, f.Name)
				continue
			}
			if ref, ok := p["$ref"].(string); ok {
				inner := f.Type
				if inner.Kind() == reflect.Pointer {
					inner = inner.Elem()
				}
				has(t, root, root["$defs"].(object)[strings.TrimPrefix(ref, "#/$defs/")].(object), inner)
			}
		}
	}
	for _, v := range slices.Concat(commands(), requests(), reports()) {
		typ := reflect.TypeOf(v)
		var s object
		if err := json.Unmarshal(read(t, typ.Name()+".schema.json"), &s); err != nil {
			t.Fatal(err)
		}
		has(t, s, s, typ)
		if s["description"] == nil {
			t.Errorf("%s is not described", typ)
		}
	}
}

func TestEnumsAreWhole(t *testing.T) {
	enums, err := constants(sourceDir)
	if err != nil {
		t.Fatal(err)
	}
	codes := map[any]bool{}
	for _, c := range enums["Code"] {
		codes[c] = true
	}
	for _, c := range messages.Codes() {
		if !codes[string(c)] {
			t.Errorf("code %s is missing", c)
		}
	}
	for name, want := range map[string]int{"Code": len(messages.Codes()), "Type": len(commands()), "Kind": len(messages.Kinds()), "Action": 2, "Reply": 5, "Mode": 3, "Quiesce": 3, "Phase": 5} {
		if len(enums[name]) != want {
			t.Errorf("%s: %v", name, enums[name])
		}
	}
}

// TestExamples: each example is a command that Decode takes and its schema allows.
func TestExamples(t *testing.T) {
	names, err := filepath.Glob(filepath.Join(schemaDir, "examples", "*.json"))
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for _, name := range names {
		t.Run(filepath.Base(name), func(t *testing.T) {
			data := read(t, filepath.Join("examples", filepath.Base(name)))
			_, h, err := messages.Decode(data)
			if err != nil {
				t.Fatal(err)
			}
			if seen[h.JobID] {
				t.Error("two examples have the same job id")
			}
			seen[h.JobID], seen[string(h.Type)] = true, true
			if !strings.HasPrefix(filepath.Base(name), string(h.Type)) {
				t.Errorf("it is a %s", h.Type)
			}
			if err := validateJSON(read(t, string(h.Type)+".schema.json"), data); err != nil {
				t.Error(err)
			}
		})
	}
	for _, v := range commands() {
		if name := reflect.TypeOf(v).Name(); !seen[name] {
			t.Errorf("no example of %s", name)
		}
	}
}

// TestSchemaAndDecoderAgree changes an example and asks both.
func TestSchemaAndDecoderAgree(t *testing.T) {
	dir := object{"type": "dir", "address": "/b"}
	backup := func(key string, value any) object {
		return object{"backup": object{"id": "01K5XZ8M4RA0T5B7C9D1E3F5G7", "vm": "a", "repository": dir, key: value}}
	}
	details := func(key string, value any) object { return object{"details": object{key: value}} }
	absent := struct{}{}
	tests := []struct {
		typ    messages.Type
		taken  bool
		change object
	}{
		{messages.TypeTake, true, object{}},
		{messages.TypeTake, true, object{"details": nil}},
		{messages.TypeTake, true, object{"details": absent, "mode": "auto", "quiesce": true, "attempts": 100}},
		{messages.TypeTake, true, object{"quiesce": "required", "backup_path": "", "vm": "日本 1"}},
		{messages.TypeTake, true, object{"repository": dir}},
		{messages.TypeTake, true, object{"vm": absent, "images": []any{"/a", object{"path": "/b"}, object{"path": "/c", "format": "raw"}}}},
		{messages.TypeTake, true, object{"details": object{"compression": nil, "compression_type": nil, "encryption": nil, "encryption_passphrase": nil, "bandwidth_limit": nil, "integrity_check": nil}}},
		{messages.TypeTake, true, object{"details": object{"encryption": "true", "encryption_passphrase": sealed}}},
		{messages.TypeTake, true, object{"details": object{"encryption": "false", "encryption_passphrase": ""}}},
		{messages.TypeTake, false, object{"vm": absent}},
		{messages.TypeTake, false, object{"images": []any{"/a"}}},
		{messages.TypeTake, false, object{"vm": absent, "images": []any{}}},
		{messages.TypeTake, false, object{"vm": absent, "images": []any{"a"}}},
		{messages.TypeTake, false, object{"vm": absent, "images": []any{object{"path": "/a", "format": "vmdk"}}}},
		{messages.TypeTake, false, object{"vm": absent, "images": []any{object{"format": "raw"}}}},
		{messages.TypeTake, false, object{"vm": absent, "images": []any{object{"path": "/a", "size": 1}}}},
		{messages.TypeTake, false, object{"vm": ""}},
		{messages.TypeTake, false, object{"vm": "-a"}},
		{messages.TypeTake, false, object{"vm": ".."}},
		{messages.TypeTake, false, object{"vm": "a/b"}},
		{messages.TypeTake, false, object{"vm": "a\n"}},
		{messages.TypeTake, false, object{"vm": "a\x00"}},
		{messages.TypeTake, false, object{"vm": strings.Repeat("a", 201)}},
		{messages.TypeTake, false, object{"vm": 1}},
		{messages.TypeTake, false, object{"VM": "a"}},
		{messages.TypeTake, false, object{"type": "takebackup"}},
		{messages.TypeTake, false, object{"type": absent}},
		{messages.TypeTake, false, object{"version": 0}},
		{messages.TypeTake, false, object{"version": 2}},
		{messages.TypeTake, false, object{"version": "1"}},
		{messages.TypeTake, false, object{"version": absent}},
		{messages.TypeTake, false, object{"job_id": "01k5xz8m4ra0t5b7c9d1e3f5g7"}},
		{messages.TypeTake, false, object{"job_id": "81K5XZ8M4RA0T5B7C9D1E3F5G7"}},
		{messages.TypeTake, false, object{"job_id": absent}},
		{messages.TypeTake, false, object{"issued_at": "yesterday"}},
		{messages.TypeTake, false, object{"issued_at": 1}},
		{messages.TypeTake, false, object{"issued_at": absent}},
		{messages.TypeTake, false, object{"attempts": 101}},
		{messages.TypeTake, false, object{"attempts": -1}},
		{messages.TypeTake, false, object{"attempts": 1.5}},
		{messages.TypeTake, false, object{"mode": "differential"}},
		{messages.TypeTake, false, object{"quiesce": "maybe"}},
		{messages.TypeTake, false, object{"quiesce": 1}},
		{messages.TypeTake, false, object{"backup_path": "/etc"}},
		{messages.TypeTake, false, object{"backup_path": strings.Repeat("a", 4096)}},
		{messages.TypeTake, false, object{"repository": absent}},
		{messages.TypeTake, false, object{"repository": object{"type": "nfs"}}},
		{messages.TypeTake, false, object{"repository": object{"type": "", "address": "a:/b"}}},
		{messages.TypeTake, false, object{"repository": object{"type": "-a", "address": "a:/b"}}},
		{messages.TypeTake, false, object{"repository": object{"type": "nfs", "address": "-b"}}},
		{messages.TypeTake, false, object{"repository": object{"type": "nfs", "address": "a:/b", "mount_options": "-o"}}},
		{messages.TypeTake, false, object{"repository": object{"type": "nfs", "address": "a:/b", "options": "ro"}}},
		{messages.TypeTake, false, object{"repository": object{"type": "dir", "address": "b"}}},
		{messages.TypeTake, false, object{"repository": object{"type": "dir", "address": "/b", "mount_options": "ro"}}},
		{messages.TypeTake, false, object{"details": []any{}}},
		{messages.TypeTake, false, details("encrytpion", "true")},
		{messages.TypeTake, false, details("Encryption", "true")},
		{messages.TypeTake, false, details("compression", true)},
		{messages.TypeTake, false, details("compression", "yes")},
		{messages.TypeTake, false, details("compression_type", "lz4")},
		{messages.TypeTake, false, details("encryption", "true")},
		{messages.TypeTake, false, details("encryption_passphrase", "in the clear")},
		{messages.TypeTake, false, details("bandwidth_limit", 100)},
		{messages.TypeTake, false, details("bandwidth_limit", "-1")},
		{messages.TypeTake, false, details("bandwidth_limit", "")},
		{messages.TypeTake, false, details("integrity_check", "full")},
		{messages.TypeTake, false, object{"details": object{"encryption": "true", "encryption_passphrase": nil}}},
		{messages.TypeTake, false, object{"details": object{"encryption": "true", "encryption_passphrase": ""}}},

		{messages.TypeRestore, true, object{"define": true, "force": true}},
		{messages.TypeRestore, true, object{"to_dir": absent, "format": absent, "to_vm": "a"}},
		{messages.TypeRestore, true, object{"to_dir": absent, "format": absent, "disks": absent, "to_rbd": object{"vda": "p/i"}}},
		{messages.TypeRestore, false, object{"to_dir": absent, "format": absent, "disks": absent, "to_rbd": object{}}},
		{messages.TypeRestore, false, object{"to_dir": absent, "format": absent, "disks": absent, "to_rbd": object{"vda": "p/n/i"}}},
		{messages.TypeRestore, false, object{"to_dir": absent, "format": absent, "disks": absent, "to_rbd": object{"../a": "p/i"}}},
		{messages.TypeRestore, false, object{"to_dir": absent, "format": absent, "to_rbd": object{"vda": "p/i"}, "disks": []any{"vda"}}},
		{messages.TypeRestore, false, object{"to_dir": absent, "format": absent, "disks": absent, "to_rbd": object{"vda": "p/i"}, "to_vm": "a"}},
		{messages.TypeRestore, false, object{"to_rbd": object{"vda": "p/i"}}},
		{messages.TypeRestore, true, details("encryption_passphrase", sealed)},
		{messages.TypeRestore, false, object{"to_dir": absent}},
		{messages.TypeRestore, false, object{"to_vm": "a"}},
		{messages.TypeRestore, false, object{"to_dir": absent, "to_vm": "a"}}, // the example has a format
		{messages.TypeRestore, false, object{"to_dir": absent, "format": absent, "to_vm": "a", "define": true}},
		{messages.TypeRestore, false, object{"to_dir": absent, "format": absent, "to_vm": "a/b"}},
		{messages.TypeRestore, false, object{"to_dir": "r"}},
		{messages.TypeRestore, false, object{"format": "vmdk"}},
		{messages.TypeRestore, false, object{"disks": []any{"../x"}}},
		{messages.TypeRestore, false, object{"disks": "vda"}},
		{messages.TypeRestore, false, object{"define": "true"}},
		{messages.TypeRestore, false, details("compression", "true")},
		{messages.TypeRestore, false, details("integrity_check", "true")},

		{messages.TypeVerify, true, object{"details": object{"bandwidth_limit": "3"}}},
		{messages.TypeVerify, true, backup("backup_path", "a/b")},
		{messages.TypeVerify, false, details("compression_type", "zstd")},
		{messages.TypeVerify, false, backup("id", "x")},
		{messages.TypeVerify, false, backup("vm", "..")},
		{messages.TypeVerify, false, backup("repository", object{})},
		{messages.TypeVerify, false, backup("disks", []any{})},
		{messages.TypeVerify, false, object{"backup": absent}},

		{messages.TypeDelete, true, backup("vm", "b")},
		{messages.TypeDelete, false, object{"details": object{}}},
		{messages.TypeDelete, false, object{"backup": "01K5XZ8M4RA0T5B7C9D1E3F5G7"}},

		{messages.TypeRekey, true, object{"old_revision": "01K5XZ8M4RA0T5B7C9D1E3F5G7"}},
		{messages.TypeRekey, false, object{"old_revision": "x"}},
		{messages.TypeRekey, false, object{"old_passphrase": absent}},
		{messages.TypeRekey, false, object{"old_passphrase": "plain"}},
		{messages.TypeRekey, false, object{"details": absent}},
		{messages.TypeRekey, false, object{"details": object{}}},
		{messages.TypeRekey, false, details("compression", "true")},

		{messages.TypeConsolidate, true, object{"chain_passphrase": absent, "details": absent}},
		{messages.TypeConsolidate, true, object{"details": nil}},
		{messages.TypeConsolidate, true, object{"chain_revision": "01K5XZ8M4RA0T5B7C9D1E3F5G7"}},
		{messages.TypeConsolidate, false, object{"chain_revision": "x"}},
		{messages.TypeConsolidate, false, object{"chain_passphrase": "plain"}},
		{messages.TypeConsolidate, false, object{"backup": absent}},
		{messages.TypeConsolidate, false, details("encryption", "true")},
		{messages.TypeConsolidate, false, object{"mode": "full"}},

		{messages.TypeList, true, object{"vm": "a", "backup_path": "b"}},
		{messages.TypeList, false, object{"vm": "a/b"}},
		{messages.TypeList, false, object{"details": object{}}},
		{messages.TypeList, false, object{"repository": absent}},
	}
	for _, tt := range tests {
		change, _ := json.Marshal(tt.change)
		t.Run(string(tt.typ)+string(change), func(t *testing.T) {
			var command object
			if err := json.Unmarshal(read(t, "examples/"+string(tt.typ)+".json"), &command); err != nil {
				t.Fatal(err)
			}
			for key, value := range tt.change {
				if command[key] = value; value == absent {
					delete(command, key)
				}
			}
			data, err := json.Marshal(command)
			if err != nil {
				t.Fatal(err)
			}
			if _, _, err := messages.Decode(data); (err == nil) != tt.taken {
				t.Errorf("Decode: %v", err)
			}
			if err := validateJSON(read(t, string(tt.typ)+".schema.json"), data); (err == nil) != tt.taken {
				t.Errorf("schema: %v", err)
			}
		})
	}
}

// TestReports: what a worker publishes is what the schemas say.
func TestReports(t *testing.T) {
	now, backups := time.Date(2026, 2, 3, 4, 5, 6, 7, time.UTC), 0
	entry := messages.CatalogEntry{
		ID: "01K5XZ8M4RA0T5B7C9D1E3F5G7", Zone: "z1", Host: "h1", VM: "a", JobID: "01K5XZ8M4RA0T5B7C9D1E3F5G7", CreatedAt: now, Mode: messages.ModeFull,
		Disks: []messages.CatalogDisk{{Name: "vda", File: "vda.qcow2"}}, Repository: messages.Repository{Type: "dir", Address: "/b"}, Notes: []string{"n"},
	}
	failure := messages.FailureOf(messages.Errorf(messages.CodeMountFailed, "x"))
	failure.NextAttempt = &now
	full := messages.Event{
		Version: 1, Kind: messages.KindRetrying, JobID: entry.ID, Type: messages.TypeTake, Zone: "z1", Host: "h1", VM: "a", Time: now, Attempt: 1,
		Error: failure, BackupID: entry.ID, Backup: &entry, Verified: &messages.Verification{Disks: 1, Bytes: 2, Seconds: 0.25},
		Restored: map[string]string{"vda": "/x"}, Backups: &backups, Notes: []string{"n"}, Seconds: 1.5,
	}
	unread := messages.Event{Version: 1, Kind: messages.KindFailed, Zone: "z1", Host: "h1", Time: now, Error: messages.FailureOf(os.ErrClosed)}
	progress := messages.Progress{JobID: entry.ID, Zone: "z1", Host: "h1", Phase: messages.PhaseCopying, Disks: []messages.DiskProgress{{Name: "vda", Done: 1, Total: 2}}}
	host := messages.HostInfo{Zone: "z1", Host: "h1", SealKey: "XA", Version: "1.0.0", StartedAt: now, SeenAt: now, Running: []string{}, Slots: 2}
	for _, v := range []any{full, unread, progress, messages.Progress{Phase: messages.PhaseMounting}, host, entry} {
		name := reflect.TypeOf(v).Name()
		schema := read(t, name+".schema.json")
		data, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		if err := validateJSON(schema, data); err != nil {
			t.Errorf("%s: %v", data, err)
		}
		newer := strings.TrimSuffix(string(data), "}") + `,"colour":"blue"}`
		if err := validateJSON(schema, []byte(newer)); err != nil {
			t.Errorf("%s may not grow: %v", name, err)
		}
		if err := validateJSON(schema, []byte(`{}`)); err == nil {
			t.Errorf("%s may be empty", name)
		}
	}
	bad, _ := json.Marshal(messages.Event{Kind: "exploded"})
	if err := validateJSON(read(t, "Event.schema.json"), bad); err == nil {
		t.Error("an event of a kind that is none is allowed")
	}
}
