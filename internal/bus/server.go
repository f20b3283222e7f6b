package bus

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"
)

const (
	// DefaultListen is the usual address of the embedded server.
	DefaultListen = "127.0.0.1:4222"
	// ListenNone is for no address: the embedded server then serves its own process only.
	ListenNone = "none"

	// maxMemoryStore bounds what JetStream keeps in memory (bytes): consumers of watchers, little else.
	maxMemoryStore = 16 << 20
	lockName       = "nasfleet.lock"
)

// ServerConfig says where the embedded server keeps its data and where it listens.
type ServerConfig struct {
	// Dir is created with mode 0700 where it is missing. One server at a time may use it.
	Dir string
	// Listen is host:port; port 0 is any free one. Empty and ListenNone mean no TCP at all. There
	// are no credentials: whoever can connect can command this host.
	Listen string
	Log    zerolog.Logger
}

// Server is a nats-server with JetStream in this process. Each write reaches the disk before it
// is acknowledged.
type Server struct {
	ns   *server.Server
	lock *os.File
	stop sync.Once
	wg   sync.WaitGroup
}

// StartServer starts an embedded server and returns when it takes connections and has all the
// streams that its folder holds. It fails with ErrLocked where another process (or this one)
// serves that folder. ctx bounds the start only; the caller must Stop the server.
func StartServer(ctx context.Context, cfg ServerConfig) (*Server, error) {
	opts, err := cfg.options()
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(cfg.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("NATS store folder: %w", err)
	}
	lock, err := lockFolder(cfg.Dir)
	if err != nil {
		return nil, err
	}
	ns, err := server.NewServer(opts)
	if err != nil {
		_ = lock.Close()
		return nil, fmt.Errorf("embedded NATS server: %w", err)
	}
	s := &Server{ns: ns, lock: lock}
	log := &serverLog{log: cfg.Log, fatal: make(chan string, 1)}
	ns.SetLoggerV2(log, false, false, false)
	if err = s.start(ctx, log.fatal); err == nil {
		err = s.checkStreams(cfg.Dir)
	}
	if err != nil {
		s.Stop()
		return nil, fmt.Errorf("embedded NATS server: %w", err)
	}
	return s, nil
}

// ClientURL returns the address that clients connect to; "" where the server does not listen.
func (s *Server) ClientURL() string {
	if s.ns.Addr() == nil {
		return ""
	}
	return s.ns.ClientURL()
}

// Stop shuts the server down and waits until everything is on disk and the folder is free again.
func (s *Server) Stop() {
	s.stop.Do(func() {
		s.ns.Shutdown()
		s.ns.WaitForShutdown()
		s.wg.Wait()
		_ = s.lock.Close() // releases the lock
	})
}

func (c ServerConfig) options() (*server.Options, error) {
	if c.Dir == "" {
		return nil, errors.New("embedded NATS server: no store folder given")
	}
	opts := &server.Options{
		ServerName:             "nasfleet",
		JetStream:              true,
		StoreDir:               c.Dir,
		SyncAlways:             true, // the default syncs every two minutes: a power cut would lose acknowledged commands
		JetStreamMaxMemory:     maxMemoryStore,
		NoSigs:                 true,
		DisableJetStreamBanner: true,
	}
	if c.Listen == "" || c.Listen == ListenNone {
		opts.DontListen = true
		return opts, nil
	}
	host, port, err := net.SplitHostPort(c.Listen)
	if err != nil {
		return nil, fmt.Errorf("listen address: %w", err)
	}
	if opts.Port, err = strconv.Atoi(port); err != nil {
		return nil, fmt.Errorf("listen address %s: port %q is not a number", c.Listen, port)
	}
	if opts.Port == 0 {
		opts.Port = server.RANDOM_PORT
	}
	if opts.Host = host; host == "" {
		opts.Host = server.DEFAULT_HOST
	}
	if ip := net.ParseIP(opts.Host); opts.Host != "localhost" && (ip == nil || !ip.IsLoopback()) {
		c.Log.Warn().Str("listen", c.Listen).Msg("the embedded NATS server has no credentials: whoever reaches it can command this host")
	}
	return opts, nil
}

// lockFolder takes the lock that nats-server itself does not take: two servers on one folder
// would destroy each other's streams. It ends with the process.
func lockFolder(dir string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(dir, lockName), os.O_CREATE|os.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, fmt.Errorf("NATS store folder: %w", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		_ = f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("%w: another server holds %s", ErrLocked, dir)
		}
		return nil, fmt.Errorf("lock NATS store folder: %w", err)
	}
	return f, nil
}

func (s *Server) start(ctx context.Context, fatal <-chan string) error {
	s.wg.Go(s.ns.Start)
	tick := 50 * time.Millisecond
	for {
		ready := s.ns.ReadyForConnections(tick)
		select {
		case reason := <-fatal:
			return errors.New(reason)
		case <-ctx.Done():
			return ctx.Err()
		default:
		}
		if ready {
			return nil
		}
	}
}

// checkStreams makes sure that each stream on disk is being served: with an unreadable folder or
// a wrong key the server starts all the same, without it, and its commands would seem lost.
func (s *Server) checkStreams(dir string) error {
	if !s.ns.JetStreamEnabled() {
		return errors.New("JetStream did not start")
	}
	account := server.DEFAULT_GLOBAL_ACCOUNT
	folders, err := os.ReadDir(filepath.Join(dir, server.JetStreamStoreDir, account, "streams"))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	info, err := s.ns.Jsz(&server.JSzOptions{Accounts: true, Streams: true})
	if err != nil {
		return err
	}
	served := map[string]bool{}
	for _, a := range info.AccountDetails {
		for _, stream := range a.Streams {
			served[a.Name+"/"+stream.Name] = true
		}
	}
	for _, f := range folders {
		if f.IsDir() && !served[account+"/"+f.Name()] {
			return fmt.Errorf("stream %s in %s cannot be read: restore the folder from a copy, or move that stream's folder away", f.Name(), dir)
		}
	}
	return nil
}

// serverLog passes the server's log on. Its notices are routine: they become debug messages.
type serverLog struct {
	log   zerolog.Logger
	fatal chan string
}

// Noticef logs at debug level.
func (l *serverLog) Noticef(format string, v ...any) {
	l.log.Debug().Msgf("nats-server: "+format, v...)
}

// Warnf logs a warning.
func (l *serverLog) Warnf(format string, v ...any) { l.log.Warn().Msgf("nats-server: "+format, v...) }

// Errorf logs an error.
func (l *serverLog) Errorf(format string, v ...any) { l.log.Error().Msgf("nats-server: "+format, v...) }

// Fatalf reports why the server cannot run; unlike the server's own logger it does not end the process.
func (l *serverLog) Fatalf(format string, v ...any) {
	l.log.Error().Msgf("nats-server: "+format, v...)
	select {
	case l.fatal <- fmt.Sprintf(format, v...):
	default:
	}
}

// Debugf drops the message.
func (l *serverLog) Debugf(string, ...any) {}

// Tracef drops the message, which may hold a command.
func (l *serverLog) Tracef(string, ...any) {}
