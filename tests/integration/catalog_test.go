package integration

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/nasfleet/nasfleet/messages"
	"github.com/nasfleet/nasfleet/tests/lab"
)

// ls returns what publisher ls --json prints, as a program would read it.
func (w *world) ls(t *testing.T, args ...string) []map[string]any {
	t.Helper()
	var list []map[string]any
	if err := json.Unmarshal([]byte(w.publisher(t, append([]string{"ls", "--json"}, args...)...)), &list); err != nil {
		t.Fatal(err)
	}
	return list
}

// TestCatalog lists, shows and deletes backups, and rebuilds the catalog from the repository when
// NATS has lost it.
func TestCatalog(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "none")
	image := dataImage(t, w, "disk.img", 32)
	if list := w.ls(t); len(list) != 0 {
		t.Fatalf("an empty catalog has %v", list)
	}
	first := w.take(t, "--image", image, "--compress", "--backup-path", "weekly/images")
	second := w.take(t, "--image", image, "--backup-path", "weekly/images")

	list := w.ls(t)
	if len(list) != 2 || list[0]["id"] != first.BackupID || list[1]["id"] != second.BackupID {
		t.Fatalf("ls: %v", list)
	}
	for field, want := range map[string]any{
		"zone": zone, "host": host, "vm": "disk", "job_id": first.JobID, "mode": "full",
		"encrypted": false, "compressed": true, "virtual_bytes": float64(32 * lab.MiB),
	} {
		if list[0][field] != want {
			t.Errorf("ls: %s is %v, want %v", field, list[0][field], want)
		}
	}
	for _, field := range []string{"created_at", "stored_bytes"} {
		if list[0][field] == nil {
			t.Errorf("ls: no %s", field)
		}
	}
	if out := w.publisher(t, "show", first.BackupID); !strings.Contains(out, "disk0.qcow2") || !strings.Contains(out, "weekly/images") {
		t.Errorf("show: %s", out)
	}

	w.mustJob(t, "delete", "--backup", first.BackupID)
	if list := w.ls(t); len(list) != 1 || list[0]["id"] != second.BackupID {
		t.Errorf("ls after a delete: %v", list)
	}
	dir := filepath.Join(w.nas, "weekly/images/disk")
	if entries, _ := os.ReadDir(dir); len(entries) != 1 || entries[0].Name() != second.BackupID {
		t.Errorf("the repository after a delete: %v", entries)
	}
	w.mustFail(t, messages.CodeBackupNotFound, "verify", "--backup", w.forget(t, second))
	if ev := w.mustJob(t, "delete", "--backup", second.BackupID); len(ev.Notes) == 0 {
		t.Error("the event does not say that the backup was gone already")
	}
	if list := w.ls(t); len(list) != 0 {
		t.Errorf("ls still has what is gone: %v", list)
	}
	w.nothingLeft(t)

	// NATS starts from nothing; the manifests are the truth.
	third := w.take(t, "--image", image, "--backup-path", "weekly/images")
	w.stop(t)
	if err := os.RemoveAll(filepath.Join(w.dir, "nats")); err != nil {
		t.Fatal(err)
	}
	w.start(t)
	if list := w.ls(t); len(list) != 0 {
		t.Fatalf("a new catalog has %v", list)
	}
	w.publisher(t, "ls", "--refresh", "--zone", zone, "--host", host, "--repo", w.nas, "--backup-path", "weekly/images")
	if list := w.ls(t); len(list) != 1 || list[0]["id"] != third.BackupID {
		t.Errorf("ls after a refresh: %v", list)
	}
	w.restoreAndCompare(t, features{}, third, map[string]original{"disk0": {"raw", image}})
}

// forget removes a backup behind nasfleet's back.
func (w *world) forget(t *testing.T, ev messages.Event) string {
	t.Helper()
	if err := os.RemoveAll(filepath.Join(w.nas, ev.Backup.BackupPath, ev.VM, ev.BackupID)); err != nil {
		t.Fatal(err)
	}
	return ev.BackupID
}

// TestFanOut publishes a file of targets, one of which fails and one of which nobody serves.
func TestFanOut(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "none", "--jobs", "3")
	var targets []string
	for i := range 6 {
		image := noise(t, filepath.Join(w.dir, fmt.Sprintf("disk-%d.img", i)), 8, 4)
		targets = append(targets, fmt.Sprintf("- {zone: %s, host: %s, images: [%q]}", zone, host, image))
	}
	write := func(lines ...string) string {
		path := filepath.Join(t.TempDir(), "targets.yaml")
		if err := os.WriteFile(path, []byte(strings.Join(lines, "\n")+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		return path
	}
	w.publisher(t, "take", "--targets", write(targets...), "--repo", w.nas, "--verify", "--wait")
	if list := w.ls(t); len(list) != 6 {
		t.Errorf("%d backups, want 6", len(list))
	}
	missing := fmt.Sprintf("- {zone: %s, host: %s, images: [%q]}", zone, host, filepath.Join(w.dir, "missing.img"))
	out, errs, code := w.try("take", "--targets", write(append(targets, missing)...), "--repo", w.nas, "--wait")
	if code != 1 || !strings.Contains(out+errs, string(messages.CodeDiskNotFound)) {
		t.Errorf("with a target that fails: exit code %d\n%s%s", code, out, errs)
	}
	if list := w.ls(t); len(list) != 12 {
		t.Errorf("%d backups, want 12", len(list))
	}
	w.nothingLeft(t)
}
