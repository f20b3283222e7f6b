package fleet

import (
	"context"
	"errors"
	"fmt"

	"github.com/rs/zerolog"

	"github.com/nasfleet/nasfleet/internal/bus"
	"github.com/nasfleet/nasfleet/internal/secret"
	"github.com/nasfleet/nasfleet/messages"
)

// Manager is the management side of one NATS. It may be used by several goroutines at once.
type Manager struct {
	bus  *bus.Bus
	keys secret.Folder
	log  zerolog.Logger
	book vault
}

// New returns a Manager on b with the publisher's keys. Warnings, such as a host that is not there,
// go to log. The caller calls Wipe when it is done with it.
func New(b *bus.Bus, keys secret.Folder, log zerolog.Logger) *Manager {
	return &Manager{bus: b, keys: keys, log: log}
}

// Hosts lists the hosts that are alive, by zone and name.
func (m *Manager) Hosts(ctx context.Context) ([]messages.HostInfo, error) {
	hosts, err := m.bus.Hosts(ctx)
	if err != nil {
		return nil, fmt.Errorf("list the hosts: %w", err)
	}
	return append([]messages.HostInfo{}, hosts...), nil // never null in JSON
}

// Seal seals the passphrase in file for one host.
func (m *Manager) Seal(ctx context.Context, zone, host string, r *Passphrases, file string) (string, error) {
	if err := errors.Join(messages.CheckLabel("zone", zone), messages.CheckLabel("host", host)); err != nil {
		return "", refused(err)
	}
	p, err := r.Read(file)
	if err != nil {
		return "", err
	}
	info, err := m.host(ctx, zone, host)
	if err == nil {
		err = m.pinned(zone, host, info.SealKey)
	}
	if err != nil {
		return "", err
	}
	var sealed string
	job := &Job{Zone: zone, Host: host, sealings: []sealing{{p, &sealed}}}
	err = job.seal(info.SealKey)
	return sealed, err
}

func (m *Manager) host(ctx context.Context, zone, host string) (messages.HostInfo, error) {
	info, err := m.bus.Host(ctx, zone, host)
	if errors.Is(err, bus.ErrNotFound) || errors.Is(err, bus.ErrNoStream) {
		return info, unknownHost(zone, host)
	}
	return info, err
}

func unknownHost(zone, host string) error {
	return &Error{
		Class: NotFound, Err: fmt.Errorf("host %s/%s is not announced", zone, host),
		Hint: "publisher hosts lists the hosts that are alive; start the hostworker of this one.",
	}
}

// Watch calls fn for each event and progress report of the jobs the filter lets through, until
// ctx ends (class Interrupted). Of one job it begins with what is stored, and ends with the final
// event and its outcome; what hosts tell of it that it was not published for is left out.
// Where several hosts have a job of that id, and the filter does not say which, it fails (class Usage).
func (m *Manager) Watch(ctx context.Context, f bus.Filter, fn func(bus.Update) error) error {
	if err := checkAddress(f.Zone, f.Host); err != nil {
		return err
	}
	if f.Job == "" {
		return m.bus.Follow(ctx, f, fn)
	}
	if err := messages.CheckID("job id", f.Job); err != nil {
		return refused(err)
	}
	f.History = true
	job, err := m.locate(ctx, f)
	if err != nil {
		return err
	}
	if job != nil {
		f.Zone, f.Host = job.Zone, job.Host
	}
	var outcome error
	err = m.bus.Follow(ctx, f, func(u bus.Update) error {
		if job == nil { // when the watch began: it was published since, or nobody could tell anything of it
			if job, err = m.locate(ctx, f); err != nil {
				return err
			}
		}
		if job == nil || !u.From(job.Zone, job.Host) {
			return nil
		}
		if err := fn(u); err != nil {
			return err
		}
		if u.Event != nil && u.Event.Kind.Final() {
			outcome = Outcome(*u.Event)
			return errOver
		}
		return nil
	})
	if errors.Is(err, errOver) {
		return outcome
	}
	return err
}

// locate looks up the job of a filter; nil where nobody has published it.
func (m *Manager) locate(ctx context.Context, f bus.Filter) (*record, error) {
	h, err := m.readJobs(ctx, []string{f.Job}, f.Zone, f.Host)
	if errors.Is(err, bus.ErrNoStream) {
		return nil, nil // nothing was published in the zone
	}
	if err != nil {
		return nil, err
	}
	r, err := h.one(f.Job)
	if ClassOf(err) == NotFound {
		return nil, nil
	}
	return r, err
}

// errOver ends a Follow.
var errOver = errors.New("over")
