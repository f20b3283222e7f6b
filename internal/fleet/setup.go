package fleet

import (
	"context"
	"errors"
	"maps"
	"slices"

	"github.com/nasfleet/nasfleet/internal/access"
	"github.com/nasfleet/nasfleet/internal/bus"
)

// Setup makes what is missing of the streams, the buckets, and the queues of the hosts that were
// added: of these zones, or of all that have such hosts or are there. It returns the zones.
func (m *Manager) Setup(ctx context.Context, zones []string) ([]string, error) {
	hosts, err := m.hostsByZone(ctx, zones)
	if err != nil {
		return nil, err
	}
	for zone, names := range hosts {
		if err := m.bus.EnsureZone(ctx, zone); err != nil {
			return nil, badName(err)
		}
		if err := m.bus.EnsureQueues(ctx, zone, names); err != nil {
			return nil, err
		}
	}
	return slices.Sorted(maps.Keys(hosts)), nil
}

// Check compares these zones, or all, with what Setup makes. What all zones share is told once.
func (m *Manager) Check(ctx context.Context, zones []string) ([]bus.Difference, error) {
	hosts, err := m.hostsByZone(ctx, zones)
	if err != nil {
		return nil, err
	}
	list := []bus.Difference{}
	for _, zone := range slices.Sorted(maps.Keys(hosts)) {
		found, err := m.bus.Audit(ctx, zone, hosts[zone])
		if err != nil {
			return nil, badName(err)
		}
		for _, d := range found {
			if !slices.Contains(list, d) {
				list = append(list, d)
			}
		}
	}
	return list, nil
}

// hostsByZone returns the hosts that were added to each zone.
func (m *Manager) hostsByZone(ctx context.Context, zones []string) (map[string][]string, error) {
	all, err := access.NewHosts(m.keys).List()
	if err != nil {
		return nil, &Error{Class: Usage, Err: err}
	}
	wanted := zones
	if len(zones) == 0 {
		if wanted, err = m.bus.Zones(ctx); err != nil {
			return nil, err
		}
	}
	hosts := map[string][]string{}
	for _, z := range wanted {
		hosts[z] = nil
	}
	for _, h := range all {
		if h.RevokedAt == nil && (len(zones) == 0 || slices.Contains(zones, h.Zone)) {
			hosts[h.Zone] = append(hosts[h.Zone], h.Host)
		}
	}
	if len(hosts) == 0 {
		return nil, &Error{Class: Usage, Err: errors.New("there is no zone yet"), Hint: "Name one: --zone ZONE."}
	}
	return hosts, nil
}
