package worker

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/nasfleet/nasfleet/internal/exec"
)

// foreignWait is how long it is tried to write an entry of another host's. A server says that it
// denies something apart from the request, which then times out.
const foreignWait = 8 * time.Second

// updateCatalog enters what a job has found or made. An entry of another host's can only be written by
// a host that has the right to, which in a fleet of hosts with rights of their own is that host.
func (j *job) updateCatalog(out *exec.Outcome) error {
	put := slices.Concat(out.Changed, out.Listed)
	if out.Backup != nil { // this host's, unless another host's got another passphrase
		put = append(put, *out.Backup)
	}
	for _, d := range out.Deleted {
		err := j.writeEntry(out, d.Zone, d.Host, func(ctx context.Context) error {
			return j.w.out.RemoveBackup(ctx, d.Zone, d.Host, d.ID)
		})
		if err != nil {
			return err
		}
	}
	for _, e := range put {
		err := j.writeEntry(out, e.Zone, e.Host, func(ctx context.Context) error { return j.w.out.PutBackup(ctx, e) })
		if err != nil {
			return err
		}
	}
	return nil
}

// writeEntry writes an entry of a host, which may be another one. That it may not write such entries
// is found out once, and noted.
func (j *job) writeEntry(out *exec.Outcome, zone, host string, write func(context.Context) error) error {
	if zone == j.w.cfg.Zone && host == j.w.cfg.Host {
		return write(j.words)
	}
	if j.forbidden {
		return nil
	}
	ctx, cancel := context.WithTimeout(j.words, foreignWait)
	defer cancel()
	err := write(ctx)
	if !errors.Is(err, ErrForbidden) {
		return err
	}
	j.forbidden = true
	j.log.Info().Str("of", zone+"/"+host).Msg("the catalog's entries of other hosts are theirs to write")
	out.Notes = append(out.Notes, "the catalog's entries of other hosts, such as "+zone+"/"+host+", are theirs to write")
	return nil
}
