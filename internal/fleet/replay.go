package fleet

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"time"

	"github.com/oklog/ulid/v2"

	"github.com/nasfleet/nasfleet/internal/secret"
	"github.com/nasfleet/nasfleet/messages"
)

// ReplaySettings say which jobs are run again: those of Jobs, or those that the filter lets
// through of the failed and the cancelled ones.
type ReplaySettings struct {
	Jobs      []string `name:"job" help:"Replay this job; repeatable." sep:"none" placeholder:"ULID"`
	Failed    bool     `help:"Replay the jobs that failed."`
	Cancelled bool     `help:"Replay the jobs that were cancelled."`
	JobFilter
}

// Replay is what becomes of one job that was asked for.
type Replay struct {
	Old JobInfo
	// Job is the new job, nil where the old one is left out. Where Old.ReplayedAs is set it is that
	// one: publishing it again changes nothing.
	Job *Job
	// LeftOut is why.
	LeftOut string
}

// PlanReplay makes the jobs that replay others, oldest first; nothing is published. Of jobs named
// by their ids, each has to have failed or been cancelled, or the whole plan is refused. A filter
// takes only such, and leaves out those that have been replayed, whose command cannot be read, and
// restores: to write over a VM's disks again has to be asked for by name.
//
// The new job's id follows from the old one's and its end, so that the stream refuses a second
// replay of the same job.
func (m *Manager) PlanReplay(ctx context.Context, s ReplaySettings) ([]Replay, error) {
	byFilter := s.Failed || s.Cancelled
	switch {
	case len(s.Jobs) == 0 && !byFilter:
		return nil, &Error{
			Class: Usage, Err: fmt.Errorf("no job is asked for"),
			Hint: "Give --job ID, or --failed or --cancelled with what narrows them.",
		}
	case len(s.Jobs) > 0 && (byFilter || s.VM != "" || s.Code != "" || s.Since != 0):
		return nil, usagef("--job goes without --failed, --cancelled, --vm, --code and --since")
	}
	own, err := m.ownCommands()
	if err != nil {
		return nil, err
	}
	if len(s.Jobs) > 0 {
		return m.replayNamed(ctx, s, own)
	}
	records, err := m.match(ctx, s.JobFilter, func(st JobState) bool {
		return s.Failed && st == JobFailed || s.Cancelled && st == JobCancelled
	})
	if err != nil {
		return nil, err
	}
	plan := make([]Replay, len(records))
	for i, r := range records {
		why := r.leftOut()
		if why == "" {
			if err := m.checkOwn(ctx, r, own); errors.Is(err, errNotOwn) {
				why = errNotOwn.Error()
			} else if err != nil {
				return nil, err
			}
		}
		if why != "" {
			plan[i] = Replay{Old: r.JobInfo, LeftOut: why}
		} else if plan[i], err = m.replay(ctx, r); err != nil {
			return nil, err
		}
	}
	return plan, nil
}

// errNotOwn is a command that this publisher has not signed.
var errNotOwn = errors.New("its command is not signed with this publisher's key")

// ownCommands returns what tells this publisher's own commands, nil where it signs none.
func (m *Manager) ownCommands() (*secret.Verifier, error) {
	signer, err := secret.LoadSigner(m.keys)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, &Error{Class: Usage, Err: err}
	}
	return secret.NewVerifier(0, signer.Public())
}

// checkOwn refuses to replay what somebody else has put into the stream: a replay is signed. Of a command
// that passes, the record holds what was signed.
func (m *Manager) checkOwn(ctx context.Context, r *record, own *secret.Verifier) error {
	if own == nil {
		return nil
	}
	data, signature, err := m.bus.SignedCommand(ctx, r.Zone, r.Host, r.JobID)
	if err != nil {
		return err
	}
	if err := own.Verify(r.key(), signature, data); err != nil {
		return &Error{
			Class: Usage, Err: fmt.Errorf("job %s cannot be replayed: %w (%w)", r.JobID, errNotOwn, err),
			Hint: "Look at it (publisher job " + r.JobID + "), and publish what you want of it yourself.",
		}
	}
	r.cmd, _, err = messages.Decode(data)
	return err
}

func (m *Manager) replayNamed(ctx context.Context, s ReplaySettings, own *secret.Verifier) ([]Replay, error) {
	ids := slices.Compact(slices.Sorted(slices.Values(s.Jobs)))
	for _, id := range ids {
		if err := messages.CheckID("job id", id); err != nil {
			return nil, refused(err)
		}
	}
	h, err := m.readJobs(ctx, ids, s.Zone, s.Host)
	if err != nil {
		return nil, err
	}
	records, chosen := make([]*record, len(ids)), history{}
	for i, id := range ids {
		if records[i], err = h.one(id); err == nil {
			err = records[i].replayable()
		}
		if err == nil {
			err = m.checkOwn(ctx, records[i], own)
		}
		if err != nil {
			return nil, err
		}
		chosen[records[i].key()] = records[i]
	}
	if err := m.findReplays(ctx, chosen); err != nil {
		return nil, err
	}
	plan := make([]Replay, len(records))
	for i, r := range records {
		if plan[i], err = m.replay(ctx, r); err != nil {
			return nil, err
		}
	}
	return plan, nil
}

// replayable returns why a job cannot be replayed at all, or nil.
func (r *record) replayable() error {
	switch {
	case r.gone():
		return &Error{Class: NotFound, Err: fmt.Errorf("job %s cannot be replayed: %s", r.JobID, r.CommandError)}
	case r.cmd == nil:
		return usagef("job %s cannot be replayed, its command is not readable: %s", r.JobID, r.CommandError)
	case r.State == JobSucceeded:
		return usagef("job %s has succeeded; there is nothing to replay", r.JobID)
	case !r.State.Over():
		return &Error{
			Class: Usage, Err: fmt.Errorf("job %s has not ended, it is %s", r.JobID, r.State),
			Hint: "Follow it with publisher watch --job " + r.JobID + "; it can be replayed when it has failed.",
		}
	}
	return nil
}

// leftOut returns why a filter does not take a job, or "".
func (r *record) leftOut() string {
	switch {
	case r.cmd == nil:
		return "its command is not readable"
	case r.ReplayedAs != "":
		return "already replayed as " + r.ReplayedAs
	case r.Type == messages.TypeRestore:
		return "a restore is replayed only by its id (--job)"
	}
	return ""
}

// gone says that only events are left of the job.
func (r *record) gone() bool { return r.CommandError == commandGone }

// replay makes the new job. The command is as it was; a passphrase that the publisher can open is sealed
// again when it is published, because the host may have another key by now.
func (m *Manager) replay(ctx context.Context, r *record) (Replay, error) {
	id := r.ReplayedAs
	if id == "" {
		var err error
		if id, err = replayID(r.JobID, r.endedAt); err != nil {
			return Replay{}, err
		}
	}
	head, err := newHeader(r.Type, id, 0, 0)
	if err != nil {
		return Replay{}, err
	}
	old := r.cmd.Head()
	old.JobID, old.IssuedAt, old.Replays = head.JobID, head.IssuedAt, r.JobID
	job := &Job{Zone: r.Zone, Host: r.Host, Command: withHead(r.cmd, old), chosenID: true}
	m.sealAgain(ctx, job)
	return Replay{Old: r.JobInfo, Job: job}, job.check()
}

// sealAgain has the passphrases of a command that its zone keeps sealed when it is published. Those that
// cannot be opened here stay as they are sealed.
func (m *Manager) sealAgain(ctx context.Context, j *Job) {
	d := detailsOf(j.Command)
	if d == nil {
		return
	}
	again := func(revision string, into *string) {
		if revision == "" || *into == "" {
			return
		}
		if p, err := m.kept(ctx, j.Zone, revision); err == nil {
			j.sealings = append(j.sealings, sealing{p, into})
		}
	}
	again(d.Revision, &d.Passphrase)
	again(d.RecoveryRevision, &d.Recovery)
	if c, ok := j.Command.(*messages.RekeyBackup); ok {
		again(c.OldRevision, &c.OldPassphrase)
	}
	if c, ok := j.Command.(*messages.ConsolidateBackup); ok {
		again(c.ChainRevision, &c.ChainPassphrase)
	}
}

// replayID is the id of the one job that replays another: a ULID of the time when the old one's
// final event was stored, and of a digest of the old id instead of random bits.
func replayID(old string, ended time.Time) (string, error) {
	var id ulid.ULID
	if err := id.SetTime(ulid.Timestamp(ended)); err != nil {
		return "", fmt.Errorf("job %s ended at %s: %w", old, ended, err)
	}
	digest := sha256.Sum256([]byte(old + " replay"))
	if err := id.SetEntropy(digest[:len(id.Entropy())]); err != nil {
		return "", err
	}
	return id.String(), nil
}
