package hypervisor

import (
	"context"

	"libvirt.org/go/libvirt"
)

// VMJob is a backup job and the VM it is of.
type VMJob struct {
	VM string
	BackupJob
}

// BackupJobs lists the backup jobs of all VMs. A VM that goes meanwhile is left out. The error has the
// code CodeHypervisorDown.
func (h *Hypervisor) BackupJobs(ctx context.Context) ([]VMJob, error) {
	return call(ctx, h, func(conn *libvirt.Connect) ([]VMJob, error) {
		doms, err := conn.ListAllDomains(libvirt.CONNECT_LIST_DOMAINS_ACTIVE)
		if err != nil {
			return nil, err
		}
		var jobs []VMJob
		for i := range doms {
			dom := &doms[i]
			defer free(dom)
			// Asked first: libvirtd logs an error for each VM that has no backup job to describe.
			stats, err := dom.GetJobStats(0)
			if err != nil || stats.Type == libvirt.DOMAIN_JOB_NONE || stats.Operation != libvirt.DOMAIN_JOB_OPERATION_BACKUP {
				continue
			}
			job, err := backupJob(dom)
			if err != nil || !job.Running {
				continue
			}
			name, err := dom.GetName()
			if err != nil {
				return nil, err
			}
			jobs = append(jobs, VMJob{name, job})
		}
		return jobs, nil
	}, nil)
}
