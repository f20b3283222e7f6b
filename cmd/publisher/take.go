package main

import (
	"context"

	"github.com/nasfleet/nasfleet/internal/fleet"
	"github.com/nasfleet/nasfleet/messages"
)

type takeCmd struct {
	Zone        string   `help:"Zone of the host." placeholder:"ZONE"`
	Host        string   `help:"Host that backs up." placeholder:"HOST"`
	VM          string   `name:"vm" help:"libvirt domain to back up." placeholder:"NAME"`
	Image       []string `help:"Disk image of no VM, as an absolute path; repeatable." sep:"none" placeholder:"PATH"`
	ImageFormat string   `help:"Format of the images, raw or qcow2; told from their first bytes if left out." placeholder:"FORMAT"`
	Targets     string   `help:"File with a list of targets (YAML or JSON): zone, host, vm or images, image-format, job-id, and overrides (settings by the names of these flags)." placeholder:"FILE"`
	JobID       string   `help:"Id of the job (a ULID), so that publishing twice makes one job." placeholder:"ULID"`
	DryRun      bool     `help:"Print the command as it would be sent, passphrases left out, and publish nothing; of a fleet one object a line."`
	fleet.TakeSettings
	jobFlags
}

func (c *takeCmd) Run(ctx context.Context, a *app) error {
	passphrases := fleet.NewPassphrases(a.stdin)
	defer passphrases.Wipe()
	jobs, err := c.jobs(passphrases)
	if err != nil {
		return err
	}
	return a.with(ctx, func(m *fleet.Manager) error {
		if c.DryRun {
			return c.show(ctx, a, m, jobs)
		}
		if c.Targets != "" {
			return a.runFleet(ctx, m, jobs, c.jobFlags)
		}
		return a.runJob(ctx, m, jobs[0], c.jobFlags)
	})
}

func (c *takeCmd) jobs(p *fleet.Passphrases) ([]*fleet.Job, error) {
	src := fleet.Source{
		Zone: c.Zone, Host: c.Host, VM: c.VM, Images: c.Image, ImageFormat: c.ImageFormat, JobID: c.JobID,
	}
	if c.Targets != "" {
		return fleet.LoadTargets(c.Targets, src, c.TakeSettings, p)
	}
	job, err := fleet.TakeJob(src, c.TakeSettings, p)
	return []*fleet.Job{job}, err
}

// dryCommand is a command of a fleet that would be sent.
type dryCommand struct {
	Zone    string           `json:"zone"`
	Host    string           `json:"host"`
	Command messages.Command `json:"command"`
}

// show prints what would be published.
func (c *takeCmd) show(ctx context.Context, a *app, m *fleet.Manager, jobs []*fleet.Job) error {
	if err := m.Fill(ctx, jobs); err != nil {
		return err
	}
	if c.Targets == "" {
		return printJSON(a.stdout, jobs[0].Redacted())
	}
	for _, j := range jobs {
		if err := printJSONLine(a.stdout, dryCommand{j.Zone, j.Host, j.Redacted()}); err != nil {
			return err
		}
	}
	return nil
}
