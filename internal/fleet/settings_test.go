package fleet

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"pgregory.net/rapid"

	"github.com/nasfleet/nasfleet/internal/fleet/fleettest"
	"github.com/nasfleet/nasfleet/messages"
)

func passphrases() *Passphrases {
	return NewPassphrases(strings.NewReader(fleettest.Passphrase + "\n"))
}

func nas() RepositorySettings { return RepositorySettings{Repo: "/nas"} }

func TestTakeJobMakesTheCommand(t *testing.T) {
	job, err := TakeJob(Source{Zone: "z1", Host: "h1", Images: []string{"/a", "/b"}, ImageFormat: "raw"}, TakeSettings{
		RepositorySettings: RepositorySettings{RepoType: "nfs", RepoAddress: "s:/e", RepoOptions: "ro", BackupPath: "t/1"},
		Compress:           new(true), CompressionType: "zlib", Encrypt: new(true), PassphraseFile: "-", Bandwidth: new(7), Verify: new(true),
		Quiesce: "true", Mode: "auto", Detail: map[string]string{"bandwidth_limit": "7"}, Attempts: 4,
	}, passphrases())
	if err != nil {
		t.Fatal(err)
	}
	want := &messages.TakeBackup{
		Header:     messages.Header{Version: 1, Type: messages.TypeTake, JobID: job.ID(), Attempts: 4},
		Images:     []messages.Image{{Path: "/a", Format: "raw"}, {Path: "/b", Format: "raw"}},
		BackupPath: "t/1", Repository: messages.Repository{Type: "nfs", Address: "s:/e", MountOptions: "ro"},
		Quiesce: messages.QuiesceBestEffort, Mode: messages.ModeAuto,
		Details: messages.Details{Compression: true, CompressionType: "zlib", Encryption: true, BandwidthLimit: 7, IntegrityCheck: true},
	}
	if diff := cmp.Diff(want, job.Command, cmpopts.IgnoreFields(messages.Header{}, "IssuedAt")); diff != "" {
		t.Error(diff)
	}
	// The passphrase is not in the command before it is sealed, and a job does not print it.
	if s := fmt.Sprintf("%+v %#v", job, job.sealings); strings.Contains(s, "battery") {
		t.Error(s)
	}
	if _, err := messages.Encode(job.Command); messages.CodeOf(err) != messages.CodePassphraseMissing {
		t.Errorf("a command that was not sealed could travel: %v", err)
	}
}

func TestTakeJobRefuses(t *testing.T) {
	for name, s := range map[string]struct {
		settings TakeSettings
		want     string
	}{
		"no repository":              {TakeSettings{}, "no repository"},
		"no address":                 {TakeSettings{RepositorySettings: RepositorySettings{RepoType: "nfs"}}, "no repository"},
		"two repositories":           {TakeSettings{RepositorySettings: RepositorySettings{Repo: "/a", RepoAddress: "b"}}, "goes without"},
		"passphrase for nothing":     {TakeSettings{RepositorySettings: nas(), PassphraseFile: "-", Encrypt: new(false)}, "no encryption"},
		"two passphrases":            {TakeSettings{RepositorySettings: nas(), Encrypt: new(true), PassphraseFile: "-", Detail: map[string]string{"encryption_passphrase": "sealed1.x"}}, "contradict"},
		"plain passphrase":           {TakeSettings{RepositorySettings: nas(), Encrypt: new(true), Detail: map[string]string{"encryption_passphrase": "hunter2"}}, "plain text"},
		"unknown detail":             {TakeSettings{RepositorySettings: nas(), Detail: map[string]string{"encrypted": "true"}}, `unknown detail "encrypted"`},
		"contradiction":              {TakeSettings{RepositorySettings: nas(), Compress: new(true), Detail: map[string]string{"compression": "false"}}, "contradicts a flag"},
		"unknown compression":        {TakeSettings{RepositorySettings: nas(), CompressionType: "lz4"}, "compression_type"},
		"bandwidth below 0":          {TakeSettings{RepositorySettings: nas(), Bandwidth: new(-1)}, "bandwidth_limit"},
		"path out of the repository": {TakeSettings{RepositorySettings: RepositorySettings{Repo: "/nas", BackupPath: "../x"}}, "backup_path"},
	} {
		_, err := TakeJob(Source{Zone: "z1", Host: "h1", VM: "v"}, s.settings, passphrases())
		if err == nil || ClassOf(err) != Usage || !strings.Contains(err.Error(), s.want) || strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestDetailsNeverLoseAFeature: whatever a flag or a detail asks for is in the command, or the
// command is refused.
func TestDetailsNeverLoseAFeature(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		s := TakeSettings{PassphraseFile: "-"}
		for name, flag := range map[string]**bool{"compress": &s.Compress, "encrypt": &s.Encrypt, "verify": &s.Verify} {
			*flag = rapid.SampledFrom([]*bool{nil, new(true), new(false)}).Draw(t, name)
		}
		if limit := rapid.IntRange(-1, 3).Draw(t, "bandwidth"); limit >= 0 {
			s.Bandwidth = &limit
		}
		for _, key := range []string{messages.DetailCompression, messages.DetailEncryption, messages.DetailIntegrityCheck} {
			if v := rapid.SampledFrom([]string{"", "true", "false"}).Draw(t, key); v != "" {
				s.Detail = merge(s.Detail, key, v)
			}
		}
		if v := rapid.IntRange(-1, 3).Draw(t, "limit"); v >= 0 {
			s.Detail = merge(s.Detail, messages.DetailBandwidthLimit, fmt.Sprint(v))
		}
		got, given, err := s.details()
		if err != nil {
			if ClassOf(err) != Usage {
				t.Fatal(err)
			}
			return
		}
		for _, f := range []struct {
			key  string
			flag *bool
			got  bool
		}{
			{messages.DetailCompression, s.Compress, got.Compression}, {messages.DetailEncryption, s.Encrypt, got.Encryption},
			{messages.DetailIntegrityCheck, s.Verify, got.IntegrityCheck},
		} {
			detail, inDetail := s.Detail[f.key]
			want := f.flag != nil && *f.flag || detail == "true"
			if f.got != want || given[f.key] != (f.flag != nil || inDetail) {
				t.Fatalf("%s is %t and given %t, want %t", f.key, f.got, given[f.key], want)
			}
		}
		want := 0
		if _, err := fmt.Sscan(s.Detail[messages.DetailBandwidthLimit], &want); err != nil && s.Bandwidth != nil {
			want = *s.Bandwidth
		}
		if got.BandwidthLimit != want {
			t.Fatalf("a limit of %d, want %d", got.BandwidthLimit, want)
		}
	})
}

func merge(m map[string]string, key, value string) map[string]string {
	m = maps.Clone(m)
	if m == nil {
		m = map[string]string{}
	}
	m[key] = value
	return m
}

func TestTargetsOverrideWithoutTouchingEachOther(t *testing.T) {
	base := TakeSettings{RepositorySettings: nas(), Compress: new(true), Detail: map[string]string{"bandwidth_limit": "7"}}
	jobs, err := parseTargets([]byte(`
- {vm: a, overrides: &slow {compress: false, detail: {bandwidth_limit: 1, integrity_check: true}, mode: "auto"}}
- {vm: b}
- {vm: c, host: h2, overrides: *slow}
`), Source{Zone: "z1", Host: "h1"}, base, passphrases())
	if err != nil {
		t.Fatal(err)
	}
	slow := messages.Details{BandwidthLimit: 1, IntegrityCheck: true}
	want := []messages.Details{slow, {Compression: true, BandwidthLimit: 7}, slow}
	for i, job := range jobs {
		if got := job.Command.(*messages.TakeBackup).Details; got != want[i] {
			t.Errorf("target %d: %v, want %v", i+1, got, want[i])
		}
	}
	if jobs[2].Host != "h2" || jobs[1].Host != "h1" || jobs[1].Zone != "z1" {
		t.Errorf("%+v", jobs)
	}
	if len(base.Detail) != 1 {
		t.Errorf("the settings were changed: %v", base.Detail)
	}
}

func FuzzTargets(f *testing.F) {
	f.Add([]byte(`[{"zone": "z1", "host": "h1", "vm": "a", "overrides": {"encrypt": true, "passphrase-file": "-"}}]`))
	f.Add([]byte("- {zone: z1, host: h1, images: [/a], image-format: raw, job-id: 01JD0000000000000000000001}\n"))
	f.Add([]byte("- &a {zone: z1, host: h1, vm: a}\n- *a\n---\n- {}\n"))
	f.Add([]byte("- {vm: a, overrides: {detail: {encryption: true}}}"))
	f.Fuzz(func(t *testing.T, data []byte) {
		if strings.Contains(string(data), "passphrase-file") {
			return // no files of this machine
		}
		jobs, err := parseTargets(data, Source{Zone: "z1", Host: "h1"}, TakeSettings{RepositorySettings: nas()}, passphrases())
		if err != nil {
			if ClassOf(err) != Usage || jobs != nil {
				t.Fatalf("%d jobs, %v", len(jobs), err)
			}
			return
		}
		for _, job := range jobs {
			if err := job.check(); err != nil {
				t.Fatalf("a job that cannot travel: %v", err)
			}
		}
	})
}

func TestPassphrasesAreReadOnce(t *testing.T) {
	file := filepath.Join(t.TempDir(), "p")
	if err := os.WriteFile(file, []byte("from the file\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	r := passphrases()
	for range 2 {
		p, err := r.Read("-")
		if err != nil || string(p.Bytes()) != fleettest.Passphrase {
			t.Fatalf("%d bytes, %v", len(p.Bytes()), err)
		}
	}
	p, err := r.Read(file)
	if err != nil || string(p.Bytes()) != "from the file" {
		t.Fatalf("%d bytes, %v", len(p.Bytes()), err)
	}
	r.Wipe()
	if p.Bytes() != nil {
		t.Error("a passphrase outlives Wipe")
	}
	if _, err := r.Read(filepath.Join(t.TempDir(), "none")); ClassOf(err) != Usage || !errors.Is(err, os.ErrNotExist) {
		t.Error(err)
	}
}

// TestTallyAddsUp: whatever events come, in whatever order, each job is counted in one place, the
// run is over when each job is, and an ended job stays as it is.
func TestTallyAddsUp(t *testing.T) {
	kinds := []messages.Kind{
		messages.KindAccepted, messages.KindVerified, messages.KindRetrying, messages.KindSucceeded, messages.KindFailed, messages.KindCancelled,
	}
	rapid.Check(t, func(t *rapid.T) {
		n := rapid.IntRange(1, 4).Draw(t, "jobs")
		jobs := make([]*Job, n)
		for i := range jobs {
			jobs[i] = &Job{Zone: "z1", Host: "h1", Command: &messages.DeleteBackup{Header: messages.Header{JobID: fmt.Sprint(i)}}}
		}
		r := newRun(jobs, ignore{})
		ended := make([]state, n)
		for range rapid.IntRange(0, 30).Draw(t, "steps") {
			i := rapid.IntRange(0, n-1).Draw(t, "job")
			if k := rapid.IntRange(0, len(kinds)+2).Draw(t, "step"); k < len(kinds) {
				r.event(messages.Event{JobID: fmt.Sprint(i), Kind: kinds[k]})
			} else if r.results[i].Err == nil && !r.results[i].Published {
				var err error
				if k == len(kinds) {
					err = errors.New("refused")
				}
				if r.states[i] != unsent { // it was stored: there are events of it
					err = nil
				}
				r.sent(i, false, err)
			}
			r.event(messages.Event{JobID: "another", Kind: messages.KindSucceeded})
			c := r.tally
			unsentJobs := 0
			for j, s := range r.states {
				if s == unsent {
					unsentJobs++
				}
				if ended[j] != unsent && ended[j] != s {
					t.Fatalf("job %d went from %d to %d", j, ended[j], s)
				}
				if s.over() {
					ended[j] = s
				}
			}
			if c.Queued+c.Running+c.Succeeded+c.Failed+c.Refused+unsentJobs != n {
				t.Fatalf("%+v and %d unsent do not add up to %d", c, unsentJobs, n)
			}
			over := !slices.ContainsFunc(r.states, func(s state) bool { return !s.over() })
			if over != (r.done.Err() != nil) || over != (c.Left() == 0) {
				t.Fatalf("over %v, done %v, %+v", over, r.done.Err(), c)
			}
		}
		r.end()
	})
}

// ignore is an Observer.
type ignore struct{}

func (ignore) Sent(Result, Tally)                {}
func (ignore) Event(*Job, messages.Event, Tally) {}
func (ignore) Progress(*Job, messages.Progress)  {}
