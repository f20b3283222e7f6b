package repository

import (
	"strings"
	"testing"

	"github.com/nasfleet/nasfleet/messages"
)

const parentID = "01J8ZQ5V9K3N7R2T4W6Y8A0B0A"

// incremental is a manifest that continues another.
func incremental() Manifest {
	m := sample()
	m.Mode, m.Parent, m.Links, m.Checkpoint = messages.ModeIncremental, parentID, 2, "nasfleet-"+m.ID
	m.Disks[0].Incremental, m.Disks[0].Bitmap = true, true
	return m
}

func TestManifestOfAnIncremental(t *testing.T) {
	data, err := incremental().encode()
	check(t, err)
	got, err := DecodeManifest(data)
	check(t, err)
	if diff := unpadded(incremental(), got); diff != "" {
		t.Fatal(diff)
	}
	e := got.CatalogEntry(messages.Repository{}, "")
	if e.Mode != messages.ModeIncremental || e.Parent != parentID {
		t.Errorf("the catalog says %s of %s", e.Mode, e.Parent)
	}
}

func TestManifestOfABadChain(t *testing.T) {
	for name, spoil := range map[string]func(*Manifest){
		"no parent":                  func(m *Manifest) { m.Parent = "" },
		"a parent that is a path":    func(m *Manifest) { m.Parent = "../x" },
		"its own parent":             func(m *Manifest) { m.Parent = m.ID },
		"no place":                   func(m *Manifest) { m.Links = 0 },
		"the place of a full":        func(m *Manifest) { m.Links = 1 },
		"too long a chain":           func(m *Manifest) { m.Links = messages.MaxChain + 1 },
		"no disk of it":              func(m *Manifest) { m.Disks[0].Incremental = false },
		"no digests":                 func(m *Manifest) { m.Digest, m.Disks[0].DigestsFile = Digest{}, "" },
		"a checkpoint with a slash":  func(m *Manifest) { m.Checkpoint = "a/b" },
		"an endless reason":          func(m *Manifest) { m.FullReason = messages.FullReason(strings.Repeat("x", 64)) },
		"a full with a parent":       func(m *Manifest) { m.Mode, m.Links, m.Disks[0].Incremental = messages.ModeFull, 0, false },
		"a full of changes":          func(m *Manifest) { m.Mode, m.Parent, m.Links = messages.ModeFull, "", 0 },
		"a full with a second place": func(m *Manifest) { m.Mode, m.Parent, m.Disks[0].Incremental = messages.ModeFull, "", false },
	} {
		m := incremental()
		spoil(&m)
		data, err := m.encode()
		check(t, err)
		if _, err := DecodeManifest(data); messages.CodeOf(err) != messages.CodeBackupCorrupt {
			t.Errorf("%s: %v", name, err)
		}
	}
}
