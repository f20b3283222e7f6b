package main

import (
	"context"
	"errors"
	"os"
	"runtime"
	"strings"
	"testing"

	"github.com/rs/zerolog"
	"go.uber.org/goleak"

	"github.com/nasfleet/nasfleet/internal/exec"
	"github.com/nasfleet/nasfleet/internal/worker"
	"github.com/nasfleet/nasfleet/tests/lab"
)

func TestAwait(t *testing.T) {
	absent, broken := errors.New("absent"), errors.New("broken")
	isAbsent := func(err error) bool { return errors.Is(err, absent) }
	var log lab.Output
	s := newStartup(nil, zerolog.New(&log))

	tries := 0
	err := s.await(t.Context(), "NATS", isAbsent, func(context.Context) error {
		if tries++; tries < 3 {
			return absent
		}
		return nil
	})
	if err != nil || tries != 3 {
		t.Errorf("%d tries, %v", tries, err)
	}
	if got := log.String(); strings.Count(got, "waits for NATS") != 1 || strings.Count(got, "NATS is there") != 1 {
		t.Errorf("%s", got)
	}

	if err := s.await(t.Context(), "NATS", isAbsent, func(context.Context) error { return broken }); !errors.Is(err, broken) {
		t.Errorf("%v", err)
	}

	ctx, cancel := context.WithCancel(t.Context())
	err = s.await(ctx, "NATS", isAbsent, func(ctx context.Context) error {
		cancel()
		<-ctx.Done()
		return ctx.Err()
	})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("%v", err)
	}
}

// TestTryNamespace makes sure that trying leaves the test where it is.
func TestTryNamespace(t *testing.T) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	before := mountNamespace(t, os.Getpid())
	if err := tryNamespace(); err != nil {
		t.Fatal(err)
	}
	here, err := os.Readlink("/proc/thread-self/ns/mnt")
	if err != nil || here != before || mountNamespace(t, os.Getpid()) != before {
		t.Errorf("%s, and before %s, %v", here, before, err)
	}
}

// TestMaxRunDir keeps the settings in step with exec.
func TestMaxRunDir(t *testing.T) {
	base := t.TempDir() + "/"
	for length, fits := range map[int]bool{maxRunDir: true, maxRunDir + 1: false} {
		if len(base) >= length {
			t.Fatalf("%s is too long for this test", base)
		}
		dir := base + strings.Repeat("r", length-len(base))
		_, err := exec.New(exec.Config{RunDir: dir, ScratchDir: dir})
		s := settings{RunDir: dir, StateDir: dir, Scratch: dir, MountCredentials: dir}
		if (err == nil) != fits || (s.cleanFolders() == nil) != fits {
			t.Errorf("%d bytes: %v, %v", length, err, s.cleanFolders())
		}
	}
}

func TestServeMetrics(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	stop, err := serveMetrics("127.0.0.1:0", worker.NewMetrics(), func() string { return "" }, zerolog.Nop())
	if err != nil {
		t.Fatal(err)
	}
	stop()
	if stop, err = serveMetrics("", nil, nil, zerolog.Nop()); err != nil {
		t.Fatal(err)
	}
	stop()
	if _, err = serveMetrics("192.0.2.1:1", worker.NewMetrics(), nil, zerolog.Nop()); err == nil {
		t.Error("it listens on an address that is not the host's")
	}
}
