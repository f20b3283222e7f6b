package bus

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/nasfleet/nasfleet/messages"
	"github.com/nats-io/nats.go"
)

const (
	// controlWaiting bounds the control requests that wait in this process, controlAtOnce those that
	// are answered at a time.
	controlWaiting = 256
	controlAtOnce  = 16
	// answerTimeout is how long an answer may take. Who asks waits a little longer, so as to be told
	// that it took too long, and not to wonder.
	answerTimeout  = 8 * time.Second
	controlTimeout = answerTimeout + 2*time.Second
)

// ControlMessage is a control request as it came. Nobody has checked its signature.
type ControlMessage struct {
	messages.ControlRequest
	Subject, Signature string
	Data               []byte
}

// Answerer answers a control request to a host. Its context ends when the answer is late.
type Answerer func(context.Context, ControlMessage) messages.ControlReply

// ServeControl has the host's control requests answered until stop is called, which waits for the
// answers under way. Requests that cannot be read are refused here. It is there as soon as there
// is a connection, and after each reconnect.
func (b *Bus) ServeControl(zone, host string, answer Answerer) (stop func(), err error) {
	if err := checkHost(zone, host); err != nil {
		return nil, err
	}
	requests := make(chan *nats.Msg, controlWaiting)
	sub, err := b.nc.ChanSubscribe(messages.ControlSubject(zone, host), requests)
	if err != nil {
		return nil, b.fail("serve control requests", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { b.answerAll(ctx, requests, answer) })
	return func() {
		_ = sub.Unsubscribe() // an error means that the connection is closed
		cancel()
		wg.Wait()
	}, nil
}

func (b *Bus) answerAll(ctx context.Context, requests <-chan *nats.Msg, answer Answerer) {
	var wg sync.WaitGroup
	defer wg.Wait()
	slots := make(chan struct{}, controlAtOnce)
	for {
		select {
		case slots <- struct{}{}:
		case <-ctx.Done():
			return
		}
		select {
		case m := <-requests:
			wg.Go(func() {
				defer func() { <-slots }()
				b.answer(ctx, m, answer)
			})
		case <-ctx.Done():
			return
		}
	}
}

func (b *Bus) answer(ctx context.Context, m *nats.Msg, answer Answerer) {
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	req, err := messages.DecodeControlRequest(m.Data)
	reply := messages.ControlReply{Version: messages.Version, JobID: req.JobID, Reply: messages.ReplyRefused, Error: messages.FailureOf(err)}
	if err == nil {
		reply = answer(ctx, ControlMessage{ControlRequest: req, Subject: m.Subject, Signature: m.Header.Get(messages.SignatureHeader), Data: m.Data})
	}
	data, err := json.Marshal(reply)
	if err == nil {
		err = m.Respond(data)
	}
	if err != nil {
		b.cfg.Log.Warn().Err(err).Str("job", req.JobID).Msg("answer a control request")
	}
}

// Control asks a host to change a job, and returns its answer, which may be a refusal. It is asked
// once: ErrAbsent says that no worker of that name is connected, and so that nothing was done;
// ErrUnreachable that the answer did not come, and that nobody knows.
func (b *Bus) Control(ctx context.Context, zone, host string, req messages.ControlRequest) (messages.ControlReply, error) {
	if err := errors.Join(checkHost(zone, host), req.Validate()); err != nil {
		return messages.ControlReply{}, err
	}
	ask, err := b.controlMsg(zone, host, req)
	if err != nil {
		return messages.ControlReply{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, controlTimeout)
	defer cancel()
	m, err := b.nc.RequestMsgWithContext(ctx, ask)
	if errors.Is(err, nats.ErrNoResponders) {
		return messages.ControlReply{}, fmt.Errorf("%s/%s: %w", zone, host, ErrAbsent)
	}
	if err != nil {
		return messages.ControlReply{}, b.fail("ask "+zone+"/"+host, err)
	}
	return messages.DecodeControlReply(req, m.Data)
}

// controlMsg is a request, signed where this connection signs commands.
func (b *Bus) controlMsg(zone, host string, req messages.ControlRequest) (*nats.Msg, error) {
	data, err := json.Marshal(req)
	if err != nil {
		return nil, fmt.Errorf("control request: %w", err)
	}
	m := nats.NewMsg(messages.ControlSubject(zone, host))
	m.Data = data
	return m, b.sign(m)
}
