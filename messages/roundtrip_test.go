package messages_test

import (
	"encoding/json"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	m "github.com/nasfleet/nasfleet/messages"
)

// TestEncodeDecode: whatever Encode takes, Decode gives back.
func TestEncodeDecode(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		want := command().Draw(t, "command")
		data, err := m.Encode(want)
		if err != nil {
			t.Fatal(err)
		}
		got, h, err := m.Decode(data)
		if err != nil {
			t.Fatalf("%s: %v", data, err)
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Fatal(diff)
		}
		if h != want.Head() {
			t.Fatalf("header %+v, want %+v", h, want.Head())
		}
	})
}

// TestDetailsMapAndBack: Map and ParseDetails, and the two directions of JSON, undo each other.
func TestDetailsMapAndBack(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		want := takeDetails().Draw(t, "details")
		got, err := m.ParseDetails(want.Map())
		if err != nil || got != want {
			t.Fatalf("%+v became %+v (%v)", want, got, err)
		}
		data, err := json.Marshal(want)
		if err != nil {
			t.Fatal(err)
		}
		var viaJSON m.Details
		if err := json.Unmarshal(data, &viaJSON); err != nil || viaJSON != want {
			t.Fatalf("%s became %+v (%v)", data, viaJSON, err)
		}
	})
}

// TestAnyProgramsCommand: of commands with arbitrary texts in them, Encode writes only those that
// Decode takes, unchanged.
func TestAnyProgramsCommand(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		text := rapid.OneOf(rapid.String(), rapid.SampledFrom([]string{"/", "a", "..", "\xff", "raw", "dir", "sealed1.x"}),
			rapid.Map(rapid.SliceOf(rapid.Byte()), func(b []byte) string { return string(b) }))
		take := validTake()
		take.VM = text.Draw(t, "vm")
		take.BackupPath = text.Draw(t, "path")
		take.Repository = m.Repository{Type: text.Draw(t, "type"), Address: text.Draw(t, "address"), MountOptions: text.Draw(t, "options")}
		take.Details = m.Details{CompressionType: text.Draw(t, "compression"), Passphrase: text.Draw(t, "passphrase"), BandwidthLimit: rapid.Int().Draw(t, "bandwidth")}
		restore := &m.RestoreBackup{Header: header(m.TypeRestore), Backup: backupRef(), ToDir: "/" + text.Draw(t, "dir"),
			Disks: []string{text.Draw(t, "disk")}, Format: text.Draw(t, "format")}
		image := validTake()
		image.VM, image.Images = "", []m.Image{{Path: "/" + text.Draw(t, "image")}}
		for _, want := range []m.Command{take, restore, image} {
			data, err := m.Encode(want)
			if err != nil {
				if c := m.CodeOf(err); c == m.CodeInternal || c.Hint() == "" {
					t.Fatalf("%v: code %q", err, c)
				}
				continue
			}
			got, _, err := m.Decode(data)
			if err != nil {
				t.Fatalf("%s: %v", data, err)
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Fatal(diff)
			}
		}
	})
}

func command() *rapid.Generator[m.Command] {
	return rapid.OneOf(
		rapid.Custom(func(t *rapid.T) m.Command {
			c := &m.TakeBackup{
				Header: headers(m.TypeTake).Draw(t, "header"), BackupPath: folder().Draw(t, "path"), Repository: repository().Draw(t, "repository"),
				Quiesce: rapid.SampledFrom([]m.Quiesce{"", m.QuiesceOff, m.QuiesceBestEffort, m.QuiesceRequired}).Draw(t, "quiesce"),
				Mode:    rapid.SampledFrom([]m.Mode{"", m.ModeFull, m.ModeIncremental, m.ModeAuto}).Draw(t, "mode"),
				Details: takeDetails().Draw(t, "details"),
			}
			if rapid.Bool().Draw(t, "is a VM") {
				c.VM = vmName().Draw(t, "vm")
			} else {
				c.Images = rapid.SliceOfN(image(), 1, 4).Draw(t, "images")
			}
			return c
		}),
		rapid.Custom(func(t *rapid.T) m.Command {
			c := &m.RestoreBackup{
				Header: headers(m.TypeRestore).Draw(t, "header"), Backup: reference().Draw(t, "backup"),
				Force: rapid.Bool().Draw(t, "force"), Details: readDetails().Draw(t, "details"),
			}
			if rapid.Bool().Draw(t, "some disks") {
				c.Disks = rapid.SliceOfN(rapid.StringMatching(`[sv]d[a-z]`), 1, 3).Draw(t, "disks")
			}
			switch rapid.IntRange(0, 2).Draw(t, "over what") {
			case 0:
				c.ToVM = vmName().Draw(t, "to vm")
			case 1:
				c.ToRBD, c.Disks = map[string]string{"vda": "pool/" + vmName().Draw(t, "image")}, nil
			default:
				c.ToDir, c.Define, c.Format = absolute().Draw(t, "to dir"), rapid.Bool().Draw(t, "define"), format().Draw(t, "format")
			}
			return c
		}),
		rapid.Custom(func(t *rapid.T) m.Command {
			return &m.VerifyBackup{Header: headers(m.TypeVerify).Draw(t, "header"), Backup: reference().Draw(t, "backup"), Details: readDetails().Draw(t, "details")}
		}),
		rapid.Custom(func(t *rapid.T) m.Command {
			return &m.DeleteBackup{Header: headers(m.TypeDelete).Draw(t, "header"), Backup: reference().Draw(t, "backup")}
		}),
		rapid.Custom(func(t *rapid.T) m.Command {
			d := m.Details{Passphrase: sealedText().Draw(t, "new")}
			keyDetails(t, &d)
			return &m.RekeyBackup{Header: headers(m.TypeRekey).Draw(t, "header"), Backup: reference().Draw(t, "backup"),
				OldPassphrase: sealedText().Draw(t, "old"), OldRevision: rapid.OneOf(rapid.Just(""), id()).Draw(t, "old revision"), Details: d}
		}),
		rapid.Custom(func(t *rapid.T) m.Command {
			c := &m.ConsolidateBackup{Header: headers(m.TypeConsolidate).Draw(t, "header"), Backup: reference().Draw(t, "backup"), Details: takeDetails().Draw(t, "details")}
			if c.ChainPassphrase = rapid.OneOf(rapid.Just(""), sealedText()).Draw(t, "chain passphrase"); c.ChainPassphrase != "" {
				c.ChainRevision = rapid.OneOf(rapid.Just(""), id()).Draw(t, "chain revision")
			}
			for c.Backup.ID == c.JobID {
				c.Backup.ID = id().Draw(t, "another backup")
			}
			return c
		}),
		rapid.Custom(func(t *rapid.T) m.Command {
			c := &m.ListBackups{Header: headers(m.TypeList).Draw(t, "header"), BackupPath: folder().Draw(t, "path"), Repository: repository().Draw(t, "repository")}
			if rapid.Bool().Draw(t, "of a VM") {
				c.VM = vmName().Draw(t, "vm")
			}
			return c
		}),
	)
}

func headers(typ m.Type) *rapid.Generator[m.Header] {
	return rapid.Custom(func(t *rapid.T) m.Header {
		h := m.Header{
			Version: 1, Type: typ, JobID: id().Draw(t, "job id"), Attempts: rapid.IntRange(0, 100).Draw(t, "attempts"),
			IssuedAt: time.Unix(rapid.Int64Range(0, 253402300799).Draw(t, "s"), rapid.Int64Range(0, 999999999).Draw(t, "ns")).UTC(),
		}
		if old := id().Draw(t, "replays"); old != h.JobID && rapid.Bool().Draw(t, "is a replay") {
			h.Replays = old
		}
		return h
	})
}

func takeDetails() *rapid.Generator[m.Details] {
	return rapid.Custom(func(t *rapid.T) m.Details {
		d := readDetails().Draw(t, "details")
		d.Compression, d.IntegrityCheck = rapid.Bool().Draw(t, "compression"), rapid.Bool().Draw(t, "check")
		d.CompressionType = rapid.SampledFrom([]string{"", m.Zstd, m.Zlib}).Draw(t, "type")
		if d.Passphrase != "" {
			keyDetails(t, &d)
		}
		d.Encryption = d.Passphrase != "" && rapid.Bool().Draw(t, "encryption")
		return d
	})
}

func readDetails() *rapid.Generator[m.Details] {
	return rapid.Custom(func(t *rapid.T) m.Details {
		return m.Details{
			BandwidthLimit: rapid.IntRange(0, 1<<30).Draw(t, "bandwidth"),
			Passphrase:     rapid.OneOf(rapid.Just(""), sealedText()).Draw(t, "passphrase"),
		}
	})
}

// keyDetails draws what names and accompanies a passphrase.
func keyDetails(t *rapid.T, d *m.Details) {
	d.Revision = rapid.OneOf(rapid.Just(""), id()).Draw(t, "revision")
	if d.Recovery = rapid.OneOf(rapid.Just(""), sealedText()).Draw(t, "recovery"); d.Recovery != "" {
		d.RecoveryRevision = rapid.OneOf(rapid.Just(""), id()).Draw(t, "recovery revision")
	}
}

func sealedText() *rapid.Generator[string] {
	return rapid.StringMatching(`sealed1\.X[A-Z2-7]{55}\.[A-Za-z0-9_-]{1,80}`)
}

func reference() *rapid.Generator[m.BackupRef] {
	return rapid.Custom(func(t *rapid.T) m.BackupRef {
		return m.BackupRef{ID: id().Draw(t, "id"), VM: vmName().Draw(t, "vm"), BackupPath: folder().Draw(t, "path"), Repository: repository().Draw(t, "repository")}
	})
}

func repository() *rapid.Generator[m.Repository] {
	return rapid.Custom(func(t *rapid.T) m.Repository {
		if rapid.Bool().Draw(t, "is a folder") {
			return m.Repository{Type: m.RepositoryDir, Address: absolute().Draw(t, "folder")}
		}
		return m.Repository{
			Type:         rapid.SampledFrom([]string{"nfs", "nfs4", "cifs", "ceph", "fuse.sshfs"}).Draw(t, "type"),
			Address:      rapid.StringMatching(`[a-z]{1,9}:(/[a-z<&>"\\ é]{1,9}){1,3}`).Draw(t, "address"),
			MountOptions: rapid.SampledFrom([]string{"", "ro", "vers=4.2,hard"}).Draw(t, "options"),
		}
	})
}

func image() *rapid.Generator[m.Image] {
	return rapid.Custom(func(t *rapid.T) m.Image {
		return m.Image{Path: absolute().Draw(t, "path"), Format: format().Draw(t, "format")}
	})
}

func id() *rapid.Generator[string] {
	return rapid.StringMatching(`[0-7][0-9A-HJKMNP-TV-Z]{25}`)
}

func vmName() *rapid.Generator[string] {
	return rapid.StringMatching(`[a-zA-Z0-9_é日*>][a-z0-9 ._<&>"'\\é日-]{0,60}`)
}

func absolute() *rapid.Generator[string] {
	return rapid.StringMatching(`(/[a-z<&>"\\ é-][a-z. -]{0,9}){1,4}`)
}

func folder() *rapid.Generator[string] {
	return rapid.StringMatching(`([a-z<&>"\\ é-][a-z. -]{0,9}(/[a-z-][a-z. -]{0,9}){0,3})?`)
}

func format() *rapid.Generator[string] {
	return rapid.SampledFrom([]string{"", "qcow2", "raw"})
}
