package storaged

import (
	"bufio"
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"github.com/rs/zerolog"
)

const (
	// maxMessage bounds one message from the daemon (bytes). The longest we ask for describes
	// every block node: about 1 KiB each.
	maxMessage = 4 << 20
	// sendTimeout bounds the sending of one command. Commands are short and the socket's buffer
	// takes them even while the daemon is busy, so that waiting this long means it is stuck.
	sendTimeout = 10 * time.Second
)

// errMonitorLost is the cause when the QMP connection ended: the daemon is gone or spoke nonsense.
var errMonitorLost = errors.New("the connection to the storage daemon is lost")

// QMPError is the daemon's answer to a command that it refused or that failed.
type QMPError struct {
	Command string `json:"-"`
	// Class is nearly always GenericError; Desc is for people.
	Class string `json:"class"`
	Desc  string `json:"desc"`
}

func (e *QMPError) Error() string { return e.Command + ": " + e.Desc }

// message is whatever the daemon sends: exactly one of a greeting, a return, an error or an
// event (QEMU's docs/interop/qmp-spec).
type message struct {
	Greeting json.RawMessage `json:"QMP"`
	Return   json.RawMessage `json:"return"`
	Error    *QMPError       `json:"error"`
	Event    string          `json:"event"`
	Data     json.RawMessage `json:"data"`
	ID       *uint64         `json:"id"`
}

// decodeMessage reads one line of the daemon's. Keys it does not know are QEMU's right to add;
// a message of no kind, or of two, is not.
func decodeMessage(line []byte) (message, error) {
	var m message
	if err := json.Unmarshal(line, &m); err != nil {
		return message{}, fmt.Errorf("QMP message: %w", err)
	}
	kinds := 0
	for _, is := range []bool{m.Greeting != nil, m.Return != nil, m.Error != nil, m.Event != ""} {
		if is {
			kinds++
		}
	}
	answer := m.Return != nil || m.Error != nil
	switch {
	case kinds != 1:
		return message{}, fmt.Errorf("QMP message of %d kinds", kinds)
	case answer && m.ID == nil:
		return message{}, errors.New("QMP answer without an id")
	case m.Error != nil && (m.Error.Class == "" || m.Error.Desc == ""):
		return message{}, errors.New("QMP error without class and description")
	}
	return m, nil
}

// monitor is a QMP client. Its methods may be called from any goroutine.
type monitor struct {
	conn net.Conn
	log  zerolog.Logger

	sending sync.Mutex // held while a command is written

	mu       sync.Mutex
	lastID   uint64
	pending  map[uint64]chan message
	watches  map[*watch]struct{}
	greeted  chan struct{}
	done     chan struct{} // closed when the reader has ended
	closeErr error         // set before done is closed
}

// newMonitor speaks QMP on conn, which it owns from here on. It returns when the daemon takes
// commands.
func newMonitor(ctx context.Context, conn net.Conn, log zerolog.Logger) (*monitor, error) {
	m := &monitor{
		conn:    conn,
		log:     log,
		pending: map[uint64]chan message{},
		watches: map[*watch]struct{}{},
		greeted: make(chan struct{}),
		done:    make(chan struct{}),
	}
	go m.read()
	err := m.await(ctx, m.greeted)
	if err == nil {
		err = m.execute(ctx, "qmp_capabilities", nil, nil)
	}
	if err != nil {
		m.close()
		return nil, err
	}
	return m, nil
}

// close ends the connection and waits for the reader. It may be called more than once.
func (m *monitor) close() {
	_ = m.conn.Close()
	<-m.done
}

// execute sends a command and waits for its answer; result may be nil. When ctx ends first its
// cause is returned, and the daemon may still carry the command out: commands are done in order,
// so that whatever undoes it comes after it.
//
// Arguments are never logged, since one of them is a passphrase.
func (m *monitor) execute(ctx context.Context, command string, args, result any) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	id, answer := m.expect()
	defer m.forget(id)
	m.log.Trace().Str("command", command).Uint64("id", id).Msg("to the storage daemon")
	if err := m.send(id, command, args); err != nil {
		return err
	}
	var reply message
	select {
	case reply = <-answer:
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-m.done:
		select {
		case reply = <-answer: // the last one before the end
		default:
			return m.closeErr
		}
	}
	if reply.Error != nil {
		reply.Error.Command = command
		m.log.Debug().Str("command", command).Uint64("id", id).Str("error", reply.Error.Desc).Msg("the storage daemon refused")
		return reply.Error
	}
	m.log.Trace().Str("command", command).Uint64("id", id).Msg("the storage daemon obeyed")
	if result == nil {
		return nil
	}
	if err := json.Unmarshal(reply.Return, result); err != nil {
		return fmt.Errorf("%s: unexpected answer: %w", command, err)
	}
	return nil
}

func (m *monitor) send(id uint64, command string, args any) error {
	line, err := encodeCommand(id, command, args)
	if err != nil {
		return fmt.Errorf("%s: %w", command, err)
	}
	// The line may hold a passphrase.
	defer clear(line)

	m.sending.Lock()
	defer m.sending.Unlock()
	_ = m.conn.SetWriteDeadline(time.Now().Add(sendTimeout))
	if _, err := m.conn.Write(line); err != nil {
		// Half a command may have gone out: nothing sensible can follow it.
		_ = m.conn.Close()
		return fmt.Errorf("%s: %w: %w", command, errMonitorLost, err)
	}
	return nil
}

// secretObject are the arguments of object-add for a secret.
type secretObject struct {
	// id is a name of ours, without any character that JSON would escape.
	id   string
	data []byte
}

// encodeCommand writes a command. One with a secret it writes by hand and in one piece, because encoding/json keeps
// the buffers that it has written to.
func encodeCommand(id uint64, command string, args any) ([]byte, error) {
	s, ok := args.(secretObject)
	if !ok {
		return json.Marshal(struct {
			Execute   string `json:"execute"`
			Arguments any    `json:"arguments,omitempty"`
			ID        uint64 `json:"id"`
		}{command, args, id})
	}
	head := fmt.Sprintf(`{"execute":%q,"arguments":{"qom-type":"secret","id":%q,"format":"base64","data":"`, command, s.id)
	tail := fmt.Sprintf(`"},"id":%d}`, id)
	line := make([]byte, 0, len(head)+base64.StdEncoding.EncodedLen(len(s.data))+len(tail))
	return append(base64.StdEncoding.AppendEncode(append(line, head...), s.data), tail...), nil
}

func (m *monitor) expect() (uint64, <-chan message) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.lastID++
	answer := make(chan message, 1)
	m.pending[m.lastID] = answer
	return m.lastID, answer
}

func (m *monitor) forget(id uint64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.pending, id)
}

// await waits for a signal; its error is ctx's cause, or why the connection was lost.
func (m *monitor) await(ctx context.Context, signal <-chan struct{}) error {
	select {
	case <-signal:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-m.done:
		return m.closeErr
	}
}

// watch waits for one event.
type watch struct {
	event string
	match func(data json.RawMessage) bool
	seen  chan struct{} // closed at the first event that matches
}

// watch starts to look for an event whose data match; begin before the command that causes it.
// The caller calls unwatch.
func (m *monitor) watch(event string, match func(json.RawMessage) bool) *watch {
	w := &watch{event: event, match: match, seen: make(chan struct{})}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.watches[w] = struct{}{}
	return w
}

func (m *monitor) unwatch(w *watch) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.watches, w)
}

// read takes what the daemon sends until the connection ends.
func (m *monitor) read() {
	defer close(m.done)
	// Whoever is sending must not wait for a daemon that nobody listens to.
	defer func() { _ = m.conn.Close() }()
	lines := bufio.NewScanner(m.conn)
	lines.Buffer(make([]byte, 0, 4096), maxMessage)
	for lines.Scan() {
		if len(bytes.TrimSpace(lines.Bytes())) == 0 {
			continue
		}
		msg, err := decodeMessage(lines.Bytes())
		if err == nil {
			err = m.dispatch(msg)
		}
		if err != nil {
			m.closeErr = fmt.Errorf("%w: %w", errMonitorLost, err)
			return
		}
	}
	err := lines.Err()
	if err == nil {
		err = io.EOF
	}
	m.closeErr = fmt.Errorf("%w: %w", errMonitorLost, err)
}

func (m *monitor) dispatch(msg message) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	select {
	case <-m.greeted:
		if msg.Greeting != nil {
			return errors.New("second QMP greeting")
		}
	default:
		if msg.Greeting == nil {
			return errors.New("QMP begins without a greeting")
		}
		close(m.greeted)
		return nil
	}
	if msg.Event != "" {
		m.notify(msg)
		return nil
	}
	if *msg.ID == 0 || *msg.ID > m.lastID {
		return fmt.Errorf("QMP answer to command %d, which was never sent", *msg.ID)
	}
	// A command whose caller has gone is no longer pending.
	if answer, ok := m.pending[*msg.ID]; ok {
		delete(m.pending, *msg.ID)
		answer <- msg
	}
	return nil
}

func (m *monitor) notify(msg message) {
	for w := range m.watches {
		if w.event == msg.Event && w.match(msg.Data) {
			close(w.seen)
			delete(m.watches, w)
		}
	}
}
