package storaged

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"net"
	"strings"
	"testing"

	"github.com/rs/zerolog"
)

const greeting = `{"QMP":{"version":{},"capabilities":[]}}` + "\r\n"

// fakeDaemon answers each command with what reply makes of its name and id; "" ends the connection.
func fakeDaemon(t *testing.T, hello string, reply func(command string, id string) string) net.Conn {
	t.Helper()
	ours, theirs := net.Pipe()
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer func() { _ = theirs.Close() }()
		if _, err := theirs.Write([]byte(hello)); err != nil || hello == "" {
			return
		}
		commands := json.NewDecoder(bufio.NewReader(theirs))
		for {
			var c struct {
				Execute string
				ID      json.Number
			}
			if commands.Decode(&c) != nil {
				return
			}
			answer := reply(c.Execute, c.ID.String())
			if answer == "" {
				return
			}
			if _, err := theirs.Write([]byte(answer + "\r\n")); err != nil {
				return
			}
		}
	}()
	t.Cleanup(func() { _ = ours.Close(); <-done })
	return ours
}

func agree(_, id string) string { return `{"return": {}, "id": ` + id + `}` }

func TestMonitorAnswers(t *testing.T) {
	conn := fakeDaemon(t, greeting, func(command, id string) string {
		switch command {
		case "query":
			return `{"event":"A","data":{}}` + "\r\n" + `{"return": {"x": 7}, "id": ` + id + `}`
		case "refuse":
			return `{"error": {"class": "GenericError", "desc": "no"}, "id": ` + id + `}`
		case "die":
			return ""
		}
		return agree(command, id)
	})
	m, err := newMonitor(t.Context(), conn, zerolog.Nop())
	if err != nil {
		t.Fatal(err)
	}
	defer m.close()
	w := m.watch("A", func(json.RawMessage) bool { return true })
	defer m.unwatch(w)
	var result struct{ X int }
	if err := m.execute(t.Context(), "query", nil, &result); err != nil || result.X != 7 {
		t.Errorf("got %v, %v", result, err)
	}
	if err := m.await(t.Context(), w.seen); err != nil {
		t.Error(err)
	}
	var refused *QMPError
	if err := m.execute(t.Context(), "refuse", nil, nil); !errors.As(err, &refused) || *refused != (QMPError{"refuse", "GenericError", "no"}) {
		t.Errorf("got %v", err)
	}
	if err := m.execute(t.Context(), "query", nil, new(string)); err == nil {
		t.Error("an answer of the wrong type was taken")
	}
	if err := m.execute(t.Context(), "die", nil, nil); !errors.Is(err, errMonitorLost) {
		t.Errorf("got %v", err)
	}
	if err := m.execute(t.Context(), "query", nil, nil); !errors.Is(err, errMonitorLost) {
		t.Errorf("got %v", err)
	}
}

// TestMonitorNonsense loses a daemon that breaks the protocol, and does not hang on it.
func TestMonitorNonsense(t *testing.T) {
	for name, hello := range map[string]string{
		"nothing":        "",
		"no greeting":    `{"event":"A","data":{}}` + "\n",
		"not JSON":       "hello\n",
		"two greetings":  greeting + greeting,
		"two kinds":      greeting + `{"return":{},"event":"A","id":1}` + "\n",
		"no kind":        greeting + `{"id":1}` + "\n",
		"answer, no id":  greeting + `{"return":{}}` + "\n",
		"foreign answer": greeting + `{"return":{},"id":99}` + "\n",
		"empty error":    greeting + `{"error":{},"id":1}` + "\n",
		"endless line":   greeting + strings.Repeat("x", maxMessage+1),
	} {
		t.Run(name, func(t *testing.T) {
			conn := fakeDaemon(t, hello, func(command, id string) string {
				if command == "qmp_capabilities" && hello == greeting {
					return agree(command, id)
				}
				return ""
			})
			if m, err := newMonitor(t.Context(), conn, zerolog.Nop()); !errors.Is(err, errMonitorLost) {
				t.Errorf("got %v, %v", m, err)
			}
		})
	}
}

// TestMonitorLateAnswer gives up on a command and takes its answer later for nobody's.
func TestMonitorLateAnswer(t *testing.T) {
	cause := errors.New("no patience")
	ctx, cancel := context.WithCancelCause(t.Context())
	late := ""
	conn := fakeDaemon(t, greeting, func(command, id string) string {
		switch command {
		case "slow":
			late = agree(command, id) + "\r\n"
			cancel(cause)
			return `{"event":"BUSY"}`
		case "next":
			return late + `{"return": "mine", "id": ` + id + `}`
		}
		return agree(command, id)
	})
	m, err := newMonitor(t.Context(), conn, zerolog.Nop())
	if err != nil {
		t.Fatal(err)
	}
	defer m.close()
	if err := m.execute(ctx, "slow", nil, nil); !errors.Is(err, cause) {
		t.Errorf("got %v", err)
	}
	var result string
	if err := m.execute(t.Context(), "next", nil, &result); err != nil || result != "mine" {
		t.Errorf("got %q, %v", result, err)
	}
	if len(m.pending) != 0 {
		t.Errorf("still pending: %v", m.pending)
	}
}

func FuzzDecodeMessage(f *testing.F) {
	for _, seed := range []string{
		strings.TrimSpace(greeting), `{"return":{},"id":1}`, `{"return":null,"id":1}`, `{"event":"A","data":{"id":"x"},"timestamp":{}}`,
		`{"error":{"class":"GenericError","desc":"x"},"id":3}`, `{"id":-1}`, `[]`, `null`, `{"return":1,"error":null,"id":1e3}`,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, line []byte) {
		m, err := decodeMessage(line)
		if err != nil {
			return
		}
		if answer := m.Return != nil || m.Error != nil; answer && m.ID == nil {
			t.Error("an answer without an id")
		}
		if m.Greeting == nil && m.Return == nil && m.Error == nil && m.Event == "" {
			t.Error("a message of no kind")
		}
	})
}
