package fleet

import (
	"errors"
	"fmt"

	"github.com/nasfleet/nasfleet/internal/access"
	"github.com/nasfleet/nasfleet/messages"
)

// addedHosts returns the hosts that were added and not revoked, by HostKey.
func (m *Manager) addedHosts() (map[string]bool, error) {
	hosts, err := access.NewHosts(m.keys).List()
	if err != nil {
		return nil, &Error{Class: Usage, Err: err}
	}
	added := map[string]bool{}
	for _, h := range hosts {
		if h.RevokedAt == nil {
			added[messages.HostKey(h.Zone, h.Host)] = true
		}
	}
	return added, nil
}

// checkPin refuses to seal a job's passphrase for a key that is not the one its host was added with:
// who may write to the bucket of hosts may announce any key in any host's name.
func (m *Manager) checkPin(j *Job, key string, alive bool) error {
	if !j.seals() || !alive {
		return nil
	}
	return m.pinned(j.Zone, j.Host, key)
}

// pinned holds an announced key against the one that the host was added with. Where no host was
// ever added, there is nothing to hold it against.
func (m *Manager) pinned(zone, host, announced string) error {
	want, err := access.NewHosts(m.keys).Pinned(zone, host)
	switch {
	case errors.Is(err, access.ErrUnknownHost):
		return &Error{
			Class: Usage, Err: fmt.Errorf("nothing is sealed for %s/%s: %w", zone, host, access.ErrUnknownHost),
			Hint: "Add it with the key that hostworker key prints there: publisher host add " + zone + "/" + host + " --seal-key KEY.",
		}
	case errors.Is(err, access.ErrRevoked):
		return &Error{
			Class: Usage, Err: fmt.Errorf("nothing is sealed for %s/%s: %w", zone, host, access.ErrRevoked),
			Hint: "publisher host add adds it again, with new credentials.",
		}
	case err != nil:
		return &Error{Class: Usage, Err: err}
	case want != "" && want != announced:
		return &Error{
			Class: Usage, Err: fmt.Errorf("nothing is sealed for %s/%s: it announces the key %s and was added with %s", zone, host, announced, want),
			Hint: "If the host has lost its key, revoke it and add it again with the one that hostworker key prints there; if not, somebody else announces himself in its name.",
		}
	}
	return nil
}
