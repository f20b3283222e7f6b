package exec

import (
	"context"
	"errors"
	"io/fs"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/nasfleet/nasfleet/internal/exec/bounded"
	"github.com/nasfleet/nasfleet/internal/exec/digest"
	"github.com/nasfleet/nasfleet/internal/exec/nbd"
	"github.com/nasfleet/nasfleet/messages"
)

func TestEachEndsTheOthers(t *testing.T) {
	bad := errors.New("bad")
	var busy, most atomic.Int32
	both := make(chan struct{})
	err := each(t.Context(), []int{1, 2, 3}, func(ctx context.Context, n int) error {
		if now := busy.Add(1); now > most.Load() {
			most.Store(now)
		}
		defer busy.Add(-1)
		switch n {
		case 1:
			<-both
			return bad
		case 2:
			close(both)
		}
		<-ctx.Done()
		return ctx.Err()
	})
	if !errors.Is(err, bad) || most.Load() > disksAtOnce {
		t.Errorf("%v with %d at once", err, most.Load())
	}
}

func TestAPanicCostsOneJob(t *testing.T) {
	boom := func(context.Context) error { panic("boom") }
	wantCode(t, each(t.Context(), []int{1}, func(ctx context.Context, _ int) error { return boom(ctx) }), messages.CodeInternal)
	wantCode(t, watched(t.Context(), func(context.Context) error { return nil }, boom), messages.CodeInternal)
	_, err := onHost(t.Context(), messages.CodeSourceReadFailed, "look", func() (int, error) { panic("boom") })
	wantCode(t, err, messages.CodeInternal)

	// The check panics while the work goes on: that ends first.
	ended := false
	err = watched(t.Context(), boom, func(ctx context.Context) error { <-ctx.Done(); ended = true; return ctx.Err() })
	wantCode(t, err, messages.CodeInternal)
	if !ended {
		t.Error("the work goes on")
	}

	e := newExecutor(t)
	cmd := &messages.ListBackups{Header: messages.Header{JobID: testJob}}
	_, err = e.Run(t.Context(), cmd, nil, nil) // a nil Reporter is a defect
	wantCode(t, err, messages.CodeInternal)
	if p := new(bounded.Panic); !errors.As(err, &p) || len(p.Stack) == 0 {
		t.Errorf("%v has no stack", err)
	}
	if left := names(t, e.cfg.RunDir); left != nil {
		t.Errorf("left: %v", left)
	}
}

func TestWatched(t *testing.T) {
	workErr, checkErr := errors.New("work"), errors.New("check")
	fine := func(context.Context) error { return nil }
	fails := func(err error) func(context.Context) error { return func(context.Context) error { return err } }
	if err := watched(t.Context(), fine, fine); err != nil {
		t.Error(err)
	}
	if err := watched(t.Context(), fine, fails(workErr)); !errors.Is(err, workErr) {
		t.Errorf("work that fails: %v", err)
	}
	// What the source says explains why the work failed.
	if err := watched(t.Context(), fails(checkErr), fails(workErr)); !errors.Is(err, checkErr) {
		t.Errorf("both fail: %v", err)
	}
	// A check that fails in between ends the work.
	err := watched(t.Context(), fails(checkErr), func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() })
	if !errors.Is(err, checkErr) {
		t.Errorf("the check failed: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := watched(ctx, fails(checkErr), fails(workErr)); !errors.Is(err, workErr) {
		t.Errorf("after the end of ctx: %v", err)
	}
}

func TestMismatch(t *testing.T) {
	m := &digest.Mismatch{Offset: 1 << 20, Length: 5}
	err := mismatch(messages.CodeVerifyFailed, "vda", errors.Join(m))
	wantCode(t, err, messages.CodeVerifyFailed)
	if !errors.Is(err, m) {
		t.Errorf("%v lost its cause", err)
	}
	other := errors.New("other")
	if err := mismatch(messages.CodeVerifyFailed, "vda", other); !errors.Is(err, other) || messages.CodeOf(err) != messages.CodeInternal {
		t.Errorf("another error became %v", err)
	}
}

func TestUndecodable(t *testing.T) {
	file := write(t, t.TempDir()+"/f", []byte("readable"))
	eio := func(code messages.Code, op string) error {
		return messages.Errorf(code, "x: %w", &nbd.Error{Op: op, Offset: 7, Length: 9, Errno: syscall.EIO})
	}
	var m *digest.Mismatch
	if err := undecodable(t.Context(), []storedLink{{path: file}}, eio(messages.CodeSourceReadFailed, "read")); !errors.As(err, &m) || m.Offset != 7 {
		t.Errorf("damage in a file that can be read: %v", err)
	}
	wantCode(t, undecodable(t.Context(), []storedLink{{path: file + "x"}}, eio(messages.CodeSourceReadFailed, "read")), messages.CodeSourceReadFailed)
	// The disk restored to fails: that says nothing about the backup.
	wantCode(t, undecodable(t.Context(), []storedLink{{path: file}}, eio(messages.CodeTargetWriteFailed, "write")), messages.CodeTargetWriteFailed)
}

func TestAFullRunFolderIsNotTheTarget(t *testing.T) {
	full := messages.Errorf(messages.CodeTargetFull, "digests: %w", &fs.PathError{Op: "write", Path: "/run/x", Err: syscall.ENOSPC})
	wantCode(t, ownTrouble(full), messages.CodeInternal)
	target := messages.Errorf(messages.CodeTargetFull, "%w", &nbd.Error{Op: "write", Errno: syscall.ENOSPC})
	wantCode(t, ownTrouble(target), messages.CodeTargetFull)
	chain := messages.Errorf(messages.CodeSourceReadFailed, "digests: %w", &fs.PathError{Op: "read", Path: "/run/mnt/x", Err: syscall.EIO})
	wantCode(t, ownTrouble(chain), messages.CodeSourceReadFailed)
	check(t, ownTrouble(nil))
}
