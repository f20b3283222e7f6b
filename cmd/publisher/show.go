package main

import (
	"context"
	"fmt"
	"io"
	"strings"

	"github.com/nasfleet/nasfleet/internal/fleet"
	"github.com/nasfleet/nasfleet/messages"
)

type showCmd struct {
	ID     string `arg:"" optional:"" name:"id" help:"The backup's id, as ls prints it."`
	Backup string `help:"The same, as a flag." placeholder:"ID"`
	Zone   string `help:"Where several hosts have entered it: that of this zone." placeholder:"ZONE"`
	Host   string `help:"Where several hosts have entered it: that of this host." placeholder:"HOST"`
	JSON   bool   `name:"json" help:"Print a JSON object."`
}

func (c *showCmd) Run(ctx context.Context, a *app) error {
	id := c.ID
	if id == "" {
		id = c.Backup
	}
	return a.with(ctx, func(m *fleet.Manager) error {
		entry, err := m.Backup(ctx, id, c.Zone, c.Host)
		if err != nil {
			return err
		}
		if c.JSON {
			return printJSON(a.stdout, entry)
		}
		return printBackup(a.stdout, entry)
	})
}

func printBackup(w io.Writer, e messages.CatalogEntry) error {
	t := newTable(w)
	t.row("id", e.ID)
	t.row("vm", e.VM)
	t.row("host", e.Zone+"/"+e.Host)
	t.row("created", stamp(e.CreatedAt))
	t.row("mode", mode(e))
	t.row("features", features(e))
	if e.Revision != "" {
		t.row("passphrase", e.Revision)
	}
	if e.RecoveryRevision != "" {
		t.row("recovery", e.RecoveryRevision)
	}
	t.row("size", size(e.VirtualBytes))
	t.row("data", size(e.DataBytes))
	t.row("stored", size(e.StoredBytes)+ratio(e))
	t.row("repository", repository(e.Repository))
	t.row("folder", strings.TrimPrefix(e.BackupPath+"/", "/")+e.VM+"/"+e.ID)
	for _, note := range e.Notes {
		t.row("note", note)
	}
	if err := t.flush(); err != nil || len(e.Disks) == 0 {
		return err
	}
	_, _ = fmt.Fprintln(w)
	t = newTable(w, "DISK", "FILE", "SIZE", "DATA", "STORED")
	for _, d := range e.Disks {
		t.row(d.Name, d.File, size(d.VirtualBytes), size(d.DataBytes), size(d.StoredBytes))
	}
	return t.flush()
}

// mode tells what a backup is, and why or of which.
func mode(e messages.CatalogEntry) string {
	switch {
	case e.Parent != "":
		return fmt.Sprintf("%s of %s", e.Mode, e.Parent)
	case e.ConsolidatedFrom != "":
		return fmt.Sprintf("%s, made of %s", e.Mode, e.ConsolidatedFrom)
	case e.FullReason != "":
		return fmt.Sprintf("%s (%s)", e.Mode, e.FullReason)
	}
	return string(e.Mode)
}

// ratio is what the repository holds of the data that was copied.
func ratio(e messages.CatalogEntry) string {
	if e.DataBytes == 0 {
		return ""
	}
	return fmt.Sprintf(" (%.0f %% of the data)", 100*float64(e.StoredBytes)/float64(e.DataBytes))
}

func repository(r messages.Repository) string {
	s := r.Type + " " + r.Address
	if r.MountOptions != "" {
		s += " (" + r.MountOptions + ")"
	}
	return s
}
