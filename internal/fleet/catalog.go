package fleet

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/nasfleet/nasfleet/internal/bus"
	"github.com/nasfleet/nasfleet/messages"
)

// CatalogFilter restricts a list of backups; an empty field is all.
type CatalogFilter struct {
	Zone string `help:"Only of this zone." placeholder:"ZONE"`
	Host string `help:"Only those a host of this name took." placeholder:"HOST"`
	VM   string `name:"vm" help:"Only of this VM." placeholder:"NAME"`
}

// Backups lists the backups in the catalog, oldest first. Without any it is empty, not nil.
func (m *Manager) Backups(ctx context.Context, f CatalogFilter) ([]messages.CatalogEntry, error) {
	if err := checkAddress(f.Zone, f.Host); err != nil {
		return nil, err
	}
	list, err := m.bus.Backups(ctx, bus.CatalogFilter{Zone: f.Zone, Host: f.Host, VM: f.VM})
	if err != nil {
		return nil, fmt.Errorf("read the catalog: %w", err)
	}
	return append([]messages.CatalogEntry{}, list...), nil // never null in JSON
}

// Backup returns one backup of the catalog. Where several hosts have entered one of that id, zone
// and host have to say which: a host may claim what is another's, and passphrases are sealed for the
// host that is chosen here. Where there is one entry they say nothing.
func (m *Manager) Backup(ctx context.Context, id, zone, host string) (messages.CatalogEntry, error) {
	if err := messages.CheckID("backup id", id); err != nil {
		return messages.CatalogEntry{}, refused(err)
	}
	entries, err := m.bus.Backup(ctx, id)
	if errors.Is(err, bus.ErrNotFound) || errors.Is(err, bus.ErrNoStream) {
		return messages.CatalogEntry{}, &Error{
			Class: NotFound, Err: fmt.Errorf("backup %s is not in the catalog", id),
			Hint: "publisher ls lists what there is; ls --refresh reads a repository again.",
		}
	}
	if err != nil {
		return messages.CatalogEntry{}, err
	}
	if len(entries) == 1 {
		return entries[0], nil
	}
	var claims []string
	for _, e := range entries {
		if e.Host == host && (zone == "" || e.Zone == zone) {
			return e, nil
		}
		claims = append(claims, e.Zone+"/"+e.Host)
	}
	return messages.CatalogEntry{}, &Error{
		Class: Usage, Err: fmt.Errorf("backup %s is in the catalog of several hosts: %s", id, strings.Join(claims, ", ")),
		Hint: "One host took it (publisher ls --json shows each entry). Name that one with --zone and --host.",
	}
}

// RefreshSettings say which repository is read again, and by which host.
type RefreshSettings struct {
	RepositorySettings
	Zone string
	Host string
	VM   string
}

// RefreshJob makes the job that rebuilds a host's part of the catalog from the manifests of a repository.
func RefreshJob(s RefreshSettings) (*Job, error) {
	repository, err := s.Repository()
	if err != nil {
		return nil, err
	}
	head, err := newHeader(messages.TypeList, "", 0, 0)
	if err != nil {
		return nil, err
	}
	job := &Job{Zone: s.Zone, Host: s.Host, Command: &messages.ListBackups{
		Header: head, BackupPath: s.BackupPath, Repository: repository, VM: s.VM,
	}}
	return job, job.check()
}

// checkAddress checks what is given of a zone and a host: both become tokens of a subject or key.
func checkAddress(zone, host string) error {
	if zone != "" {
		if err := messages.CheckLabel("zone", zone); err != nil {
			return refused(err)
		}
	}
	if host != "" {
		if err := messages.CheckLabel("host", host); err != nil {
			return refused(err)
		}
	}
	return nil
}
