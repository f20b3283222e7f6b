// Package bus is nasfleet on NATS JetStream: the streams and buckets, publishing and consuming
// commands, lasting events and progress, the hosts that are alive, the catalog of backups, and
// the embedded server. Nothing else in nasfleet imports the NATS libraries.
package bus

import (
	"time"

	"github.com/rs/zerolog"
)

// DefaultURL is where NATS is looked for when nothing else is said.
const DefaultURL = "nats://127.0.0.1:4222"

// DefaultAckWait is how long a delivered command may go without a sign of life before it is
// delivered again.
const DefaultAckWait = 60 * time.Second

const (
	defaultTimeout   = 5 * time.Second
	defaultHeartbeat = 10 * time.Second
)

// Config says where NATS is and how to connect to it. The zero value is DefaultURL without credentials.
type Config struct {
	// URL of the server, or several separated by commas. Empty means the context's, or else DefaultURL.
	URL string
	// Context is a context of the nats CLI: a name, or the path of its file.
	Context string
	// Creds is the path of a credentials file. It wins over the context's.
	Creds string
	// NKey is the path of a file with an nkey seed (SU…), for a server that knows its users by their
	// public keys.
	NKey string
	// CA is the path of a file with the certificates (PEM) that the server's has to be signed by; ""
	// means those of the system. With it the connection is TLS, or fails.
	CA string
	// Name is shown by the server's connection list.
	Name string
	// InboxPrefix begins every reply subject of this connection; see HostInbox. Empty means _INBOX.
	InboxPrefix string
	// Server is the embedded server to connect to in process; URL, Context, Creds, NKey and CA are then not used.
	Server *Server
	// Persist is for a worker: Connect succeeds although the server is not there yet or refuses
	// the credentials, and the connection is tried again forever.
	Persist bool
	// Timeout bounds connecting to one server, and each request whose context has no deadline; 0 means 5 s.
	Timeout time.Duration
	// AckWait of the consumers this connection creates; 0 means DefaultAckWait.
	AckWait time.Duration
	// Sign signs a command for its subject; nil leaves commands unsigned.
	Sign func(subject string, data []byte) (string, error)
	// EventKey makes the message ids of events: unguessable for whoever has not got it. The server
	// takes an id once in its window, whoever uses it first, so that another host which knew the
	// ids could have this one's events dropped as duplicates. nil leaves the ids readable.
	EventKey []byte
	// Layout shapes the streams that EnsureZone creates.
	Layout Layout
	// Log is told of connections lost and found again, and of messages that had to be left out.
	Log zerolog.Logger

	// heartbeat is how often the server says that a waiting pull is still known to it. Twice
	// that without a word and the consumer is bound again.
	heartbeat time.Duration
}

// HostInbox is the inbox prefix of a host's own, so that a server can let each host read its own
// replies and nobody else's.
func HostInbox(zone, host string) string { return "_INBOX_" + zone + "_" + host }

func (c Config) withDefaults() Config {
	if c.Timeout == 0 {
		c.Timeout = defaultTimeout
	}
	if c.AckWait == 0 {
		c.AckWait = DefaultAckWait
	}
	if c.heartbeat == 0 {
		c.heartbeat = defaultHeartbeat
	}
	if c.URL == "" && c.Context == "" {
		c.URL = DefaultURL
	}
	c.Layout = c.Layout.withDefaults()
	return c
}
