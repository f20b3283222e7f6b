package fleet

import (
	"context"
	"strings"

	"github.com/nasfleet/nasfleet/internal/bus"
	"github.com/nasfleet/nasfleet/messages"
)

// ensure creates the streams of the jobs' zones where they are missing, and the queues of their
// hosts, as far as these were added: such a host may not make its own.
func (m *Manager) ensure(ctx context.Context, jobs []*Job) error {
	added, err := m.addedHosts()
	if err != nil {
		return err
	}
	zones := map[string][]string{}
	for _, j := range jobs {
		hosts := zones[j.Zone]
		if added[messages.HostKey(j.Zone, j.Host)] {
			hosts = append(hosts, j.Host)
		}
		zones[j.Zone] = hosts
	}
	for zone, hosts := range zones {
		if err := m.bus.EnsureZone(ctx, zone); err != nil {
			return err
		}
		if err := m.bus.EnsureQueues(ctx, zone, hosts); err != nil {
			return err
		}
	}
	return nil
}

// publish seals what is to be sealed, publishes, and tells r the fate of each job.
func (m *Manager) publish(ctx context.Context, r *run) error {
	keys, err := m.sealKeys(ctx, r.jobs())
	if err != nil {
		return err
	}
	var (
		out     []bus.Outgoing
		indexes []int
		absent  []string
	)
	for i, j := range r.jobs() {
		key, alive := keys[messages.HostKey(j.Zone, j.Host)]
		if err := m.checkPin(j, key, alive); err != nil {
			r.sent(i, false, err)
			continue
		}
		if alive || !j.sealed() {
			err := unknownHost(j.Zone, j.Host)
			if alive {
				err = j.seal(key)
			}
			if err != nil {
				r.sent(i, false, err)
				continue
			}
		}
		if !alive {
			absent = append(absent, j.Zone+"/"+j.Host)
		}
		out, indexes = append(out, bus.Outgoing{Zone: j.Zone, Host: j.Host, Command: j.Command}), append(indexes, i)
	}
	m.warnAbsent(absent)
	if len(out) == 1 {
		published, err := m.bus.Publish(ctx, out[0].Zone, out[0].Host, out[0].Command)
		r.sent(indexes[0], published.Duplicate, err)
		return ctx.Err()
	}
	m.bus.PublishAll(ctx, out, func(i int, p bus.Published, err error) { r.sent(indexes[i], p.Duplicate, err) })
	return ctx.Err()
}

// sealKeys returns the keys of the hosts that are alive, by HostKey: of the one host there is a
// job for, or of all where there are several.
func (m *Manager) sealKeys(ctx context.Context, jobs []*Job) (map[string]string, error) {
	keys := map[string]string{}
	if len(jobs) == 1 {
		info, err := m.host(ctx, jobs[0].Zone, jobs[0].Host)
		if err == nil {
			keys[messages.HostKey(info.Zone, info.Host)] = info.SealKey
		}
		if ClassOf(err) == NotFound {
			err = nil
		}
		return keys, err
	}
	hosts, err := m.Hosts(ctx)
	for _, h := range hosts {
		keys[messages.HostKey(h.Zone, h.Host)] = h.SealKey
	}
	return keys, err
}

// warnAbsent tells of jobs that will wait for their hosts.
func (m *Manager) warnAbsent(hosts []string) {
	const shown = 5
	if len(hosts) == 1 {
		m.log.Warn().Msgf("host %s is not announced; the job waits for it (publisher hosts lists the hosts that are alive)", hosts[0])
	}
	if n := len(hosts); n > 1 {
		names := strings.Join(hosts[:min(n, shown)], ", ")
		if n > shown {
			names += ", …"
		}
		m.log.Warn().Msgf("%d jobs wait for hosts that are not announced: %s", n, names)
	}
}
