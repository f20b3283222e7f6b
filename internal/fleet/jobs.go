package fleet

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/nasfleet/nasfleet/messages"
)

// JobFilter restricts a list of jobs; an empty field is all.
type JobFilter struct {
	Zone string `help:"Only of this zone." placeholder:"ZONE"`
	Host string `help:"Only of hosts of this name." placeholder:"HOST"`
	VM   string `name:"vm" help:"Only of this VM." placeholder:"NAME"`
	Code string `help:"Only those whose last attempt failed with this code." placeholder:"CODE"`
	// Since leaves out jobs of which nothing has been heard for so long.
	Since time.Duration `help:"Only those that were published, or told of an event, in this time, such as 24h." placeholder:"DURATION"`
}

// JobInfo is a stored job in short.
type JobInfo struct {
	// JobID is the last token of the command's subject. It is a ULID unless somebody published by
	// hand and CommandError says so.
	JobID string `json:"job_id"`
	Zone  string `json:"zone"`
	Host  string `json:"host"`
	// VM is the command's target.
	VM   string        `json:"vm"`
	Type messages.Type `json:"type"`
	Status
	// PublishedAt is when the command was stored, by the server's clock; of a job whose command is
	// gone, its first event.
	PublishedAt time.Time `json:"published_at"`
	// ChangedAt is when its last event was stored, or the command where there is none.
	ChangedAt time.Time `json:"changed_at"`
	// AgeSeconds is the time since PublishedAt.
	AgeSeconds int64 `json:"age_seconds"`
	// Replays is the job that this one runs again, ReplayedAs the one that runs this again.
	Replays    string `json:"replays,omitempty"`
	ReplayedAs string `json:"replayed_as,omitempty"`
	// CommandError is why the command cannot be read, or that it is no longer stored.
	CommandError string `json:"command_error,omitempty"`
}

// Jobs lists the jobs whose commands are stored, oldest first: the newest limit of them, or all
// where limit is 0; only those in one state where one is given. Without any the list is empty, not
// nil. It costs one pass over the commands of each zone and one over the events.
func (m *Manager) Jobs(ctx context.Context, f JobFilter, state JobState, limit int) ([]JobInfo, error) {
	if limit < 0 {
		return nil, usagef("limit %d is below 0", limit)
	}
	records, err := m.match(ctx, f, func(s JobState) bool { return state == "" || s == state })
	if err != nil {
		return nil, err
	}
	if limit > 0 {
		records = records[max(0, len(records)-limit):]
	}
	list := make([]JobInfo, len(records))
	for i, r := range records {
		list[i] = r.JobInfo
	}
	return list, nil
}

// match reads the jobs that the filter lets through, oldest first.
func (m *Manager) match(ctx context.Context, f JobFilter, state func(JobState) bool) ([]*record, error) {
	if err := f.check(); err != nil {
		return nil, err
	}
	s := scope{zone: f.Zone}
	if f.Host != "" {
		s.hosts = []string{f.Host}
	}
	var since time.Time
	if f.Since > 0 {
		since = time.Now().Add(-f.Since)
		s.eventsSince = since.Add(-clockMargin)
	}
	p, err := m.read(ctx, s)
	if err != nil {
		return nil, err
	}
	p.linkReplays()
	var list []*record
	for _, r := range p {
		if (f.VM == "" || r.VM == f.VM) && (f.Code == "" || string(r.Code) == f.Code) && state(r.State) && !r.ChangedAt.Before(since) {
			list = append(list, r)
		}
	}
	slices.SortFunc(list, func(x, y *record) int {
		return cmp.Or(x.PublishedAt.Compare(y.PublishedAt), strings.Compare(x.key(), y.key()))
	})
	return list, nil
}

func (f JobFilter) check() error {
	if err := checkAddress(f.Zone, f.Host); err != nil {
		return err
	}
	if f.Since < 0 {
		return usagef("since %s is below 0", f.Since)
	}
	if f.Code != "" && !slices.Contains(messages.Codes(), messages.Code(f.Code)) {
		return &Error{Class: Usage, Err: fmt.Errorf("there is no code %q", f.Code), Hint: "docs/operations.md explains each code."}
	}
	return nil
}
