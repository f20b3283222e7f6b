package bus

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/nasfleet/nasfleet/messages"
	"github.com/nats-io/nats.go/jetstream"
)

func TestDelivery(t *testing.T) {
	t.Parallel()
	b := newBus(t, Config{})
	before := time.Now().Add(-time.Second)
	publish(t, b, "host-2")
	first, second := publish(t, b, testHost), publish(t, b, testHost)
	c := queue(t, b, testHost)
	if c.AckWait() != DefaultAckWait {
		t.Error(c.AckWait())
	}
	d := next(t, c)
	if d.JobID != first || d.Zone != testZone || d.Host != testHost || d.NumDelivered != 1 ||
		d.Subject != messages.JobSubject(testZone, testHost, first) ||
		d.Published.Before(before) || d.Published.After(time.Now().Add(time.Second)) {
		t.Errorf("%+v", d)
	}
	cmd, _, err := messages.Decode(d.Data)
	if err != nil || cmd.Head().JobID != first {
		t.Error(cmd, err)
	}
	// Nothing is fetched ahead.
	if info := consumerInfo(t, c); info.NumAckPending != 1 || info.NumPending != 1 || info.NumWaiting != 0 {
		t.Errorf("%+v", info)
	}
	if err := d.Ack(t.Context()); err != nil {
		t.Fatal(err)
	}
	d = next(t, c)
	if d.JobID != second {
		t.Errorf("%+v", d)
	}
	if err := d.Ack(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := d.Ack(t.Context()); err == nil {
		t.Error("a delivery was ended twice")
	}
	nothing(t, c)
	if info := consumerInfo(t, c); info.NumAckPending != 0 || info.NumPending != 0 {
		t.Errorf("%+v", info)
	}
}

func TestReturn(t *testing.T) {
	t.Parallel()
	b := newBus(t, Config{})
	job := publish(t, b, testHost)
	c := queue(t, b, testHost)
	for i := 1; i <= 5; i++ {
		start := time.Now()
		d := next(t, c)
		if d.JobID != job || d.NumDelivered != i || time.Since(start) > 2*time.Second {
			t.Errorf("%+v after %v", d, time.Since(start))
		}
		if err := d.Return(); err != nil {
			t.Fatal(err)
		}
	}
}

func TestRetry(t *testing.T) {
	t.Parallel()
	b := newBus(t, Config{})
	const delay = 700 * time.Millisecond
	waits, goesOn := publish(t, b, testHost), publish(t, b, testHost)
	c := queue(t, b, testHost)
	d := next(t, c)
	start := time.Now()
	if err := d.Retry(delay); err != nil {
		t.Fatal(err)
	}
	if d := next(t, c); d.JobID != goesOn {
		t.Errorf("%s keeps the queue", d.JobID)
	}
	if d := next(t, c); d.JobID != waits || d.NumDelivered != 2 {
		t.Errorf("%+v", d)
	}
	if took := time.Since(start); took < delay {
		t.Errorf("back after %v", took)
	}
}

func TestTerm(t *testing.T) {
	t.Parallel()
	b := newBus(t, Config{AckWait: 200 * time.Millisecond})
	publish(t, b, testHost)
	c := queue(t, b, testHost)
	if err := next(t, c).Term("cannot be read"); err != nil {
		t.Fatal(err)
	}
	nothing(t, c)
	if info := consumerInfo(t, c); info.NumAckPending != 0 {
		t.Errorf("%+v", info)
	}
}

func TestAckWait(t *testing.T) {
	t.Parallel()
	const ackWait = 800 * time.Millisecond
	b := newBus(t, Config{AckWait: ackWait})
	job := publish(t, b, testHost)
	c := queue(t, b, testHost)
	first := next(t, c)
	if c.AckWait() != ackWait {
		t.Error(c.AckWait())
	}
	start := time.Now()
	second := next(t, c)
	if second.JobID != job || second.NumDelivered != 2 || time.Since(start) < ackWait/2 {
		t.Errorf("%+v after %v", second, time.Since(start))
	}

	// Extended, it is not delivered again.
	ctx, cancel := context.WithTimeout(t.Context(), 4*ackWait)
	defer cancel()
	extended := make(chan struct{})
	go func() {
		defer close(extended)
		tick := time.NewTicker(ackWait / 3)
		defer tick.Stop()
		for {
			if err := second.Extend(); err != nil {
				t.Error(err)
			}
			select {
			case <-tick.C:
			case <-ctx.Done():
				return
			}
		}
	}()
	if d, err := c.Next(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%+v, %v", d, err)
	}
	<-extended

	// The server takes the late ack of the first as well as that of the second.
	for _, d := range []*Delivery{first, second} {
		if err := d.Ack(t.Context()); err != nil {
			t.Error(err)
		}
	}
}

// A consumer that exists keeps what its operator set, unless it is no queue of this host.
func TestConsumerExists(t *testing.T) {
	t.Parallel()
	b, ctx := newBus(t, Config{}), t.Context()
	stream := messages.JobStream(testZone)
	theirs := queue(t, b, testHost).config()
	theirs.AckWait, theirs.MaxAckPending = 7*time.Second, 5
	if _, err := b.js.CreateConsumer(ctx, stream, theirs); err != nil {
		t.Fatal(err)
	}
	job := publish(t, b, testHost)
	c := queue(t, b, testHost)
	if d := next(t, c); d.JobID != job || c.AckWait() != 7*time.Second {
		t.Errorf("%+v, %v", d, c.AckWait())
	}

	other := queue(t, b, "host-2").config()
	other.FilterSubject = messages.JobSubject(testZone, "host-3", "*")
	if _, err := b.js.CreateConsumer(ctx, stream, other); err != nil {
		t.Fatal(err)
	}
	if _, err := queue(t, b, "host-2").Next(ctx); !errors.Is(err, ErrConflict) {
		t.Error(err)
	}
}

func TestConsumerDeleted(t *testing.T) {
	t.Parallel()
	b, ctx := newBus(t, Config{}), t.Context()
	done, open := publish(t, b, testHost), publish(t, b, testHost)
	c := queue(t, b, testHost)
	if err := next(t, c).Ack(ctx); err != nil {
		t.Fatal(err)
	}
	if err := next(t, c).Retry(time.Hour); err != nil {
		t.Fatal(err)
	}
	remove := func() {
		t.Helper()
		if err := b.js.DeleteConsumer(ctx, messages.JobStream(testZone), c.config().Name); err != nil {
			t.Fatal(err)
		}
	}
	// While nobody waits.
	remove()
	for _, want := range []string{done, open} { // all that the stream keeps
		d := next(t, c)
		if d.JobID != want || d.NumDelivered != 1 {
			t.Errorf("%+v", d)
		}
		if err := d.Ack(ctx); err != nil {
			t.Fatal(err)
		}
	}
	// While Next waits.
	got := make(chan *Delivery)
	go func() {
		d, err := c.Next(ctx)
		if err != nil {
			t.Error(err)
		}
		got <- d
	}()
	eventually(t, func() bool { return consumerInfo(t, c).NumWaiting == 1 })
	remove()
	if d := <-got; d == nil || d.JobID != done {
		t.Errorf("%+v", d)
	}
}

func TestStop(t *testing.T) {
	t.Parallel()
	b := newBus(t, Config{})
	c := queue(t, b, testHost)
	ended := make(chan error)
	go func() {
		_, err := c.Next(t.Context())
		ended <- err
	}()
	eventually(t, func() bool {
		_, err := b.js.Consumer(t.Context(), messages.JobStream(testZone), c.config().Name)
		return err == nil && consumerInfo(t, c).NumWaiting == 1
	})
	c.Stop()
	if err := <-ended; !errors.Is(err, ErrStopped) {
		t.Error(err)
	}
	if _, err := c.Next(t.Context()); !errors.Is(err, ErrStopped) {
		t.Error(err)
	}
	c.Stop()
}

// A command that comes just when its Next is given up goes back at once, not after AckWait.
func TestNextGivesBack(t *testing.T) {
	t.Parallel()
	b := newBus(t, Config{})
	c := queue(t, b, testHost)
	nothing(t, c)
	for range 50 {
		ctx, cancel := context.WithCancel(t.Context())
		got := make(chan *Delivery)
		go func() {
			d, _ := c.Next(ctx)
			got <- d
		}()
		eventually(t, func() bool { return consumerInfo(t, c).NumWaiting >= 1 })
		cmd := newTake()
		m, err := b.commandMsg(Outgoing{testZone, testHost, cmd})
		if err != nil {
			t.Fatal(err)
		}
		if err := b.nc.PublishMsg(m); err != nil {
			t.Fatal(err)
		}
		cancel()
		d := <-got
		if d == nil {
			d = next(t, c)
		}
		if d.JobID != cmd.Head().JobID {
			t.Fatalf("%+v", d)
		}
		if err := d.Ack(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
}

func TestNextAfterClose(t *testing.T) {
	t.Parallel()
	b := newBus(t, Config{})
	c := queue(t, b, testHost)
	nothing(t, c)
	b.Close()
	if _, err := c.Next(t.Context()); !errors.Is(err, ErrUnreachable) {
		t.Error(err)
	}
}

// The server stores a command on a subject that ends in a wildcard, taken as a name. No event
// could answer it.
func TestUnanswerable(t *testing.T) {
	t.Parallel()
	b := newBus(t, Config{AckWait: 200 * time.Millisecond})
	for _, token := range []string{"*", ">"} {
		if _, err := b.js.Publish(t.Context(), messages.JobSubject(testZone, testHost, token), []byte("{}")); err != nil {
			t.Fatal(err)
		}
	}
	c := queue(t, b, testHost)
	nothing(t, c)
	if info := consumerInfo(t, c); info.NumAckPending != 0 || info.NumPending != 0 {
		t.Errorf("%+v", info)
	}
	job := publish(t, b, testHost)
	if d := next(t, c); d.JobID != job {
		t.Errorf("%+v", d)
	}
}

// A restart of the server keeps what was stored, acked and delayed; the worker's Next goes on.
func TestServerRestart(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	s := startServer(t, dir, "127.0.0.1:0")
	addr := s.ns.Addr().String()
	b := connect(t, Config{URL: s.ClientURL(), Persist: true, Timeout: time.Second})
	c := queue(t, b, testHost)
	acked, held := publish(t, b, testHost), publish(t, b, testHost)
	if d := next(t, c); d.JobID != acked || d.Ack(t.Context()) != nil {
		t.Fatal(d)
	}
	d := next(t, c)
	waiting := make(chan *Delivery)
	go func() {
		d, err := c.Next(t.Context())
		if err != nil {
			t.Error(err)
		}
		waiting <- d
	}()
	eventually(t, func() bool { return consumerInfo(t, c).NumWaiting == 1 })

	back := b.untilReconnect()
	s.Stop()
	eventually(t, func() bool { return !b.Connected() })
	if err := d.Extend(); !errors.Is(err, ErrUnreachable) {
		t.Errorf("Extend without a server: %v", err)
	}
	if err := d.Return(); !errors.Is(err, ErrUnreachable) {
		t.Errorf("Return without a server: %v", err)
	}
	ackErr := make(chan error)
	go func() { ackErr <- d.Ack(t.Context()) }()
	startServer(t, dir, addr)
	<-back.Done()

	if err := <-ackErr; err != nil {
		t.Errorf("Ack through a restart: %v", err)
	}
	job := publish(t, b, testHost)
	if d := <-waiting; d == nil || d.JobID != job {
		t.Errorf("got %+v; held %s, acked %s", d, held, acked)
	}
	if n := countStored(t, b, messages.JobStream(testZone), ">"); n != 3 {
		t.Errorf("%d stored", n)
	}
}

func consumerInfo(t testing.TB, c *Commands) *jetstream.ConsumerInfo {
	t.Helper()
	consumer, err := c.bus.js.Consumer(t.Context(), messages.JobStream(c.zone), c.config().Name)
	if err != nil {
		t.Fatal(err)
	}
	return consumer.CachedInfo()
}

// nothing makes sure that no delivery comes, for longer than the shortest AckWait used here.
func nothing(t testing.TB, c *Commands) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	if d, err := c.Next(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("got %+v, %v", d, err)
	}
}
