package fleet

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/nasfleet/nasfleet/messages"
)

// Story is all that is stored of one job, in order.
type Story struct {
	JobInfo
	// Command is the command without its secrets; nil where CommandError says why.
	Command messages.Command `json:"command,omitempty"`
	Events  []messages.Event `json:"events"`
}

// Job tells one job's story. Zone and host are only needed where several have a job of that id; ""
// is any. An id that nobody knows is of class NotFound.
func (m *Manager) Job(ctx context.Context, id, zone, host string) (Story, error) {
	h, err := m.readJobs(ctx, []string{id}, zone, host)
	if err != nil {
		return Story{}, err
	}
	r, err := h.one(id)
	if err != nil {
		return Story{}, err
	}
	if err := m.findReplays(ctx, history{r.key(): r}); err != nil {
		return Story{}, err
	}
	s := Story{JobInfo: r.JobInfo, Events: append([]messages.Event{}, r.events...)} // never null in JSON
	if r.cmd != nil {
		s.Command = redacted(r.cmd)
	}
	return s, nil
}

// readJobs reads all that is stored of a few jobs.
func (m *Manager) readJobs(ctx context.Context, ids []string, zone, host string) (history, error) {
	if err := checkAddress(zone, host); err != nil {
		return nil, err
	}
	s := scope{zone: zone, jobs: ids, whole: true}
	if host != "" {
		s.hosts = []string{host}
	}
	return m.read(ctx, s)
}

// one returns the job of that id. One that has a command comes before those that only have
// events, which any host can tell about any id.
func (h history) one(id string) (*record, error) {
	var stored, told []*record
	for _, r := range h {
		switch {
		case r.JobID != id:
		case r.gone():
			told = append(told, r)
		default:
			stored = append(stored, r)
		}
	}
	found := stored
	if len(found) == 0 {
		found = told
	}
	switch len(found) {
	case 0:
		return nil, &Error{
			Class: NotFound, Err: fmt.Errorf("there is no job %s", id),
			Hint: "publisher jobs lists the jobs that are stored.",
		}
	case 1:
		return found[0], nil
	}
	places := make([]string, len(found))
	for i, r := range found {
		places[i] = r.Zone + "/" + r.Host
	}
	slices.Sort(places)
	return nil, &Error{
		Class: Usage, Err: fmt.Errorf("several hosts have a job %s: %s", id, strings.Join(places, ", ")),
		Hint: "Say which with --zone and --host.",
	}
}

// redacted returns a copy of a command that can be shown. There is no other secret in a command: one
// with a password in its mount options is refused as unreadable.
func redacted(cmd messages.Command) messages.Command {
	c := withHead(cmd, cmd.Head())
	if d := detailsOf(c); d != nil {
		*d = d.Redacted()
	}
	if r, ok := c.(*messages.RekeyBackup); ok && r.OldPassphrase != "" {
		r.OldPassphrase = "(sealed)"
	}
	if k, ok := c.(*messages.ConsolidateBackup); ok && k.ChainPassphrase != "" {
		k.ChainPassphrase = "(sealed)"
	}
	return c
}

// withHead returns a copy of a command under another header.
func withHead(cmd messages.Command, head messages.Header) messages.Command {
	switch c := cmd.(type) {
	case *messages.TakeBackup:
		n := *c
		n.Header = head
		return &n
	case *messages.RestoreBackup:
		n := *c
		n.Header = head
		return &n
	case *messages.VerifyBackup:
		n := *c
		n.Header = head
		return &n
	case *messages.DeleteBackup:
		n := *c
		n.Header = head
		return &n
	case *messages.RekeyBackup:
		n := *c
		n.Header = head
		return &n
	case *messages.ConsolidateBackup:
		n := *c
		n.Header = head
		return &n
	case *messages.ListBackups:
		n := *c
		n.Header = head
		return &n
	}
	return nil
}
