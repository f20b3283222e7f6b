package fleet

import (
	"context"
	"strings"
	"time"

	"github.com/nasfleet/nasfleet/messages"
)

// BackupSettings name a stored backup and the host that works on it.
type BackupSettings struct {
	Backup string `help:"The backup's id, as ls prints it." placeholder:"ID" required:""`
	Zone   string `help:"Zone of the host that does it; that of the backup if left out." placeholder:"ZONE"`
	Host   string `help:"Host that does it; the one that took the backup if left out." placeholder:"HOST"`
	JobID  string `help:"Id of the job (a ULID), so that publishing twice makes one job." placeholder:"ULID"`
}

// ReadSettings are of the jobs that read a backup's data.
type ReadSettings struct {
	PassphraseFile string        `help:"File that holds the backup's passphrase, - for standard input; the one kept for it if left out." placeholder:"FILE"`
	Bandwidth      int           `help:"Limit of the job, all its disks together; 0 is none." placeholder:"MIB/S"`
	Timeout        time.Duration `help:"How long the job may take, all attempts together, such as 2h; 0 is the host's limit." placeholder:"DURATION"`
}

// RestoreSettings say where the disks of a backup go.
type RestoreSettings struct {
	BackupSettings
	ReadSettings
	To     string   `help:"Folder on the host; each disk becomes <DIR>/<disk>.<format>." placeholder:"DIR"`
	Format string   `help:"Format of the files in --to: qcow2 (the default) or raw." placeholder:"FORMAT"`
	Define bool     `help:"Define the VM from the backup's domain.xml, its disks in --to."`
	ToVM   string   `name:"to-vm" help:"Stopped VM whose disks are overwritten." placeholder:"NAME"`
	ToRBD  []string `name:"to-rbd" help:"RBD image that a disk overwrites, as DISK=POOL/IMAGE; repeatable. The host has to allow the pool." sep:"none" placeholder:"DISK=IMAGE"`
	Disk   []string `help:"Restore this disk only (vda); repeatable." placeholder:"NAME"`
	Force  bool     `help:"Overwrite files that exist."`
}

// RestoreJob makes the job that restores a backup of the catalog.
func (m *Manager) RestoreJob(ctx context.Context, s RestoreSettings, r *Passphrases) (*Job, error) {
	images, err := s.images()
	if err != nil {
		return nil, err
	}
	entry, err := m.Backup(ctx, s.Backup, s.Zone, s.Host)
	if err != nil {
		return nil, err
	}
	head, err := newHeader(messages.TypeRestore, s.JobID, 0, s.Timeout)
	if err != nil {
		return nil, err
	}
	return m.reading(ctx, s.BackupSettings, entry, &messages.RestoreBackup{
		Header: head, Backup: entry.Ref(), Disks: s.Disk, ToDir: s.To, Format: s.Format, ToVM: s.ToVM, ToRBD: images,
		Define: s.Define, Force: s.Force, Details: messages.Details{BandwidthLimit: s.Bandwidth},
	}, s.PassphraseFile, r)
}

// images reads --to-rbd, and checks that there is one target.
func (s RestoreSettings) images() (map[string]string, error) {
	targets := 0
	for _, given := range []bool{s.To != "", s.ToVM != "", len(s.ToRBD) > 0} {
		if given {
			targets++
		}
	}
	if targets != 1 {
		return nil, usagef("exactly one of --to, --to-vm and --to-rbd is needed")
	}
	var images map[string]string
	for _, arg := range s.ToRBD {
		disk, image, ok := strings.Cut(arg, "=")
		if _, twice := images[disk]; !ok || twice {
			return nil, usagef("--to-rbd %s is not one disk's DISK=POOL/IMAGE", arg)
		}
		if images == nil {
			images = map[string]string{}
		}
		images[disk] = image
	}
	return images, nil
}

// VerifyJob makes the job that reads a stored backup back and compares it with its digests.
func (m *Manager) VerifyJob(ctx context.Context, b BackupSettings, s ReadSettings, r *Passphrases) (*Job, error) {
	entry, err := m.Backup(ctx, b.Backup, b.Zone, b.Host)
	if err != nil {
		return nil, err
	}
	head, err := newHeader(messages.TypeVerify, b.JobID, 0, s.Timeout)
	if err != nil {
		return nil, err
	}
	return m.reading(ctx, b, entry, &messages.VerifyBackup{
		Header: head, Backup: entry.Ref(), Details: messages.Details{BandwidthLimit: s.Bandwidth},
	}, s.PassphraseFile, r)
}

// DeleteJob makes the job that deletes a stored backup; with cascade, what needs it as well.
func (m *Manager) DeleteJob(ctx context.Context, b BackupSettings, cascade bool) (*Job, error) {
	entry, err := m.Backup(ctx, b.Backup, b.Zone, b.Host)
	if err != nil {
		return nil, err
	}
	head, err := newHeader(messages.TypeDelete, b.JobID, 0, 0)
	if err != nil {
		return nil, err
	}
	job := &Job{Zone: b.zone(entry), Host: b.host(entry), Command: &messages.DeleteBackup{Header: head, Backup: entry.Ref(), Cascade: cascade}, chosenID: b.JobID != ""}
	return job, job.check()
}

// reading addresses a command that reads a backup. The passphrase of one that is not encrypted stays here.
func (m *Manager) reading(ctx context.Context, b BackupSettings, entry messages.CatalogEntry, cmd messages.Command, file string, r *Passphrases) (*Job, error) {
	job := &Job{Zone: b.zone(entry), Host: b.host(entry), Command: cmd, chosenID: b.JobID != ""}
	if entry.Encrypted {
		p, err := m.opener(ctx, entry, file, r)
		if err != nil {
			return nil, err
		}
		d := detailsOf(cmd)
		job.sealings = append(job.sealings, sealing{p, &d.Passphrase})
		if file == "" {
			d.Revision = entry.Revision
		}
	}
	return job, job.check()
}

func (b BackupSettings) zone(entry messages.CatalogEntry) string {
	if b.Zone != "" {
		return b.Zone
	}
	return entry.Zone
}

func (b BackupSettings) host(entry messages.CatalogEntry) string {
	if b.Host != "" {
		return b.Host
	}
	return entry.Host
}
