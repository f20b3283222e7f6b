package repository

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

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

// chainOf commits a full backup and so many incrementals, each of the one before.
func chainOf(t *testing.T, r *Repository, n int) []Location {
	t.Helper()
	var locs []Location
	for i := range n {
		loc := location()
		loc.ID = loc.ID[:25] + string(rune('A'+i))
		p, err := r.Create(t.Context(), loc)
		check(t, err)
		fill(t, p)
		m := manifest(loc)
		if i > 0 {
			m.Mode, m.Parent, m.Links, m.Disks[0].Incremental = messages.ModeIncremental, locs[i-1].ID, i+1, true
		}
		m.Checkpoint = "nasfleet-" + loc.ID
		_, err = p.Commit(t.Context(), m)
		check(t, err)
		locs = append(locs, loc)
	}
	return locs
}

func TestChain(t *testing.T) {
	r := openDir(t)
	locs := chainOf(t, r, 4)
	chain, err := r.Chain(t.Context(), ref(locs[3]))
	check(t, err)
	for i, b := range chain {
		if b.Manifest.ID != locs[3-i].ID {
			t.Errorf("link %d is %s", i, b.Manifest.ID)
		}
	}
	deps, err := r.Dependents(t.Context(), ref(locs[1]))
	check(t, err)
	if len(deps) != 2 || deps[0].ID != locs[3].ID || deps[1].ID != locs[2].ID || deps[0].Host != "h1" {
		t.Errorf("what needs %s is %+v", locs[1].ID, deps)
	}

	// A damaged child is one all the same; a folder that is no backup is none.
	disk := filepath.Join(r.Dir(), locs[2].String(), "vda.qcow2")
	check(t, os.Truncate(disk, 7))
	stray := filepath.Join(r.Dir(), locs[2].folder(), locs[2].ID[:25]+"Z")
	check(t, os.Mkdir(stray, 0o700))
	check(t, os.WriteFile(filepath.Join(stray, manifestName), []byte("{"), 0o600))
	deps, err = r.Dependents(t.Context(), ref(locs[1]))
	if err != nil || len(deps) != 2 {
		t.Errorf("%+v, %v", deps, err)
	}
	// Of a folder that is no backup the ID is all that is known.
	beside, err := r.Siblings(t.Context(), ref(locs[1]))
	check(t, err)
	for _, s := range beside {
		damaged := s.ID == locs[2].ID && s.Parent == locs[1].ID && s.Checkpoint != ""
		none := s == Sibling{ID: filepath.Base(stray)}
		if s.ID == locs[1].ID || (s.Checkpoint == "") != none || s.ID == locs[2].ID && !damaged {
			t.Errorf("beside %s lies %+v", locs[1].ID, s)
		}
	}
	if len(beside) != 4 {
		t.Errorf("%+v", beside)
	}
	_, problems, err := r.List(t.Context(), locs[2].BackupPath, locs[2].VM)
	if err != nil || len(problems) != 2 || problems[0].Checkpoint != "nasfleet-"+locs[2].ID || problems[1].Checkpoint != "" {
		t.Errorf("%+v, %v", problems, err)
	}
	_, err = r.Chain(t.Context(), ref(locs[3]))
	wantCode(t, err, messages.CodeChainBroken)
	if !strings.Contains(err.Error(), locs[2].ID) {
		t.Errorf("the message does not name the broken backup: %v", err)
	}
	_, err = r.Chain(t.Context(), ref(locs[2]))
	wantCode(t, err, messages.CodeBackupCorrupt)

	// Of a backup that is gone they are told too.
	check(t, r.Delete(t.Context(), ref(locs[1])))
	if deps, err = r.Dependents(t.Context(), ref(locs[1])); err != nil || len(deps) != 2 {
		t.Errorf("%+v, %v", deps, err)
	}
}

// A chain that somebody has tied into a circle, or whose links do not fit, is refused.
func TestChainOfStrangers(t *testing.T) {
	for name, spoil := range map[string]func(*Manifest){
		"another place": func(m *Manifest) { m.Links = 5 },
		"another VM":    func(m *Manifest) { m.UUID = "x" },
		"encrypted":     func(m *Manifest) { m.Encryption.LUKS, m.Disks[0].LUKS = true, true },
		"another size":  func(m *Manifest) { m.Disks[0].VirtualBytes++ },
		"another disk":  func(m *Manifest) { m.Disks[0].Name = "vdb" },
	} {
		r := openDir(t)
		locs := chainOf(t, r, 2)
		b, err := r.Find(t.Context(), ref(locs[1]))
		check(t, err)
		m := b.Manifest
		spoil(&m)
		data, err := m.encode()
		check(t, err)
		check(t, os.WriteFile(filepath.Join(b.Dir, manifestName), data, 0o600))
		if _, err := r.Chain(t.Context(), ref(locs[1])); messages.CodeOf(err) != messages.CodeChainBroken {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestMarkDamaged(t *testing.T) {
	r := openDir(t)
	b := commit(t, r, location())
	for _, damaged := range []bool{true, true, false, false} {
		check(t, b.MarkDamaged(t.Context(), damaged))
		found, err := r.Find(t.Context(), ref(location()))
		check(t, err)
		if found.Damaged != damaged {
			t.Errorf("marked %t, found %t", damaged, found.Damaged)
		}
	}
	check(t, b.MarkDamaged(t.Context(), true))
	before, err := os.Stat(filepath.Join(b.Dir, damagedName))
	check(t, err)
	check(t, os.Chtimes(filepath.Join(b.Dir, damagedName), before.ModTime().Add(-time.Hour), before.ModTime().Add(-time.Hour)))
	check(t, b.MarkDamaged(t.Context(), true))
	after, err := os.Stat(filepath.Join(b.Dir, damagedName))
	check(t, err)
	if !after.ModTime().Before(before.ModTime()) {
		t.Error("the mark was made anew, and a kill in between would have left none")
	}
	check(t, r.Delete(t.Context(), ref(location())))
	if err := b.MarkDamaged(t.Context(), true); err == nil {
		t.Error("a backup that is gone was marked")
	}
}

// A parent that is deleted from another host while the files are made durable, which may take minutes: an
// incremental of nothing must not become a backup.
func TestCommitWithoutItsParent(t *testing.T) {
	r := openDir(t)
	full := chainOf(t, r, 1)[0]
	loc := location()
	loc.ID = loc.ID[:25] + "Z"
	p, err := r.Create(t.Context(), loc)
	check(t, err)
	fill(t, p)
	m := manifest(loc)
	m.Mode, m.Parent, m.Links, m.Disks[0].Incremental = messages.ModeIncremental, full.ID, 2, true
	check(t, p.take(t.Context(), p.steps(&m)))
	check(t, r.Delete(t.Context(), ref(full)))
	_, err = p.Commit(t.Context(), m)
	wantCode(t, err, messages.CodeChainBroken)
	_, err = r.Find(t.Context(), ref(loc))
	wantCode(t, err, messages.CodeBackupNotFound)
	check(t, p.Discard(t.Context()))
	wantAbsent(t, p.Dir())
}

// TestHostileSiblings: manifests that refer to each other in rings and long rows end no loop, and what is no name of a
// host does not get out.
func TestHostileSiblings(t *testing.T) {
	r, ctx, loc := openDir(t), t.Context(), location()
	folder := filepath.Join(r.Dir(), loc.folder())
	id := func(i int) string { return fmt.Sprintf("01J8ZQ5V9K3N7R2T4W6Y8%05d", i) }
	plant := func(i, parent int, more string) {
		dir := filepath.Join(folder, id(i))
		check(t, os.MkdirAll(dir, 0o700))
		text := fmt.Sprintf(`{"version":1,"id":%q,"parent":%q%s}`, id(i), id(parent), more)
		check(t, os.WriteFile(filepath.Join(dir, manifestName), []byte(text), 0o600))
	}
	const row = 2000
	for i := 1; i <= row; i++ {
		plant(i, i-1, "")
	}
	// A ring of two behind the row, one that is its own parent, and one that is of no host.
	plant(row+1, row+2, "")
	plant(row+2, row+1, "")
	plant(row+3, row+3, "")
	plant(row+4, 0, `,"zone":"z1.>","host":"*","checkpoint":"other"`)
	plant(row+5, 0, `,"zone":{"a":1}`)
	ref := ref(Location{BackupPath: loc.BackupPath, VM: loc.VM, ID: id(0)})
	found, err := r.Dependents(ctx, ref)
	check(t, err)
	if len(found) != row+1 {
		t.Fatalf("%d depend on it", len(found))
	}
	for _, s := range found {
		if s.Zone != "" || s.Host != "" {
			t.Errorf("%+v", s)
		}
	}
	for _, i := range []int{row, row + 1, row + 3} {
		ref.ID = id(i)
		if found, err = r.Dependents(ctx, ref); err != nil || len(found) > 2 {
			t.Errorf("%d depend on %d, %v", len(found), i, err)
		}
		_, err = r.Chain(ctx, ref)
		wantCode(t, err, messages.CodeBackupCorrupt)
	}
	backups, problems, err := r.List(ctx, loc.BackupPath, loc.VM)
	if err != nil || len(backups) != 0 || len(problems) != row+5 {
		t.Errorf("%d backups, %d problems, %v", len(backups), len(problems), err)
	}
}
