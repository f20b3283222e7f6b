package main

import (
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/nasfleet/nasfleet/internal/fleet"
)

type pruneCmd struct {
	fleet.Retention
	fleet.CatalogFilter
	DryRun bool `help:"Show what would be deleted and what keeps the rest, and delete nothing."`
	JSON   bool `name:"json" help:"Print the final event of each job, one object a line; with --dry-run an object for each backup."`
}

// judged is a line of prune --dry-run --json.
type judged struct {
	Backup    string    `json:"backup"`
	Zone      string    `json:"zone"`
	Host      string    `json:"host"`
	VM        string    `json:"vm"`
	CreatedAt time.Time `json:"created_at"`
	Parent    string    `json:"parent,omitempty"`
	Keep      bool      `json:"keep"`
	Why       []string  `json:"why"`
}

func (c *pruneCmd) Run(ctx context.Context, a *app) error {
	return a.with(ctx, func(m *fleet.Manager) error {
		plan, err := m.PlanPrune(ctx, c.Retention, c.CatalogFilter)
		if err != nil {
			return err
		}
		if c.DryRun {
			return c.show(a.stdout, plan)
		}
		gone := 0
		for _, v := range plan {
			if !v.Keep {
				gone++
			}
		}
		a.note(fmt.Sprintf("%d of %d backups are kept", len(plan)-gone, len(plan)))
		if gone == 0 {
			return nil
		}
		return a.showFleet(jobFlags{Wait: true, JSON: c.JSON}, func(o fleet.Observer) ([]fleet.Result, error) {
			return m.Prune(ctx, plan, o)
		})
	})
}

func (c *pruneCmd) show(w io.Writer, plan []fleet.Verdict) error {
	if c.JSON {
		for _, v := range plan {
			b := v.Backup
			line := judged{b.ID, b.Zone, b.Host, b.VM, b.CreatedAt, b.Parent, v.Keep, append([]string{}, v.Why...)}
			if err := printJSONLine(w, line); err != nil {
				return err
			}
		}
		return nil
	}
	t := newTable(w, "ID", "ZONE", "HOST", "VM", "CREATED", "MODE", "VERDICT", "WHY")
	for _, v := range plan {
		b, verdict := v.Backup, "delete"
		if v.Keep {
			verdict = "keep"
		}
		t.row(b.ID, b.Zone, b.Host, b.VM, stamp(b.CreatedAt), string(b.Mode), verdict, strings.Join(v.Why, ", "))
	}
	return t.flush()
}
