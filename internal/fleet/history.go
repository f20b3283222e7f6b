package fleet

import (
	"context"
	"errors"
	"time"

	"github.com/nasfleet/nasfleet/internal/bus"
	"github.com/nasfleet/nasfleet/messages"
)

// clockMargin is how far the clocks of two servers of a cluster may be apart: what is stored after
// something in another stream is looked for from so much earlier.
const clockMargin = time.Hour

// commandGone is the CommandError of a job of which only events are left.
const commandGone = "the command is no longer stored"

// record is a job as the streams have it.
type record struct {
	JobInfo
	// cmd is nil where CommandError is set.
	cmd messages.Command
	// endedAt is when the final event was stored.
	endedAt time.Time
	// events are only kept where they are asked for.
	events []messages.Event
}

// key is the job's subject: a job id is unique on one host.
func (r *record) key() string { return messages.JobSubject(r.Zone, r.Host, r.JobID) }

// history is the jobs that were read, by key.
type history map[string]*record

// scope is what is read. An empty name or list is all.
type scope struct {
	zone        string
	hosts, jobs []string
	// eventsSince leaves out older events. A job whose events are cut off so has all of them from
	// before: what is left tells its state, if it has any.
	eventsSince time.Time
	// whole keeps the events, and takes in jobs that only have events: those outlive the commands.
	whole bool
}

// read reads jobs: one pass over the commands of each zone, then one over the events.
func (m *Manager) read(ctx context.Context, s scope) (history, error) {
	zones, err := m.zones(ctx, s.zone)
	if err != nil {
		return nil, err
	}
	h, now, oldest := history{}, time.Now(), time.Time{}
	for _, zone := range zones {
		err := m.bus.EachCommand(ctx, bus.Range{Zone: zone, Hosts: s.hosts, Jobs: s.jobs}, func(c bus.StoredCommand) {
			r := newRecord(c, now)
			h[r.key()] = r
			if oldest.IsZero() || c.At.Before(oldest) {
				oldest = c.At
			}
		})
		if err != nil {
			return nil, badName(err)
		}
	}
	since := s.eventsSince
	if !s.whole {
		if len(h) == 0 {
			return h, nil
		}
		if oldest = oldest.Add(-clockMargin); since.Before(oldest) {
			since = oldest
		}
	}
	err = m.bus.EachEvent(ctx, bus.Range{Zone: s.zone, Hosts: s.hosts, Jobs: s.jobs, Since: since}, func(e bus.StoredEvent) {
		h.event(e, s.whole, now)
	})
	if s.whole && errors.Is(err, bus.ErrNoStream) {
		err = nil // nobody has ever told anything
	}
	return h, badName(err)
}

// zones returns the one zone, or all there are.
func (m *Manager) zones(ctx context.Context, zone string) ([]string, error) {
	if zone != "" {
		return []string{zone}, nil
	}
	return m.bus.Zones(ctx)
}

// badName tells a name that cannot be part of a subject as what it is.
func badName(err error) error {
	var e *messages.Error
	if errors.As(err, &e) {
		return refused(err)
	}
	return err
}

func newRecord(c bus.StoredCommand, now time.Time) *record {
	r := &record{JobInfo: JobInfo{
		JobID: c.Job, Zone: c.Zone, Host: c.Host, Status: StatusOf(),
		PublishedAt: c.At, ChangedAt: c.At, AgeSeconds: age(c.At, now),
	}}
	cmd, err := readCommand(c)
	if err != nil {
		r.CommandError = err.Error()
		return r
	}
	r.cmd, r.Type, r.VM, r.Replays = cmd, cmd.Head().Type, cmd.Target(), cmd.Head().Replays
	return r
}

// readCommand reads a command and holds it against its subject, as its host does.
func readCommand(c bus.StoredCommand) (messages.Command, error) {
	if err := messages.CheckLabel("host", c.Host); err != nil {
		return nil, err
	}
	cmd, h, err := messages.Decode(c.Data)
	if err == nil && h.JobID != c.Job {
		err = messages.Errorf(messages.CodeInvalidMessage, "the command claims to be job %s", h.JobID)
	}
	return cmd, err
}

func age(at, now time.Time) int64 { return int64(max(0, now.Sub(at)).Seconds()) }

// event takes an event in. Events of jobs that are not known begin one where orphans are wanted.
func (h history) event(e bus.StoredEvent, orphans bool, now time.Time) {
	key := messages.JobSubject(e.Zone, e.Host, e.JobID)
	r := h[key]
	if r == nil {
		if !orphans {
			return
		}
		r = &record{JobInfo: JobInfo{
			JobID: e.JobID, Zone: e.Zone, Host: e.Host, VM: e.VM, Type: e.Type, Status: StatusOf(),
			PublishedAt: e.At, AgeSeconds: age(e.At, now), CommandError: commandGone,
		}}
		h[key] = r
	}
	over := r.State.Over()
	r.Status, r.ChangedAt = r.after(e.Event), e.At
	if r.State.Over() && !over {
		r.endedAt = e.At
	}
	if orphans {
		r.events = append(r.events, e.Event)
	}
}

// linkReplays tells each job that was replayed by which.
func (h history) linkReplays() {
	for _, r := range h {
		h.link(r)
	}
}

func (h history) link(replay *record) {
	if replay.Replays == "" {
		return
	}
	old := h[messages.JobSubject(replay.Zone, replay.Host, replay.Replays)]
	// Should there be several, written by hand, it is the last one in every list.
	if old != nil && old.ReplayedAs < replay.JobID {
		old.ReplayedAs = replay.JobID
	}
}

// findReplays does the same for a few jobs, which were read without the others of their hosts: it
// reads what their hosts were sent since the first of them ended.
func (m *Manager) findReplays(ctx context.Context, h history) error {
	zones := map[string]bus.Range{}
	for _, r := range h {
		if !r.State.Over() || messages.CheckLabel("host", r.Host) != nil {
			continue
		}
		z, since := zones[r.Zone], r.endedAt.Add(-clockMargin)
		if z.Since.IsZero() || since.Before(z.Since) {
			z.Since = since
		}
		z.Zone, z.Hosts = r.Zone, append(z.Hosts, r.Host)
		zones[r.Zone] = z
	}
	for _, z := range zones {
		err := m.bus.EachCommand(ctx, z, func(c bus.StoredCommand) { h.link(newRecord(c, c.At)) })
		if err != nil && !errors.Is(err, bus.ErrNoStream) {
			return err
		}
	}
	return nil
}
