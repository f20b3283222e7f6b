package repository

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/nasfleet/nasfleet/messages"
)

func TestCommitAndFind(t *testing.T) {
	r, loc := openDir(t), location()
	b := commit(t, r, loc)

	got, err := r.Find(t.Context(), ref(loc))
	check(t, err)
	if diff := cmp.Diff(b.Manifest, got.Manifest); diff != "" {
		t.Fatal(diff)
	}
	if want := filepath.Join(r.Dir(), "daily/prod", testVM, testID); got.Dir != want || b.Dir != want {
		t.Fatalf("got folder %s and %s, want %s", b.Dir, got.Dir, want)
	}
	wantAbsent(t, got.Dir+partialSuffix, filepath.Join(got.Dir, manifestTemp))
	d := got.Manifest.Disks[0]
	if d.FileBytes != 20000 || d.StoredBytes < 20000 || d.StoredBytes > 64<<10 || got.Manifest.FinishedAt.IsZero() {
		t.Fatalf("not measured: %+v", got.Manifest)
	}
	path, err := got.Path(t.Context(), "vda.qcow2")
	check(t, err)
	data, err := os.ReadFile(path)
	check(t, err)
	if string(data) != strings.Repeat("data", 5000) {
		t.Fatal("other data")
	}
	data, err = got.ReadFile(t.Context(), "domain.xml", 100)
	check(t, err)
	if string(data) != "<domain/>" {
		t.Fatalf("got %q", data)
	}
	_, err = got.ReadFile(t.Context(), "domain.xml", 3)
	wantCode(t, err, messages.CodeBackupCorrupt)
	_, err = got.Path(t.Context(), "manifest.json")
	wantCode(t, err, messages.CodeInternal)

	fi, err := os.Stat(got.Dir)
	check(t, err)
	if fi.Mode().Perm() != 0o700 {
		t.Fatalf("mode %v", fi.Mode())
	}
}

func TestManifestOnDisk(t *testing.T) {
	r, loc := openDir(t), location()
	b := commit(t, r, loc)
	data, err := os.ReadFile(filepath.Join(b.Dir, manifestName))
	check(t, err)
	var m map[string]any
	check(t, json.Unmarshal(data, &m))
	for _, key := range []string{"version", "id", "job_id", "zone", "host", "vm", "source", "created_at", "finished_at", "mode", "compression", "encryption", "digest", "disks"} {
		if _, ok := m[key]; !ok {
			t.Errorf("no %s", key)
		}
	}
	repo := messages.Repository{Type: "nfs", Address: "nas:/x"}
	e := b.Manifest.CatalogEntry(repo, loc.BackupPath)
	want := messages.CatalogEntry{
		ID: testID, Zone: "z1", Host: "h1", VM: testVM, JobID: testID, CreatedAt: b.Manifest.CreatedAt,
		Mode: messages.ModeFull, Compressed: true, VirtualBytes: 1 << 30, DataBytes: 1 << 20,
		StoredBytes: b.Manifest.Disks[0].StoredBytes, BackupPath: loc.BackupPath, Repository: repo, Notes: []string{"hdc left out"},
		Disks: []messages.CatalogDisk{{
			Name: "vda", File: "vda.qcow2", VirtualBytes: 1 << 30, DataBytes: 1 << 20,
			StoredBytes: b.Manifest.Disks[0].StoredBytes,
		}},
	}
	if diff := cmp.Diff(want, e); diff != "" {
		t.Fatal(diff)
	}
	long := Manifest{Notes: make([]string, 1000)}
	long.Notes[0] = strings.Repeat("é", 1000)
	if n := long.CatalogEntry(repo, "").Notes; len(n) != catalogNotes || len(n[0]) != catalogNoteBytes {
		t.Fatalf("%d notes, the first of %d bytes", len(n), len(n[0]))
	}
}

func TestCreateAgain(t *testing.T) {
	r, loc := openDir(t), location()
	left, err := r.Create(t.Context(), loc)
	check(t, err)
	fill(t, left)

	p, err := r.Create(t.Context(), loc)
	check(t, err)
	if n := names(t, p.Dir()); len(n) != 0 {
		t.Fatalf("left of the first attempt: %v", n)
	}
	fill(t, p)
	want, err := p.Commit(t.Context(), manifest(loc))
	check(t, err)

	_, err = r.Create(t.Context(), loc)
	var committed *CommittedError
	if !errors.As(err, &committed) {
		t.Fatalf("got %v", err)
	}
	wantCode(t, err, messages.CodeTargetExists)
	if diff := cmp.Diff(want.Manifest, committed.Backup.Manifest); diff != "" {
		t.Fatal(diff)
	}
	check(t, p.Discard(t.Context()))
	_, err = r.Find(t.Context(), ref(loc))
	check(t, err)
}

// A folder without a manifest is nobody's backup, one with a broken manifest may be somebody's.
func TestCreateOverRubbish(t *testing.T) {
	r, loc := openDir(t), location()
	b := commit(t, r, loc)
	check(t, os.WriteFile(filepath.Join(b.Dir, manifestName), []byte("{"), 0o600))
	_, err := r.Create(t.Context(), loc)
	wantCode(t, err, messages.CodeBackupCorrupt)
	check(t, os.Remove(filepath.Join(b.Dir, manifestName)))
	commit(t, r, loc)
}

func TestDiscard(t *testing.T) {
	r, loc := openDir(t), location()
	p, err := r.Create(t.Context(), loc)
	check(t, err)
	fill(t, p)
	check(t, p.Discard(t.Context()))
	check(t, p.Discard(t.Context()))
	if n := names(t, r.Dir()); len(n) != 0 {
		t.Fatalf("left: %v", n)
	}

	// A folder that was there before stays.
	check(t, os.Mkdir(filepath.Join(r.Dir(), "daily"), 0o755))
	p, err = r.Create(t.Context(), loc)
	check(t, err)
	check(t, p.Discard(t.Context()))
	if diff := cmp.Diff([]string{"daily"}, names(t, r.Dir())); diff != "" {
		t.Fatal(diff)
	}
	if n := names(t, filepath.Join(r.Dir(), "daily")); len(n) != 0 {
		t.Fatalf("left: %v", n)
	}
}

// Whatever step a commit dies after, there is no backup or a whole one, and the next attempt gets through.
func TestCommitCrash(t *testing.T) {
	unfinished := &Partial{loc: location()}
	steps := append(unfinished.steps(&Manifest{}), unfinished.naming(&Manifest{})...)
	for n := range len(steps) + 1 {
		r, loc := openDir(t), location()
		p, err := r.Create(t.Context(), loc)
		check(t, err)
		fill(t, p)
		m := manifest(loc)
		committed := false
		for _, s := range append(p.steps(&m), p.naming(&m)...)[:n] {
			check(t, s.run(r.root))
			committed = committed || s.name == "name the backup"
		}
		backups, problems, err := r.List(t.Context(), loc.BackupPath, "")
		check(t, err)
		if len(problems) != 0 || (len(backups) == 1) != committed {
			t.Fatalf("after %d steps: %d backups, problems %v", n, len(backups), problems)
		}
		_, err = r.Find(t.Context(), ref(loc))
		if committed {
			check(t, err)
			check(t, r.Sweep(t.Context(), loc))
			_, err = r.Create(t.Context(), loc)
			wantCode(t, err, messages.CodeTargetExists)
			continue
		}
		wantCode(t, err, messages.CodeBackupNotFound)
		commit(t, r, loc)
		wantAbsent(t, p.Dir())
	}
}

func TestCommitRefusesItsOwnMistakes(t *testing.T) {
	for name, spoil := range map[string]func(*Manifest){
		"another id":     func(m *Manifest) { m.ID = "01J8ZQ5V9K3N7R2T4W6Y8A0B1D" },
		"another vm":     func(m *Manifest) { m.VM = "web2" },
		"no disk":        func(m *Manifest) { m.Disks = nil },
		"a missing file": func(m *Manifest) { m.Disks[0].DigestsFile = "vdb.digests" },
		"a path":         func(m *Manifest) { m.Disks[0].File = "../x" },
		"no such mode":   func(m *Manifest) { m.Mode = messages.ModeAuto },
		"no parent": func(m *Manifest) {
			m.Mode, m.Links, m.Disks[0].Incremental = messages.ModeIncremental, 2, true
		},
	} {
		t.Run(name, func(t *testing.T) {
			r, loc := openDir(t), location()
			p, err := r.Create(t.Context(), loc)
			check(t, err)
			fill(t, p)
			m := manifest(loc)
			spoil(&m)
			if _, err := p.Commit(t.Context(), m); err == nil {
				t.Fatal("committed")
			}
			wantAbsent(t, filepath.Join(p.Dir(), manifestName), filepath.Join(r.Dir(), loc.String()))
			check(t, p.Discard(t.Context()))
			if n := names(t, r.Dir()); len(n) != 0 {
				t.Fatalf("left: %v", n)
			}
		})
	}
}

func TestWriteRefusals(t *testing.T) {
	r, ctx := openDir(t), t.Context()
	p, err := r.Create(ctx, location())
	check(t, err)
	for _, name := range []string{"", ".", "..", "a/b", "../a", "/a", "-a", ".a", "a\nb", "a,b", "manifest.json", "manifest.json.tmp", strings.Repeat("a", 300)} {
		wantCode(t, p.WriteFile(ctx, name, nil), messages.CodeInternal)
		wantCode(t, p.CopyIn(ctx, "/dev/null", name), messages.CodeInternal)
		_, err := p.Path(ctx, name)
		wantCode(t, err, messages.CodeInternal)
	}
	check(t, p.WriteFile(ctx, "a", []byte("1")))
	wantCode(t, p.WriteFile(ctx, "a", []byte("2")), messages.CodeTargetWriteFailed)
	wantCode(t, p.CopyIn(ctx, "/does/not/exist", "b"), messages.CodeInternal)
	if diff := cmp.Diff([]string{"a"}, names(t, p.Dir())); diff != "" {
		t.Fatal(diff)
	}
	check(t, p.Discard(ctx))
}

func TestLocationRefusals(t *testing.T) {
	r, ctx := openDir(t), t.Context()
	for name, loc := range map[string]Location{
		"dot dot":        {"..", testVM, testID},
		"below, up":      {"a/../..", testVM, testID},
		"absolute":       {"/etc", testVM, testID},
		"dot":            {".", testVM, testID},
		"newline":        {"a\nb", testVM, testID},
		"double slash":   {"a//b", testVM, testID},
		"vm dot dot":     {"", "..", testID},
		"vm slash":       {"", "a/b", testID},
		"vm empty":       {"", "", testID},
		"id no ulid":     {"", testVM, "x"},
		"id dot dot":     {"", testVM, ".."},
		"id of partial":  {"", testVM, testID + partialSuffix},
		"id lower case":  {"", testVM, strings.ToLower(testID)},
		"id with a path": {"", testVM, "../" + testVM + "/" + testID},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := r.Create(ctx, loc)
			wantCode(t, err, messages.CodeInvalidMessage)
			_, err = r.Find(ctx, ref(loc))
			wantCode(t, err, messages.CodeInvalidMessage)
			wantCode(t, r.Delete(ctx, ref(loc)), messages.CodeInvalidMessage)
			wantCode(t, r.Sweep(ctx, loc), messages.CodeInvalidMessage)
		})
	}
	if n := names(t, r.Dir()); len(n) != 0 {
		t.Fatalf("made: %v", n)
	}
}

func TestDelete(t *testing.T) {
	r, loc := openDir(t), location()
	wantCode(t, r.Delete(t.Context(), ref(loc)), messages.CodeBackupNotFound)
	other := loc
	other.ID = "01J8ZQ5V9K3N7R2T4W6Y8A0B1D"
	commit(t, r, loc)
	commit(t, r, other)
	check(t, r.Delete(t.Context(), ref(loc)))
	_, err := r.Find(t.Context(), ref(loc))
	wantCode(t, err, messages.CodeBackupNotFound)
	wantCode(t, r.Delete(t.Context(), ref(loc)), messages.CodeBackupNotFound)
	vm := filepath.Join(r.Dir(), loc.folder())
	if diff := cmp.Diff([]string{other.ID}, names(t, vm)); diff != "" {
		t.Fatal(diff)
	}
	check(t, r.Delete(t.Context(), ref(other)))
	wantAbsent(t, vm)
}

func TestDeleteCrash(t *testing.T) {
	steps := deleteSteps(t.Context(), location())
	for n := range len(steps) + 1 {
		r, loc := openDir(t), location()
		commit(t, r, loc)
		renamed := false
		for _, s := range deleteSteps(t.Context(), loc)[:n] {
			check(t, s.run(r.root))
			renamed = renamed || s.name == "rename it"
		}
		backups, problems, err := r.List(t.Context(), loc.BackupPath, "")
		check(t, err)
		if len(problems) != 0 || (len(backups) == 0) != renamed {
			t.Fatalf("after %d steps: %d backups, problems %v", n, len(backups), problems)
		}
		err = r.Delete(t.Context(), ref(loc))
		if err != nil && (n < 4 || messages.CodeOf(err) != messages.CodeBackupNotFound) {
			t.Fatalf("after %d steps: %v", n, err)
		}
		if n == 4 { // all is gone but the empty folder
			check(t, r.Sweep(t.Context(), loc))
		}
		wantAbsent(t, filepath.Join(r.Dir(), loc.folder()))
	}
}

// A crash in the middle of the removal, and a backup of the same id beside it.
func TestDeleteLeftovers(t *testing.T) {
	r, loc := openDir(t), location()
	b := commit(t, r, loc)
	check(t, os.Mkdir(b.Dir+deletingSuffix, 0o700))
	check(t, os.WriteFile(filepath.Join(b.Dir+deletingSuffix, "vda.qcow2"), nil, 0o600))
	check(t, r.Delete(t.Context(), ref(loc)))
	wantAbsent(t, filepath.Dir(b.Dir))
}

// A chain is deleted children first. Where that is cut off in the middle of a child, whose folder is no backup
// any more, nobody asks for it again: the backup that was meant takes it along.
func TestDeleteTakesHalfRemovedChildrenAlong(t *testing.T) {
	r := openDir(t)
	locs := chainOf(t, r, 2)
	for _, s := range deleteSteps(t.Context(), locs[1])[:2] {
		check(t, s.run(r.root))
	}
	deps, err := r.Dependents(t.Context(), ref(locs[0]))
	if err != nil || len(deps) != 0 {
		t.Fatalf("%+v, %v", deps, err)
	}
	check(t, r.Delete(t.Context(), ref(locs[0])))
	wantAbsent(t, filepath.Join(r.Dir(), locs[0].folder()))
}

func TestDeleteBroken(t *testing.T) {
	r, loc := openDir(t), location()
	b := commit(t, r, loc)
	check(t, os.WriteFile(filepath.Join(b.Dir, manifestName), []byte("{"), 0o600))
	check(t, r.Delete(t.Context(), ref(loc)))
	wantAbsent(t, filepath.Dir(b.Dir))
}

func TestSweep(t *testing.T) {
	r, loc := openDir(t), location()
	check(t, r.Sweep(t.Context(), loc))
	p, err := r.Create(t.Context(), loc)
	check(t, err)
	fill(t, p)
	vm := filepath.Dir(p.Dir())
	check(t, os.Mkdir(filepath.Join(vm, testID+deletingSuffix), 0o700))
	other := filepath.Join(vm, "01J8ZQ5V9K3N7R2T4W6Y8A0B1D"+partialSuffix)
	check(t, os.Mkdir(other, 0o700))
	check(t, r.Sweep(t.Context(), loc))
	if diff := cmp.Diff([]string{filepath.Base(other)}, names(t, vm)); diff != "" {
		t.Fatal(diff)
	}
	check(t, os.Remove(other))
	check(t, r.Sweep(t.Context(), loc))
	wantAbsent(t, vm)

	commit(t, r, loc)
	check(t, r.Sweep(t.Context(), loc))
	_, err = r.Find(t.Context(), ref(loc))
	check(t, err)
}

func TestList(t *testing.T) {
	r, loc := openDir(t), location()
	_, _, err := r.List(t.Context(), loc.BackupPath, "")
	wantCode(t, err, messages.CodeBackupNotFound)

	locs := []Location{loc, {loc.BackupPath, "aaa", "01J8ZQ5V9K3N7R2T4W6Y8A0B1F"}, {loc.BackupPath, testVM, "01J8ZQ5V9K3N7R2T4W6Y8A0B1A"}}
	for _, l := range locs {
		commit(t, r, l)
	}
	vm := filepath.Join(r.Dir(), loc.folder())
	noManifest, broken := "01J8ZQ5V9K3N7R2T4W6Y8A0B20", "01J8ZQ5V9K3N7R2T4W6Y8A0B21"
	for _, d := range []string{noManifest, broken, "01J8ZQ5V9K3N7R2T4W6Y8A0B22" + partialSuffix, "01J8ZQ5V9K3N7R2T4W6Y8A0B23" + deletingSuffix, "lost+found"} {
		check(t, os.Mkdir(filepath.Join(vm, d), 0o700))
	}
	check(t, os.WriteFile(filepath.Join(vm, broken, manifestName), []byte("null"), 0o600))
	check(t, os.WriteFile(filepath.Join(vm, "../README"), nil, 0o600))

	backups, problems, err := r.List(t.Context(), loc.BackupPath, "")
	check(t, err)
	var got []string
	for _, b := range backups {
		got = append(got, b.Manifest.VM+" "+b.Manifest.ID)
	}
	want := []string{testVM + " " + locs[2].ID, testVM + " " + locs[0].ID, "aaa " + locs[1].ID}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Fatal(diff)
	}
	if len(problems) != 2 || problems[0].ID != noManifest || problems[1].ID != broken {
		t.Fatalf("problems: %+v", problems)
	}
	wantCode(t, problems[0].Err, messages.CodeBackupNotFound)
	wantCode(t, problems[1].Err, messages.CodeBackupCorrupt)

	backups, problems, err = r.List(t.Context(), loc.BackupPath, "aaa")
	check(t, err)
	if len(backups) != 1 || len(problems) != 0 {
		t.Fatalf("%d backups, %v", len(backups), problems)
	}
	backups, _, err = r.List(t.Context(), loc.BackupPath, "nobody")
	check(t, err)
	if len(backups) != 0 {
		t.Fatalf("%d backups", len(backups))
	}
}

func TestContextAndClose(t *testing.T) {
	r, loc := openDir(t), location()
	p, err := r.Create(t.Context(), loc)
	check(t, err)
	fill(t, p)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err = p.Commit(ctx, manifest(loc))
	wantCode(t, err, messages.CodeCancelled)
	late, cancel := context.WithDeadline(t.Context(), time.Unix(0, 0))
	defer cancel()
	_, err = p.Commit(late, manifest(loc))
	wantCode(t, err, messages.CodeTimeout)
	_, err = r.FreeBytes(ctx)
	wantCode(t, err, messages.CodeCancelled)
	why, stop := context.WithCancelCause(t.Context())
	stop(messages.Errorf(messages.CodeShuttingDown, "stopping"))
	wantCode(t, r.Sweep(why, loc), messages.CodeShuttingDown)
	_, err = r.Find(t.Context(), ref(loc))
	wantCode(t, err, messages.CodeBackupNotFound)
	check(t, p.Discard(t.Context()))

	check(t, r.Close())
	check(t, r.Close())
	_, err = r.Create(t.Context(), loc)
	wantCode(t, err, messages.CodeInternal)
	_, err = r.FreeBytes(t.Context())
	wantCode(t, err, messages.CodeInternal)
}

// TestCommitIsNotBrokenOffHalfWay ends the context at every moment of a commit: there is a backup and
// Commit says so, or there is none.
func TestCommitIsNotBrokenOffHalfWay(t *testing.T) {
	committed := 0
	for delay := time.Duration(0); committed < 3 && delay < time.Minute; delay += 100 * time.Microsecond {
		r, loc := openDir(t), location()
		p, err := r.Create(t.Context(), loc)
		check(t, err)
		fill(t, p)
		ctx, cancel := context.WithCancel(t.Context())
		timer := time.AfterFunc(delay, cancel)
		_, err = p.Commit(ctx, manifest(loc))
		timer.Stop()
		cancel()
		_, found := r.Find(t.Context(), ref(loc))
		if (err == nil) != (found == nil) {
			t.Fatalf("ended after %s: Commit says %v, Find %v", delay, err, found)
		}
		if err == nil {
			committed++
		} else {
			committed = 0
		}
	}
	if committed == 0 {
		t.Error("no commit came through")
	}
}
