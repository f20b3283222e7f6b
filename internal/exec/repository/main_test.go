package repository

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/moby/sys/mountinfo"
	"go.uber.org/goleak"

	"github.com/nasfleet/nasfleet/messages"
)

const (
	testVM = "web1"
	testID = "01J8ZQ5V9K3N7R2T4W6Y8A0B1C"
)

// TestMain runs the tests in a mount namespace of their own, as the worker does: whatever a test that dies
// leaves mounted ends with it.
func TestMain(m *testing.M) {
	const inside = "NASFLEET_TEST_NAMESPACE"
	if os.Getenv(inside) != "" {
		goleak.VerifyTestMain(m)
		return
	}
	exe, err := os.Executable()
	if err != nil {
		panic(err)
	}
	cmd := exec.Command(exe, os.Args[1:]...)
	cmd.Env = append(os.Environ(), inside+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	err = cmd.Run()
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit):
		os.Exit(max(exit.ExitCode(), 1))
	case err != nil:
		panic(err)
	}
}

func openDir(t *testing.T) *Repository {
	t.Helper()
	r, err := Open(t.Context(), messages.Repository{Type: messages.RepositoryDir, Address: t.TempDir()}, Options{})
	check(t, err)
	t.Cleanup(func() { check(t, r.Close()) })
	return r
}

func location() Location { return Location{BackupPath: "daily/prod", VM: testVM, ID: testID} }

func ref(loc Location) messages.BackupRef {
	return messages.BackupRef{ID: loc.ID, VM: loc.VM, BackupPath: loc.BackupPath}
}

func manifest(loc Location) Manifest {
	return Manifest{
		ID: loc.ID, JobID: loc.ID, Zone: "z1", Host: "h1", VM: loc.VM, Source: SourceStopped,
		CreatedAt: time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC), Mode: messages.ModeFull, Compression: messages.Zstd,
		Digest:     Digest{Algorithm: "blake3-128", BlockBytes: 1 << 20},
		DomainFile: "domain.xml",
		Disks: []Disk{{
			Name: "vda", File: "vda.qcow2", DigestsFile: "vda.digests", Format: FormatQCOW2,
			VirtualBytes: 1 << 30, DataBytes: 1 << 20,
			Source: Source{Path: "/var/lib/images/web 1.qcow2", Format: "qcow2"},
		}},
		Notes: []string{"hdc left out"},
	}
}

// fill writes the files that manifest names.
func fill(t testing.TB, p *Partial) {
	t.Helper()
	ctx := context.Background()
	check(t, p.WriteFile(ctx, "domain.xml", []byte("<domain/>")))
	path, err := p.Path(ctx, "vda.qcow2")
	check(t, err)
	check(t, os.WriteFile(path, []byte(strings.Repeat("data", 5000)), 0o600))
	local := filepath.Join(t.TempDir(), "digests")
	check(t, os.WriteFile(local, []byte("digests"), 0o600))
	check(t, p.CopyIn(ctx, local, "vda.digests"))
}

func commit(t *testing.T, r *Repository, loc Location) *Backup {
	t.Helper()
	p, err := r.Create(t.Context(), loc)
	check(t, err)
	fill(t, p)
	b, err := p.Commit(t.Context(), manifest(loc))
	check(t, err)
	return b
}

func check(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func wantCode(t *testing.T, err error, code messages.Code) {
	t.Helper()
	if got := messages.CodeOf(err); err == nil || got != code {
		t.Fatalf("got %v (code %q), want code %q", err, got, code)
	}
}

func wantAbsent(t *testing.T, paths ...string) {
	t.Helper()
	for _, p := range paths {
		if _, err := os.Lstat(p); !errors.Is(err, os.ErrNotExist) {
			t.Fatalf("%s is there (%v)", p, err)
		}
	}
}

// wantUnmounted makes sure that nothing is left of a mount: no mount, no mount point, no loop device.
func wantUnmounted(t *testing.T, dir, image string) {
	t.Helper()
	mounts, err := mountinfo.GetMounts(mountinfo.PrefixFilter(dir))
	check(t, err)
	if len(mounts) != 0 {
		t.Fatalf("still mounted: %+v", mounts[0])
	}
	wantAbsent(t, dir)
	if image != "" {
		waitFor(t, "the loop device to go", func() bool { return !hasLoop(t, image) })
	}
}

func hasLoop(t *testing.T, image string) bool {
	t.Helper()
	files, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	check(t, err)
	for _, f := range files {
		if data, err := os.ReadFile(f); err == nil && strings.HasPrefix(string(data), image) {
			return true
		}
	}
	return false
}

// waitFor waits for what the kernel or another process does in its own time.
func waitFor(t *testing.T, what string, done func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(20 * time.Second)
	for !done() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

func names(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	check(t, err)
	var all []string
	for _, e := range entries {
		all = append(all, e.Name())
	}
	return all
}
