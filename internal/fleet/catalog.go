package fleet

import (
	"context"
	"errors"
	"fmt"

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

// Backup returns one backup of the catalog.
func (m *Manager) Backup(ctx context.Context, id string) (messages.CatalogEntry, error) {
	if err := messages.CheckID("backup id", id); err != nil {
		return messages.CatalogEntry{}, refused(err)
	}
	entry, err := m.bus.Backup(ctx, id)
	if errors.Is(err, bus.ErrNotFound) || errors.Is(err, bus.ErrNoStream) {
		return entry, &Error{
			Class: NotFound, Err: fmt.Errorf("backup %s is not in the catalog", id),
			Hint: "publisher ls lists what there is; ls --refresh reads a repository again.",
		}
	}
	return entry, err
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
