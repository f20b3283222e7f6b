package chain

import (
	"encoding/json"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/nasfleet/nasfleet/messages"
	"github.com/nasfleet/nasfleet/tests/lab"
)

// open adds what a backup's content needs to be read.
func (r *run) open(b backup, args ...string) []string {
	if b.encrypted {
		args = append(args, "--passphrase-file", r.passphrase)
	}
	return args
}

// restoresOne restores a backup that is chosen at random.
func (r *run) restoresOne() {
	r.t.Helper()
	if len(r.backups) > 0 {
		r.restores(r.backups[r.rnd.IntN(len(r.backups))])
	}
}

// restores fails the test unless a backup, or one disk of it, restores to the bytes of its moment.
func (r *run) restores(b backup) {
	r.t.Helper()
	to := r.host.path("restored")
	args, disks := r.open(b, "restore", "--backup", b.id, "--to", to, "--format", "raw"), maps.Clone(b.disks)
	if r.rnd.IntN(3) == 0 {
		alone := r.disk()
		args, disks = append(args, "--disk", alone), map[string]content{alone: b.disks[alone]}
	}
	r.host.mustJob(r.t, args...)
	if got := folder(r.t, to); len(slices.DeleteFunc(got, func(f string) bool { return !strings.HasSuffix(f, ".raw") })) != len(disks) {
		r.t.Errorf("%v restored %v", args, got)
	}
	for disk, want := range disks {
		if err := want.compare(filepath.Join(to, disk+".raw")); err != nil {
			r.t.Errorf("backup %s, which continues %q: %v", b.id, b.parent, err)
		}
	}
	if err := os.RemoveAll(to); err != nil {
		r.t.Error(err)
	}
}

// nothingElse fails the test unless there are the model's backups and nothing else: in the catalog, on the
// NAS, in libvirt and on the host.
func (r *run) nothingElse() {
	r.t.Helper()
	var want []string
	for _, b := range r.backups {
		want = append(want, b.id)
	}
	slices.Sort(want)
	var entries []messages.CatalogEntry
	out, _, err := r.host.publisher("ls", "--json")
	if err == nil {
		err = json.Unmarshal([]byte(out), &entries)
	}
	if err != nil {
		r.t.Fatal(err)
	}
	var cataloged []string
	for _, e := range entries {
		cataloged = append(cataloged, e.ID)
	}
	slices.Sort(cataloged)
	if !slices.Equal(cataloged, want) {
		r.t.Errorf("the catalog has %v, want %v", cataloged, want)
	}
	if got := folder(r.t, filepath.Join(r.nas, vmName)); !slices.Equal(got, want) {
		r.t.Errorf("the NAS has %v, want %v", got, want)
	}
	lab.NoFilesMatching(r.t, r.nas, "*.partial")
	for _, dir := range []string{"run", "scratch"} {
		if left := folder(r.t, r.host.path(dir)); len(left) > 0 {
			r.t.Errorf("left in the %s folder: %v", dir, left)
		}
	}
	r.vm.Running(r.t)
	if r.vm.HasBackupJob(r.t) {
		r.t.Error("libvirt still runs a backup job")
	}
	checkpoints := strings.Fields(r.libvirt.Virsh(r.t, "checkpoint-list", vmName, "--name"))
	checkpoints = slices.DeleteFunc(checkpoints, func(c string) bool { return slices.Contains(r.strays, c) })
	if r.tip != "" && !slices.Equal(checkpoints, []string{"nasfleet-" + r.checkpoint}) || r.tip == "" && len(checkpoints) > 0 {
		r.t.Errorf("the checkpoints are %v, and maybe %v; the one to continue is that of %q, held by %q", checkpoints, r.strays, r.checkpoint, r.tip)
	}
}

// folder lists a folder, which may be missing, in order.
func folder(t *testing.T, path string) []string {
	t.Helper()
	entries, err := os.ReadDir(path)
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}
