package main

import (
	"context"

	"github.com/nasfleet/nasfleet/internal/fleet"
)

type takeCmd struct {
	Zone        string   `help:"Zone of the host." placeholder:"ZONE"`
	Host        string   `help:"Host that backs up." placeholder:"HOST"`
	VM          string   `name:"vm" help:"libvirt domain to back up." placeholder:"NAME"`
	Image       []string `help:"Disk image of no VM, as an absolute path; repeatable." sep:"none" placeholder:"PATH"`
	ImageFormat string   `help:"Format of the images, raw or qcow2; told from their first bytes if left out." placeholder:"FORMAT"`
	Targets     string   `help:"File with a list of targets (YAML or JSON): zone, host, vm or images, image-format, job-id, and overrides (settings by the names of these flags)." placeholder:"FILE"`
	JobID       string   `help:"Id of the job (a ULID), so that publishing twice makes one job." placeholder:"ULID"`
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
