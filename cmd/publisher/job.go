package main

import (
	"context"
	"fmt"
	"io"
	"maps"
	"slices"
	"time"

	"github.com/nasfleet/nasfleet/internal/fleet"
	"github.com/nasfleet/nasfleet/messages"
)

// jobFlags are of every command that publishes a job.
type jobFlags struct {
	Wait bool `help:"Follow the job to its end and exit by its outcome."`
	JSON bool `name:"json" help:"Print the job's id, or with --wait its final event, as JSON; of a fleet one object a line."`
}

// sent is what is printed of a job that is not followed.
type sent struct {
	JobID     string            `json:"job_id"`
	Zone      string            `json:"zone"`
	Host      string            `json:"host"`
	VM        string            `json:"vm"`
	Replays   string            `json:"replays,omitempty"`
	Duplicate bool              `json:"duplicate,omitempty"`
	Error     *messages.Failure `json:"error,omitempty"`
}

func newSent(r fleet.Result) sent {
	return sent{
		JobID: r.Job.ID(), Zone: r.Job.Zone, Host: r.Job.Host, VM: r.Job.Command.Target(),
		Replays: r.Job.Command.Head().Replays, Duplicate: r.Duplicate, Error: messages.FailureOf(r.Err),
	}
}

// runJob publishes one job, follows it if asked, and prints what became of it.
func (a *app) runJob(ctx context.Context, m *fleet.Manager, job *fleet.Job, f jobFlags) error {
	if !f.Wait {
		results, err := m.Send(ctx, []*fleet.Job{job}, silent{})
		if err == nil {
			err = results[0].Err
		}
		if err != nil {
			return err
		}
		if results[0].Duplicate {
			a.note(duplicate(job))
		}
		a.note("follow it with: publisher watch --job " + job.ID())
		if f.JSON {
			return printJSON(a.stdout, newSent(results[0]))
		}
		_, err = fmt.Fprintln(a.stdout, job.ID())
		return err
	}
	final, err := a.follow(ctx, m, job)
	if final == nil {
		return err
	}
	if f.JSON {
		if printed := printJSON(a.stdout, final); printed != nil {
			return printed
		}
	} else if err == nil {
		printOutcome(a.stdout, *final)
	}
	return err
}

// follow publishes one job and shows on standard error how it goes. The error is the outcome's.
func (a *app) follow(ctx context.Context, m *fleet.Manager, job *fleet.Job) (*messages.Event, error) {
	v := newJobView(a.stderr)
	results, err := m.Run(ctx, []*fleet.Job{job}, v)
	v.close()
	if fleet.ClassOf(err) == fleet.Interrupted && results[0].Published {
		return nil, &fleet.Error{
			Class: fleet.Interrupted, Err: fmt.Errorf("no longer following job %s; the job goes on", job.ID()),
			Hint: "Follow it again with publisher watch --job " + job.ID() + ".",
		}
	}
	if err != nil {
		return nil, err
	}
	return results[0].Final, results[0].Failure()
}

// note tells people something that is no data.
func (a *app) note(s string) { _, _ = fmt.Fprintln(a.stderr, printable(s)) }

// duplicate tells that a job had been published before.
func duplicate(j *fleet.Job) string {
	if old := j.Command.Head().Replays; old != "" {
		return fmt.Sprintf("job %s is already replayed as %s", old, j.ID())
	}
	return fmt.Sprintf("job %s was published before", j.ID())
}

// silent is an Observer of jobs that are not followed.
type silent struct{}

func (silent) Sent(fleet.Result, fleet.Tally)                {}
func (silent) Event(*fleet.Job, messages.Event, fleet.Tally) {}
func (silent) Progress(*fleet.Job, messages.Progress)        {}

// printOutcome prints what a job that succeeded gave, for people.
func printOutcome(w io.Writer, e messages.Event) {
	_, _ = fmt.Fprintln(w, printable(outcome(e)))
	for _, disk := range slices.Sorted(maps.Keys(e.Restored)) {
		_, _ = fmt.Fprintln(w, printable(disk+": "+e.Restored[disk]))
	}
	for _, note := range e.Notes {
		_, _ = fmt.Fprintln(w, printable("note: "+note))
	}
}

func outcome(e messages.Event) string {
	took := seconds(e.Seconds)
	switch {
	case e.Type == messages.TypeRekey:
		return fmt.Sprintf("backup %s of %s has another passphrase, %s", e.BackupID, e.VM, took)
	case e.Type == messages.TypeConsolidate && e.Backup != nil:
		return fmt.Sprintf("backup %s of %s, made of %s: %s stored of %s data, %s, %s", e.Backup.ID, e.Backup.VM, e.Backup.ConsolidatedFrom,
			size(e.Backup.StoredBytes), size(e.Backup.DataBytes), features(*e.Backup), took)
	case e.Backup != nil:
		return fmt.Sprintf("backup %s of %s: %s stored of %s data, %s, %s",
			e.Backup.ID, e.Backup.VM, size(e.Backup.StoredBytes), size(e.Backup.DataBytes), features(*e.Backup), took)
	case e.Type == messages.TypeRestore:
		return fmt.Sprintf("backup %s of %s restored, %s", e.BackupID, e.VM, took)
	case e.Type == messages.TypeVerify:
		return fmt.Sprintf("backup %s of %s is whole, %s", e.BackupID, e.VM, took)
	case e.Type == messages.TypeDelete:
		return fmt.Sprintf("backup %s of %s deleted, %s", e.BackupID, e.VM, took)
	case e.Backups != nil:
		return fmt.Sprintf("%d backups in the repository, %s", *e.Backups, took)
	}
	return fmt.Sprintf("job %s %s, %s", e.JobID, e.Kind, took)
}

// seconds prints a duration in seconds as people write it.
func seconds(s float64) string {
	d := time.Duration(s * float64(time.Second))
	if d < time.Minute {
		return fmt.Sprintf("%.1f s", s)
	}
	return d.Round(time.Second).String()
}
