package repository

import (
	"bytes"
	"errors"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"github.com/nasfleet/nasfleet/messages"
)

func sample() Manifest {
	m := manifest(location())
	m.Version, m.FinishedAt = ManifestVersion, m.CreatedAt.Add(time.Minute)
	m.Quiesced, m.FrozenSeconds, m.Consistency = true, 0.25, "file systems frozen"
	m.Encryption = Encryption{LUKS: true, Revision: "01K5XZ8M4RA0T5B7C9D1E3F5G7", RecoveryRevision: "01K5XW1Q2RA0T5B7C9D1E3F5G7"}
	m.Disks[0].LUKS, m.Disks[0].File = true, "vda.luks"
	m.Digest.Keyed = true
	m.Digest.WrappedKeys = append(m.Digest.WrappedKeys, []byte(`{"k":"AAAA"}`))
	m.Skipped = []Skipped{{Target: "hdc", Reason: "CD-ROM"}}
	return m
}

// unpadded compares manifests without the white space of opaque keys.
func unpadded(a, b Manifest) string {
	return cmp.Diff(a, b, cmpopts.IgnoreFields(Digest{}, "WrappedKeys"), cmpopts.EquateEmpty())
}

func TestManifestRoundTrip(t *testing.T) {
	data, err := sample().encode()
	check(t, err)
	got, err := DecodeManifest(data)
	check(t, err)
	if diff := unpadded(sample(), got); diff != "" {
		t.Fatal(diff)
	}
	if len(got.Digest.WrappedKeys) != 1 {
		t.Fatalf("keys: %s", got.Digest.WrappedKeys)
	}
}

// A field of a later release, in the same version, does no harm.
func TestManifestUnknownField(t *testing.T) {
	data, err := sample().encode()
	check(t, err)
	data = slices.Concat([]byte(`{"later": {"a": [1]},`), data[1:])
	got, err := DecodeManifest(data)
	check(t, err)
	if diff := unpadded(sample(), got); diff != "" {
		t.Fatal(diff)
	}
}

func TestManifestTooBig(t *testing.T) {
	_, err := DecodeManifest(make([]byte, maxManifestBytes+1))
	wantCode(t, err, messages.CodeBackupCorrupt)
}

// A newer manifest may use a known field in another way; it is refused as newer and not as corrupt.
func TestManifestNewer(t *testing.T) {
	_, err := DecodeManifest([]byte(`{"version": 9, "disks": "elsewhere"}`))
	wantCode(t, err, messages.CodeUnsupportedVersion)
}

func FuzzDecodeManifest(f *testing.F) {
	data, err := sample().encode()
	check(f, err)
	f.Add(data)
	plain := manifest(location())
	plain.Version, plain.FinishedAt = ManifestVersion, plain.CreatedAt
	data, err = plain.encode()
	check(f, err)
	f.Add(data)
	f.Add([]byte(`{"version":2}`))
	f.Add([]byte(`null`))
	for _, with := range []string{
		`"../../x"`, `"/etc/shadow"`, `"a,b=c"`, `"-rf"`, `"vda\u0000"`, `"vda\nb"`, `"\u202evda"`, `"ｖda"`, `"` + strings.Repeat("a", 300) + `"`, `{}`, `[]`, `1`,
	} {
		// In place of each name that there is.
		for _, old := range []string{`"vda"`, `"vda.qcow2"`, `"vda.digests"`, `"domain.xml"`, `"z1"`, `"qcow2"`, `"zstd"`, `"` + testID + `"`} {
			f.Add(bytes.ReplaceAll(data, []byte(old), []byte(with)))
		}
	}
	for _, number := range []string{"-1", "9223372036854775807", "9223372036854775808", "1e308", "1125899906842625", "0.5"} {
		f.Add(regexp.MustCompile(`_bytes": [0-9]+`).ReplaceAll(data, []byte(`_bytes": `+number)))
	}
	f.Add([]byte(strings.Repeat("[", 100_000)))
	f.Add([]byte(`{"version":1,"disks":` + strings.Repeat(`[`, 9_000) + strings.Repeat(`]`, 9_000) + `}`))
	f.Add(append(bytes.TrimSuffix(bytes.TrimSpace(data), []byte("}")), []byte(`,"parent":"`+testID+`","links":2,"mode":"incremental"}`)...))
	f.Add([]byte(`{"version":1,"disks":[{"file":"../x"}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		m, err := DecodeManifest(data)
		if err != nil {
			var e *messages.Error
			if !errors.As(err, &e) || e.Code != messages.CodeBackupCorrupt && e.Code != messages.CodeUnsupportedVersion {
				t.Fatalf("got %v", err)
			}
			return
		}
		dir := t.TempDir()
		for _, name := range m.files() {
			check(t, checkFile(name))
			if path := filepath.Join(dir, name); filepath.Dir(path) != dir || filepath.Clean(path) != path {
				t.Fatalf("%q lies elsewhere", name)
			}
		}
		if m.Links > messages.MaxChain || len(m.Disks) > maxDisks || m.Digest.BlockBytes > maxDigestBlock || m.Parent == m.ID {
			t.Fatalf("beyond the bounds: %+v", m)
		}
		for _, d := range m.Disks {
			if max(d.VirtualBytes, d.DataBytes, d.FileBytes, d.StoredBytes) > maxDiskBytes || !diskPattern.MatchString(d.Name) {
				t.Fatalf("beyond the bounds: %+v", d)
			}
		}
		var sum int64
		for _, d := range m.Disks {
			sum += d.VirtualBytes
		}
		if e := m.CatalogEntry(messages.Repository{}, ""); sum < 0 || e.VirtualBytes != sum {
			t.Fatalf("sum %d, %d", sum, e.VirtualBytes)
		}
		again, err := m.encode()
		check(t, err)
		back, err := DecodeManifest(again)
		check(t, err)
		if diff := unpadded(m, back); diff != "" {
			t.Fatal(diff)
		}
	})
}
