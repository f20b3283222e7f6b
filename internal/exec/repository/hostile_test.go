package repository

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/nasfleet/nasfleet/messages"
)

// outside is a folder beside the repository with a whole backup in it, and a check that it is untouched.
func outside(t *testing.T) (dir string, untouched func()) {
	t.Helper()
	r := openDir(t)
	b := commit(t, r, Location{VM: testVM, ID: testID})
	return r.Dir(), func() {
		t.Helper()
		if n := names(t, b.Dir); len(n) != 4 {
			t.Fatalf("outside was changed: %v", n)
		}
		if n := names(t, filepath.Dir(b.Dir)); len(n) != 1 {
			t.Fatalf("outside was changed: %v", n)
		}
	}
}

func TestLinkedFolders(t *testing.T) {
	dir, untouched := outside(t)
	inside := func(r *Repository) string {
		b := commit(t, r, Location{VM: "other", ID: testID})
		return filepath.Dir(b.Dir)
	}
	for name, plant := range map[string]func(r *Repository) (at, target string){
		"vm to etc":     func(*Repository) (string, string) { return "p/" + testVM, "/etc" },
		"vm outside":    func(*Repository) (string, string) { return "p/" + testVM, filepath.Join(dir, testVM) },
		"vm to another": func(r *Repository) (string, string) { inside(r); return "p/" + testVM, "../other" },
		"path outside":  func(*Repository) (string, string) { return "p", dir },
		"path inside":   func(r *Repository) (string, string) { inside(r); return "p", "." },
		"backup outside": func(*Repository) (string, string) {
			return "p/" + testVM + "/" + testID, filepath.Join(dir, testVM, testID)
		},
		"backup to another": func(r *Repository) (string, string) {
			inside(r)
			return "p/" + testVM + "/" + testID, "../../other/" + testID
		},
	} {
		t.Run(name, func(t *testing.T) {
			r, ctx, loc := openDir(t), t.Context(), Location{BackupPath: "p", VM: testVM, ID: testID}
			at, target := plant(r)
			link := filepath.Join(r.Dir(), at)
			check(t, os.MkdirAll(filepath.Dir(link), 0o700))
			check(t, os.Symlink(target, link))

			_, err := r.Find(ctx, ref(loc))
			wantCode(t, err, messages.CodeBackupCorrupt)
			_, err = r.Create(ctx, loc)
			wantCode(t, err, messages.CodeTargetExists)
			backups, problems, err := r.List(ctx, loc.BackupPath, loc.VM)
			if len(backups) != 0 || err == nil && len(problems) != 1 {
				t.Fatalf("listed %v, problems %v, %v", backups, problems, err)
			}
			isBackup := strings.HasSuffix(at, testID)
			if err := r.Sweep(ctx, loc); (err == nil) != isBackup {
				t.Fatalf("sweep: %v", err)
			}
			if _, err := os.Lstat(link); err != nil {
				t.Fatal(err)
			}
			if err := r.Delete(ctx, ref(loc)); (err == nil) != isBackup {
				t.Fatalf("delete: %v", err)
			}
			untouched()
			if _, err := os.Stat(filepath.Join(r.Dir(), "other")); err == nil {
				_, err = r.Find(ctx, ref(Location{VM: "other", ID: testID}))
				check(t, err)
			}
		})
	}
}

func TestLinkedLeftovers(t *testing.T) {
	dir, untouched := outside(t)
	r, loc := openDir(t), location()
	for _, suffix := range []string{partialSuffix, deletingSuffix} {
		link := filepath.Join(r.Dir(), loc.String()+suffix)
		check(t, os.MkdirAll(filepath.Dir(link), 0o700))
		check(t, os.Symlink(filepath.Join(dir, testVM, testID), link))
		check(t, r.Sweep(t.Context(), loc))
		wantAbsent(t, link)
		untouched()
	}
	// A link to another backup of the same VM.
	other := commit(t, r, Location{BackupPath: loc.BackupPath, VM: loc.VM, ID: "01J8ZQ5V9K3N7R2T4W6Y8A0B1D"})
	check(t, os.Symlink(filepath.Base(other.Dir), filepath.Join(r.Dir(), loc.String()+partialSuffix)))
	check(t, r.Sweep(t.Context(), loc))
	_, err := r.Find(t.Context(), ref(other.loc))
	check(t, err)
	// Links inside what is removed go, not what they point to.
	b := commit(t, r, loc)
	check(t, os.Symlink(filepath.Join(dir, testVM), filepath.Join(b.Dir, "link")))
	check(t, r.Delete(t.Context(), ref(loc)))
	untouched()

	// The same, where a commit looks.
	p, err := r.Create(t.Context(), loc)
	check(t, err)
	fill(t, p)
	check(t, os.Symlink("/etc/passwd", filepath.Join(p.Dir(), "vdb.qcow2")))
	_, err = p.Path(t.Context(), "vdb.qcow2")
	wantCode(t, err, messages.CodeTargetExists)
	wantCode(t, p.WriteFile(t.Context(), "vdb.qcow2", nil), messages.CodeTargetWriteFailed)
	_, err = p.Commit(t.Context(), manifest(loc))
	wantCode(t, err, messages.CodeTargetExists)
	check(t, p.Discard(t.Context()))
	wantAbsent(t, p.Dir())
	if _, err := os.Stat("/etc/passwd"); err != nil {
		t.Fatal(err)
	}
}

func TestHostileFiles(t *testing.T) {
	dir, untouched := outside(t)
	good := filepath.Join(dir, testVM, testID)
	replace := func(file string, with func(path string) error) func(t *testing.T, backup string) {
		return func(t *testing.T, backup string) {
			t.Helper()
			path := filepath.Join(backup, file)
			check(t, os.RemoveAll(path))
			check(t, with(path))
		}
	}
	linkTo := func(target string) func(string) error {
		return func(path string) error { return os.Symlink(target, path) }
	}
	edit := func(old, with string) func(t *testing.T, backup string) {
		return func(t *testing.T, backup string) {
			t.Helper()
			path := filepath.Join(backup, manifestName)
			data, err := os.ReadFile(path)
			check(t, err)
			if !strings.Contains(string(data), old) {
				t.Fatalf("no %s in %s", old, data)
			}
			check(t, os.WriteFile(path, []byte(strings.ReplaceAll(string(data), old, with)), 0o600))
		}
	}
	fifo := func(path string) error { return unix.Mkfifo(path, 0o600) }
	mkdir := func(path string) error { return os.Mkdir(path, 0o700) }
	const corrupt, tooNew = messages.CodeBackupCorrupt, messages.CodeUnsupportedVersion
	for name, c := range map[string]struct {
		spoil func(*testing.T, string)
		code  messages.Code
	}{
		"manifest link outside": {replace(manifestName, linkTo(filepath.Join(good, manifestName))), corrupt},
		"manifest link inside":  {replace(manifestName, linkTo("copy.json")), corrupt},
		"manifest pipe":         {replace(manifestName, fifo), corrupt},
		"manifest folder":       {replace(manifestName, mkdir), corrupt},
		"manifest huge": {replace(manifestName, func(path string) error {
			if err := os.WriteFile(path, nil, 0o600); err != nil {
				return err
			}
			return os.Truncate(path, 1<<40)
		}), corrupt},
		"disk link":         {replace("vda.qcow2", linkTo("/etc/shadow")), corrupt},
		"disk pipe":         {replace("vda.qcow2", fifo), corrupt},
		"disk gone":         {func(t *testing.T, b string) { t.Helper(); check(t, os.Remove(filepath.Join(b, "vda.qcow2"))) }, corrupt},
		"disk cut":          {func(t *testing.T, b string) { t.Helper(); check(t, os.Truncate(filepath.Join(b, "vda.qcow2"), 100)) }, corrupt},
		"digests link":      {replace("vda.digests", linkTo("vda.qcow2")), corrupt},
		"domain link":       {replace("domain.xml", linkTo("/etc/passwd")), corrupt},
		"disk path":         {edit(`"vda.qcow2"`, `"/etc/shadow"`), corrupt},
		"disk path up":      {edit(`"vda.qcow2"`, `"../../x"`), corrupt},
		"disk is manifest":  {edit(`"vda.qcow2"`, `"manifest.json"`), corrupt},
		"file twice":        {edit(`"vda.digests"`, `"vda.qcow2"`), corrupt},
		"exabytes":          {edit(`"virtual_bytes": 1073741824`, `"virtual_bytes": 9000000000000000000`), corrupt},
		"beyond int64":      {edit(`"virtual_bytes": 1073741824`, `"virtual_bytes": 1e30`), corrupt},
		"negative":          {edit(`"data_bytes": 1048576`, `"data_bytes": -1`), corrupt},
		"huge digest block": {edit(`"block_bytes": 1048576`, `"block_bytes": 1099511627776`), corrupt},
		"zero digest block": {edit(`"block_bytes": 1048576`, `"block_bytes": 0`), corrupt},
		"another vm":        {edit(`"`+testVM+`"`, `"db1"`), corrupt},
		"another id":        {edit(testID, "01J8ZQ5V9K3N7R2T4W6Y8A0B1D"), corrupt},
		"zone":              {edit(`"z1"`, `"z1.>"`), corrupt},
		"luks or not": {edit(`"encryption": {
    "luks": false`, `"encryption": {
    "luks": true`), corrupt},
		"disk name":  {edit(`"vda"`, `"vda,file=/x"`), corrupt},
		"newer":      {edit(`"version": 1`, `"version": 2`), tooNew},
		"no version": {edit(`"version": 1`, `"version": 0`), corrupt},
		"mode":       {edit(`"full"`, `"differential"`), tooNew},
		"format": {edit(`"format": "qcow2",
      "luks"`, `"format": "raw",
      "luks"`), tooNew},
		"compression": {edit(`"zstd"`, `"lzma"`), tooNew},
	} {
		t.Run(name, func(t *testing.T) {
			r, loc := openDir(t), location()
			b := commit(t, r, loc)
			data, err := os.ReadFile(filepath.Join(b.Dir, manifestName))
			check(t, err)
			check(t, os.WriteFile(filepath.Join(b.Dir, "copy.json"), data, 0o600))
			c.spoil(t, b.Dir)

			_, err = r.Find(t.Context(), ref(loc))
			wantCode(t, err, c.code)
			backups, problems, err := r.List(t.Context(), loc.BackupPath, loc.VM)
			check(t, err)
			if len(backups) != 0 || len(problems) != 1 || messages.CodeOf(problems[0].Err) != c.code {
				t.Fatalf("listed %v, problems %v", backups, problems)
			}
			check(t, r.Delete(t.Context(), ref(loc)))
			wantAbsent(t, filepath.Dir(b.Dir))
			untouched()
		})
	}
}

// What Find has found can be exchanged later: each path is looked at again.
func TestExchangedAfterFind(t *testing.T) {
	r, loc := openDir(t), location()
	b := commit(t, r, loc)
	path := filepath.Join(b.Dir, "vda.qcow2")
	check(t, os.Remove(path))
	check(t, os.Symlink("/etc/passwd", path))
	_, err := b.Path(t.Context(), "vda.qcow2")
	wantCode(t, err, messages.CodeBackupCorrupt)
	_, err = b.ReadFile(t.Context(), "vda.qcow2", 1<<20)
	wantCode(t, err, messages.CodeBackupCorrupt)
}
