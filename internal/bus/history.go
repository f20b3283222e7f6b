package bus

import (
	"context"
	"slices"
	"strings"
	"time"

	"github.com/nasfleet/nasfleet/messages"
	"github.com/nats-io/nats.go/jetstream"
)

const (
	// passTimeout bounds one pass over a stream where the caller has no deadline.
	passTimeout = 5 * time.Minute
	// passIdle is after how long the server forgets the consumer of a pass that is over.
	passIdle = 30 * time.Second
)

// Range selects what is stored. An empty name or list is all of them.
type Range struct {
	Zone  string
	Hosts []string
	Jobs  []string
	// Since leaves out what was stored before; the zero time leaves out nothing.
	Since time.Time
}

// StoredCommand is a command as its stream keeps it, unread. Host and Job are the tokens of its
// subject, literal: nobody has checked them.
type StoredCommand struct {
	Zone, Host, Job string
	Data            []byte
	// At is when it was stored, by the server's clock.
	At time.Time
}

// StoredEvent is an event that fits the subject it is stored on.
type StoredEvent struct {
	messages.Event
	// At is when it was stored, by the server's clock.
	At time.Time
}

// Zones returns the zones that have a stream of commands, sorted.
func (b *Bus) Zones(ctx context.Context) ([]string, error) {
	ctx, cancel := b.bounded(ctx)
	defer cancel()
	var zones []string
	list := b.js.StreamNames(ctx, jetstream.WithStreamListSubject(messages.JobSubject("*", "*", "*")))
	for name := range list.Name() {
		zone, ok := strings.CutPrefix(name, messages.JobStream(""))
		if ok && messages.CheckLabel("zone", zone) == nil {
			zones = append(zones, zone)
		}
	}
	slices.Sort(zones)
	return zones, b.fail("list the zones", list.Err())
}

// EachCommand calls fn with each stored command of a zone in the order they were stored: one pass,
// up to the newest, whatever happens to the connection meanwhile.
func (b *Bus) EachCommand(ctx context.Context, r Range, fn func(StoredCommand)) error {
	if err := messages.CheckLabel("zone", r.Zone); err != nil {
		return err
	}
	return b.each(ctx, messages.JobStream(r.Zone), r, messages.JobSubject, func(m jetstream.Msg, at time.Time) {
		if t := strings.Split(m.Subject(), "."); len(t) == 5 {
			fn(StoredCommand{Zone: r.Zone, Host: t[3], Job: t[4], Data: m.Data(), At: at})
		}
	})
}

// EachEvent does the same with stored events, of one zone or of all. Those that claim to be
// another's are left out and logged.
func (b *Bus) EachEvent(ctx context.Context, r Range, fn func(StoredEvent)) error {
	subject := func(zone, host, job string) string { return messages.EventSubject(zone, host, job, "*") }
	return b.each(ctx, messages.EventStream, r, subject, func(m jetstream.Msg, at time.Time) {
		e, err := decodeEvent(m.Subject(), m.Data())
		if err != nil {
			b.cfg.Log.Warn().Err(err).Msg("event left out")
			return
		}
		fn(StoredEvent{Event: e, At: at})
	})
}

func (b *Bus) each(ctx context.Context, stream string, r Range, subject func(zone, host, job string) string, fn func(jetstream.Msg, time.Time)) error {
	filters, err := r.filters(subject)
	if err != nil {
		return err
	}
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, passTimeout)
		defer cancel()
	}
	start := Filter{History: r.Since.IsZero(), Since: r.Since}
	f := &follower{bus: b, stream: stream, filters: filters, start: start, idle: passIdle}
	err = f.toEnd(ctx, func(m jetstream.Msg) {
		if meta, err := m.Metadata(); err == nil { // next has read it
			fn(m, meta.Timestamp)
		}
	})
	return b.fail("read "+stream, err)
}

// filters are the subjects of the range. The server takes none twice.
func (r Range) filters(subject func(zone, host, job string) string) ([]string, error) {
	hosts, jobs := orAll(r.Hosts), orAll(r.Jobs)
	list := make([]string, 0, len(hosts)*len(jobs))
	for _, host := range hosts {
		for _, job := range jobs {
			if err := checkFilter(r.Zone, host, job); err != nil {
				return nil, err
			}
			list = append(list, subject(orAny(r.Zone), orAny(host), orAny(job)))
		}
	}
	slices.Sort(list)
	return slices.Compact(list), nil
}

// orAll returns the names of a filter, or the one that stands for all.
func orAll(names []string) []string {
	if len(names) == 0 {
		return []string{""}
	}
	return names
}
