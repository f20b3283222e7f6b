package exec

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nasfleet/nasfleet/messages"
)

func TestCleaningUpGoesOnInReverse(t *testing.T) {
	e := newExecutor(t)
	ws, err := e.open(testJob)
	check(t, err)
	first, third := errors.New("one"), errors.New("three")
	var order []string
	step := func(name string, err error) {
		ws.onClose(name, func(context.Context) error { order = append(order, name); return err })
	}
	step("a", first)
	step("b", nil)
	ws.onClose("c", func(context.Context) error { order = append(order, "c"); panic("a defect") })
	step("d", third)
	err = ws.close()
	if !errors.Is(err, first) || !errors.Is(err, third) || !strings.Contains(err.Error(), "a defect") {
		t.Errorf("closing says %v", err)
	}
	if !slices.Equal(order, []string{"d", "c", "b", "a"}) {
		t.Errorf("order %v", order)
	}
	if exists(ws.dir) {
		t.Error("the job's folder is left")
	}
	if err := ws.close(); err != nil || len(order) != 4 {
		t.Errorf("closing again: %v, %v", err, order)
	}
}

// asked is a context that tells when a call is made under it.
type asked struct {
	context.Context
	tell func()
}

func (a asked) Deadline() (time.Time, bool) { a.tell(); return a.Context.Deadline() }

// What protects a guest is told at once that the attempt is over: before the repository is asked what the
// failure came from, which one that hangs can draw out.
func TestTheGuestComesBeforeTheReasonOfAFailure(t *testing.T) {
	e := newExecutor(t)
	ws, err := e.open(testJob)
	check(t, err)
	var over atomic.Bool
	ended, failed := make(chan struct{}), messages.Errorf(messages.CodeTargetWriteFailed, "an error of the target")
	ctx := asked{t.Context(), func() {
		if !over.Load() {
			return
		}
		select {
		case <-ended:
		case <-time.After(time.Minute):
			t.Error("the repository is asked while libvirt's job runs")
		}
	}}
	err = ws.attempt(ctx, &messages.TakeBackup{}, func(ctx context.Context) error {
		_, err := ws.repository(ctx, messages.Repository{Type: messages.RepositoryDir, Address: t.TempDir()})
		check(t, err)
		g := e.protect(ctx, func(err error) { t.Error(err) }, func(context.Context) error { close(ended); return nil })
		ws.onClose("the guardian", func(context.Context) error { g.leave(); return nil })
		over.Store(true)
		return failed
	})
	if !errors.Is(err, failed) {
		t.Errorf("the error is %v", err)
	}
}

func TestOpenRemovesWhatAKilledAttemptLeft(t *testing.T) {
	e := newExecutor(t)
	dir := filepath.Join(e.cfg.RunDir, testJob)
	write(t, filepath.Join(dir, "dst0", "nbd-1.sock"), nil)
	check(t, os.Mkdir(filepath.Join(dir, mountFolder), 0o700))
	ws, err := e.open(testJob)
	check(t, err)
	if left := names(t, dir); left != nil {
		t.Errorf("left: %v", left)
	}
	check(t, ws.close())
}

// mounted mounts a file system with somebody's backup on the job's mount point.
func mounted(t *testing.T, e *Executor) (backup string) {
	t.Helper()
	mnt := filepath.Join(e.cfg.RunDir, testJob, mountFolder)
	check(t, os.MkdirAll(mnt, 0o700))
	check(t, unix.Mount("tmpfs", mnt, "tmpfs", 0, ""))
	t.Cleanup(func() { check(t, unix.Unmount(mnt, 0)) })
	return write(t, filepath.Join(mnt, "vm1", "B", "manifest.json"), []byte("{}"))
}

func TestCleaningUpNeverGoesIntoAMount(t *testing.T) {
	t.Run("open and close", func(t *testing.T) {
		e := newExecutor(t)
		backup := mounted(t, e)
		write(t, filepath.Join(e.cfg.RunDir, testJob, "src", "nbd.sock"), nil)
		ws, err := e.open(testJob)
		check(t, err)
		if left := names(t, ws.dir); !slices.Equal(left, []string{mountFolder}) {
			t.Errorf("left: %v", left)
		}
		if err := ws.close(); !errors.Is(err, unix.EBUSY) {
			t.Errorf("closing says %v", err)
		}
		if !exists(backup) {
			t.Error("the repository was emptied")
		}
	})
	t.Run("a killed attempt at the same job", func(t *testing.T) {
		e := newExecutor(t)
		backup := mounted(t, e)
		scratch := write(t, filepath.Join(e.cfg.ScratchDir, testJob, "vda.scratch"), nil)
		check(t, e.removeLeftover(t.Context(), testJob, testJob))
		if !exists(backup) || exists(scratch) {
			t.Errorf("the backup is there: %t, the scratch file: %t", exists(backup), exists(scratch))
		}
	})
	t.Run("a killed attempt at another job", func(t *testing.T) {
		e := newExecutor(t)
		backup := mounted(t, e)
		wantCode(t, e.removeLeftover(t.Context(), testJob, "01J8ZQ5V9K3N7R2T4W6Y8A0B1D"), messages.CodeInternal)
		if !exists(backup) {
			t.Error("the repository was emptied")
		}
	})
}

func TestNewMakesItsFoldersAbsolute(t *testing.T) {
	dir := shortDir(t)
	e, err := New(Config{RunDir: dir + "/run/", ScratchDir: dir + "//scratch"})
	check(t, err)
	if e.cfg.RunDir != dir+"/run" || e.cfg.ScratchDir != dir+"/scratch" {
		t.Errorf("folders %s and %s", e.cfg.RunDir, e.cfg.ScratchDir)
	}
	if _, err := New(Config{RunDir: filepath.Join(dir, strings.Repeat("x", maxRunDir)), ScratchDir: dir}); err == nil {
		t.Error("a run folder with a long path was taken")
	}
}
