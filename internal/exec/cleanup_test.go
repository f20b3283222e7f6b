package exec

import (
	"context"
	"errors"
	"path/filepath"
	"slices"
	"testing"

	"github.com/nasfleet/nasfleet/messages"
)

func TestJobOf(t *testing.T) {
	e := &Executor{cfg: Config{RunDir: "/run/nasfleet"}}
	for socket, want := range map[string]string{
		"/run/nasfleet/" + testJob + "/src/nbd.sock":   testJob,
		"/run/nasfleet/" + testJob + "/dst/nbd.sock":   "",
		"/run/nasfleet/" + testJob + "/nbd.sock":       "",
		"/run/nasfleet/x/src/nbd.sock":                 "",
		"/run/nasfleet/../src/nbd.sock":                "",
		"/run/other/" + testJob + "/src/nbd.sock":      "",
		"/run/nasfleet/a/" + testJob + "/src/nbd.sock": "",
		"/run/nasfleet2/" + testJob + "/src/nbd.sock":  "",
		"": "",
	} {
		if got := e.jobOf(socket); got != want {
			t.Errorf("%s is of job %q, want %q", socket, got, want)
		}
	}
}

func TestLibvirtIsWaitedFor(t *testing.T) {
	down := messages.Errorf(messages.CodeHypervisorDown, "connection refused")
	tries := 0
	err := untilReachable(t.Context(), func(context.Context) error {
		if tries++; tries == 1 {
			return down
		}
		return nil
	})
	if err != nil || tries != 2 {
		t.Errorf("%v after %d tries", err, tries)
	}
	refused := messages.Errorf(messages.CodeTimeout, "no")
	if err := untilReachable(t.Context(), func(context.Context) error { return refused }); !errors.Is(err, refused) {
		t.Errorf("a refusal is not waited on: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	wantCode(t, untilReachable(ctx, func(context.Context) error { return down }), messages.CodeHypervisorDown)
}

func TestCleanUpAfterKilledAttempts(t *testing.T) {
	e, nas, to := newExecutor(t), t.TempDir(), t.TempDir()
	head := messages.Header{JobID: testJob}
	repo := messages.Repository{Type: messages.RepositoryDir, Address: nas}

	write(t, filepath.Join(e.cfg.RunDir, testJob, "vda.digests"), nil)
	write(t, filepath.Join(e.cfg.ScratchDir, testJob, "vda.scratch"), nil)
	write(t, filepath.Join(nas, "p", "vm1", testJob+".partial", "vda.qcow2"), nil)
	write(t, filepath.Join(nas, "p", "vm2", testJob, "manifest.json"), nil)
	done, err := e.CleanUp(t.Context(), &messages.TakeBackup{Header: head, VM: "vm1", BackupPath: "p", Repository: repo})
	check(t, err)
	if done != nil {
		t.Errorf("there is a backup: %+v", done)
	}
	for _, dir := range []string{e.cfg.RunDir, e.cfg.ScratchDir} {
		if left := names(t, dir); left != nil {
			t.Errorf("%s holds %v", dir, left)
		}
	}
	if left := names(t, filepath.Join(nas, "p")); !slices.Equal(left, []string{"vm2"}) {
		t.Errorf("the repository holds %v", left)
	}

	for _, name := range []string{".vda.qcow2." + testJob + ".partial", ".vdb.qcow2.OTHER.partial", "vda.qcow2"} {
		write(t, filepath.Join(to, name), nil)
	}
	for _, dir := range []string{to, filepath.Join(to, "none"), ""} {
		_, err := e.CleanUp(t.Context(), &messages.RestoreBackup{Header: head, ToDir: dir})
		check(t, err)
	}
	if left := names(t, to); !slices.Equal(left, []string{".vdb.qcow2.OTHER.partial", "vda.qcow2"}) {
		t.Errorf("the target holds %v", left)
	}
}

// TestCleanUpGoesWhereTheHostAllows: a command that was refused for its paths is not obeyed by its cleaning up.
func TestCleanUpGoesWhereTheHostAllows(t *testing.T) {
	e, dir := newExecutor(t), t.TempDir()
	e.cfg.AllowPaths = []string{t.TempDir()}
	head := messages.Header{JobID: testJob}
	left := []string{write(t, filepath.Join(dir, ".vda.qcow2."+testJob+".partial"), nil), write(t, filepath.Join(dir, "vm1", testJob+".partial", "vda.qcow2"), nil)}
	_, err := e.CleanUp(t.Context(), &messages.RestoreBackup{Header: head, ToDir: dir})
	wantCode(t, err, messages.CodePathNotAllowed)
	_, err = e.CleanUp(t.Context(), &messages.TakeBackup{Header: head, VM: "vm1", Repository: messages.Repository{Type: messages.RepositoryDir, Address: dir}})
	wantCode(t, err, messages.CodePathNotAllowed)
	for _, path := range left {
		if !exists(path) {
			t.Errorf("%s is gone", path)
		}
	}
}

// TestCleanUpFindsWhatWasCommitted: an attempt that was killed when it had committed left a backup. It
// stays, and is what the job has to report.
func TestCleanUpFindsWhatWasCommitted(t *testing.T) {
	e := newExecutor(t)
	ref := takeImages(t, e, 1<<20)
	done, err := e.CleanUp(t.Context(), &messages.TakeBackup{
		Header: messages.Header{JobID: testJob}, Images: []messages.Image{{Path: "/srv/vm1.img"}}, Repository: ref.Repository,
	})
	check(t, err)
	if done == nil || done.BackupID != ref.ID || done.Backup == nil || done.Backup.VM != ref.VM || done.Backup.VirtualBytes != 1<<20 {
		t.Errorf("it reports %+v", done)
	}
}
