package storaged

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"

	"github.com/nasfleet/nasfleet/messages"
)

func TestStopTwice(t *testing.T) {
	d, _ := startDaemon(t, quick)
	mustDo(t, d.CreateDisk(t.Context(), "vda", NewDisk{filepath.Join(t.TempDir(), "disk"), FormatQcow2, 1 << 20}))
	if _, err := os.Stat(d.Socket()); err != nil {
		t.Error(err)
	}
	for range 2 {
		mustDo(t, d.Stop())
		requireGone(t, d)
	}
	if words := d.proc.Err(); words != nil {
		t.Errorf("the daemon was not ended in order: %v", words)
	}
	err := d.OpenDisk(t.Context(), "vdb", Disk{Path: "/dev/null", Format: FormatRaw})
	if err == nil {
		t.Error("a stopped daemon opens disks")
	}
}

func TestStartFails(t *testing.T) {
	open := shortDir(t)
	mustDo(t, os.Chmod(open, 0o755))
	long := filepath.Join(shortDir(t), strings.Repeat("x", 100))
	mustDo(t, os.Mkdir(long, 0o700))
	for name, cfg := range map[string]Config{
		"no program":       {Binary: "/nonexistent/program", Dir: shortDir(t)},
		"ends at once":     {Binary: "/bin/false", Dir: shortDir(t)},
		"is not a daemon":  {Binary: "/bin/echo", Dir: shortDir(t)},
		"no folder":        {Dir: "/nonexistent"},
		"folder open":      {Dir: open},
		"folder path long": {Dir: long},
	} {
		t.Run(name, func(t *testing.T) {
			d, err := Start(t.Context(), cfg)
			if d != nil || messages.CodeOf(err) != messages.CodeStorageDaemonFailed {
				t.Errorf("got %v, %v", d, err)
			}
			if cfg.Dir != "/nonexistent" && len(entries(t, cfg.Dir)) != 0 {
				t.Errorf("left: %v", entries(t, cfg.Dir))
			}
		})
	}
}

// TestStartCancelled starts a program that never says anything.
func TestStartCancelled(t *testing.T) {
	program := filepath.Join(t.TempDir(), "mute")
	mustDo(t, os.WriteFile(program, []byte("#!/bin/sh\nexec sleep 600\n"), 0o700))
	cause := errors.New("changed my mind")
	ctx, cancel := context.WithCancelCause(t.Context())
	timer := time.AfterFunc(50*time.Millisecond, func() { cancel(cause) })
	defer timer.Stop()
	if _, err := Start(ctx, Config{Binary: program, Dir: shortDir(t)}); !errors.Is(err, cause) {
		t.Errorf("got %v", err)
	}
}

// TestKilled kills the daemon under an open export and in the middle of making another.
func TestKilled(t *testing.T) {
	d, log := startDaemon(t, quick)
	dir := t.TempDir()
	mustDo(t, d.CreateBackup(t.Context(), "vda", NewBackup{Path: filepath.Join(dir, "vda"), Size: 1 << 20}))
	started := log.expect("blockdev-create", "the storage daemon obeyed")
	failed := make(chan error, 1)
	path := filepath.Join(dir, "vdb")
	go func() {
		failed <- d.CreateBackup(context.Background(), "vdb", NewBackup{Path: path, Size: 1 << 20, Compression: "", Passphrase: []byte(testPassphrase)})
	}()
	<-started
	mustDo(t, unix.Kill(d.PID(), unix.SIGSEGV))
	for _, err := range []error{
		<-failed,
		d.CloseExport(t.Context(), "vda"),
		d.OpenBackup(t.Context(), "vdc", Backup{Path: filepath.Join(dir, "vda")}),
	} {
		if messages.CodeOf(err) != messages.CodeStorageDaemonFailed || !strings.Contains(err.Error(), "signal: segmentation fault") {
			t.Errorf("got %v", err)
		}
	}
	<-d.Done()
	if _, err := os.Lstat(path); err == nil {
		t.Error("the file of a failed backup was left")
	}
}

// TestCancelled ends the context while the daemon derives a LUKS key, which nothing interrupts:
// before it has answered that the job was begun, and after.
func TestCancelled(t *testing.T) {
	d, log := startDaemon(t, quick)
	d.patience = time.Minute
	path := filepath.Join(t.TempDir(), "backup")
	for _, moment := range []string{"to the storage daemon", "the storage daemon obeyed"} {
		cause := errors.New("changed my mind")
		ctx, cancel := context.WithCancelCause(t.Context())
		started := log.expect("blockdev-create", moment)
		failed := make(chan error, 1)
		go func() {
			failed <- d.CreateBackup(ctx, "vda", NewBackup{Path: path, Size: 1 << 20, Compression: "zstd", Passphrase: []byte(testPassphrase)})
		}()
		<-started
		cancel(cause)
		if err := <-failed; !errors.Is(err, cause) {
			t.Errorf("got %v", err)
		}
		if _, err := os.Lstat(path); err == nil {
			t.Error("the file of a cancelled backup was left")
		}
		requireEmpty(t, d)
		if err := d.CreateBackup(ctx, "vda", NewBackup{Path: path, Size: 1 << 20}); !errors.Is(err, cause) {
			t.Errorf("got %v", err)
		}
	}
	// The daemon is as good as new.
	mustDo(t, d.CreateBackup(t.Context(), "vda", NewBackup{Path: path, Size: 1 << 20}))
	mustDo(t, d.CloseExport(t.Context(), "vda"))
	requireEmpty(t, d)
}

// TestStopWhileBusy stops a daemon that derives a key, or is about to.
func TestStopWhileBusy(t *testing.T) {
	d, log := startDaemon(t, 5*time.Second)
	path := filepath.Join(t.TempDir(), "backup")
	started := log.expect("blockdev-create", "to the storage daemon")
	failed := make(chan error, 1)
	go func() {
		failed <- d.CreateBackup(context.Background(), "vda", NewBackup{Path: path, Size: 1 << 20, Compression: "", Passphrase: []byte(testPassphrase)})
	}()
	<-started
	mustDo(t, d.Stop())
	if err := <-failed; messages.CodeOf(err) != messages.CodeStorageDaemonFailed {
		t.Errorf("got %v", err)
	}
}

// TestFrozen meets a daemon that hangs, as one does on a dead NAS: it is ended in the end.
func TestFrozen(t *testing.T) {
	d, _ := startDaemon(t, quick)
	mustDo(t, d.CreateDisk(t.Context(), "vda", NewDisk{filepath.Join(t.TempDir(), "disk"), FormatRaw, 1 << 20}))
	d.patience = 100 * time.Millisecond
	mustDo(t, unix.Kill(d.PID(), unix.SIGSTOP))
	cause := errors.New("no patience")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(cause)
	if err := d.CloseExport(ctx, "vda"); !errors.Is(err, cause) {
		t.Errorf("got %v", err)
	}
	select {
	case <-d.Done():
	default:
		t.Error("the daemon was left hanging")
	}
}

// TestClientsAtClose closes an export under a connected client.
func TestClientsAtClose(t *testing.T) {
	d, _ := startDaemon(t, quick)
	for range 3 {
		path := filepath.Join(t.TempDir(), "disk")
		mustDo(t, d.CreateDisk(t.Context(), "vda", NewDisk{path, FormatQcow2, 64 << 20}))
		conn, err := net.Dial("unix", d.Socket())
		mustDo(t, err)
		mustDo(t, d.CloseExport(t.Context(), "vda"))
		_ = conn.Close()
		requireEmpty(t, d)
	}
}

func TestLogIsQuiet(t *testing.T) {
	d, err := Start(t.Context(), Config{Dir: shortDir(t), Log: zerolog.Nop()})
	mustDo(t, err)
	mustDo(t, d.Stop())
	if d.iterTime != DefaultIterTime {
		t.Errorf("iter-time %v", d.iterTime)
	}
}
