package bounded

import (
	"context"
	"errors"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/nasfleet/nasfleet/messages"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// closer is a result that has to be closed.
type closer chan struct{}

func (c closer) Close() error { close(c); return nil }

func TestCall(t *testing.T) {
	bad := errors.New("bad")
	if v, ok, err := Call(t.Context(), func() (int, error) { return 7, bad }); v != 7 || !ok || !errors.Is(err, bad) {
		t.Errorf("%d, %t, %v", v, ok, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	// It looks at its context, and has the grace to end in order.
	if v, ok, err := Call(ctx, func() (int, error) { return 8, nil }); v != 8 || !ok || err != nil {
		t.Errorf("%d, %t, %v", v, ok, err)
	}
}

func TestACallThatHangsIsGivenUp(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	goOn, late := make(chan struct{}), closer(make(chan struct{}))
	began := time.Now()
	if v, ok, err := Call(ctx, func() (closer, error) { <-goOn; return late, nil }); v != nil || ok || err != nil {
		t.Errorf("%v, %t, %v", v, ok, err)
	}
	if took := time.Since(began); took < Grace {
		t.Errorf("given up after %s", took)
	}
	close(goOn)
	<-late // what came too late is closed
}

func TestAPanicIsAnError(t *testing.T) {
	_, ok, err := Call(t.Context(), func() (int, error) { panic("boom") })
	if p := new(Panic); !ok || !errors.As(err, &p) || p.Value != "boom" || len(p.Stack) == 0 || messages.CodeOf(err) != messages.CodeInternal {
		t.Errorf("%t, %v", ok, err)
	}
}

func TestDo(t *testing.T) {
	bad, late, cancelled := errors.New("bad"), errors.New("late"), errors.New("cancelled")
	if err := Do(t.Context(), time.Hour, late, func() error { return bad }); !errors.Is(err, bad) {
		t.Error(err)
	}
	goOn := make(chan struct{})
	defer close(goOn)
	hang := func() error { <-goOn; return nil }
	if err := Do(t.Context(), time.Millisecond, late, hang); !errors.Is(err, late) {
		t.Error(err)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(cancelled)
	if err := Do(ctx, time.Hour, late, hang); !errors.Is(err, cancelled) {
		t.Error(err)
	}
}
