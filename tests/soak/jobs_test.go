package soak

import (
	"context"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/oklog/ulid/v2"

	"github.com/nasfleet/nasfleet/internal/fleet"
	"github.com/nasfleet/nasfleet/internal/secret"
	"github.com/nasfleet/nasfleet/messages"
	"github.com/nasfleet/nasfleet/tests/lab"
)

// job is a command that was published, and what came of it.
type job struct {
	id     string
	host   *host
	cmd    messages.Command
	source *source
	// backup is what a restore, verify or delete works on.
	backup *backup
	// cancelled says that somebody has asked for its end.
	cancelled bool
	final     *messages.Event
}

// backup is one that was reported.
type backup struct {
	ref       messages.BackupRef
	host      *host
	source    *source
	encrypted bool
	// restored says that it was restored to the right bytes; uses counts the jobs on it that have not ended.
	restored bool
	uses     int
	deleting bool
}

// attempts allow a job to outlive the faults: what fails it for good is to be a code that says so.
const attempts = 100

func (s *soak) header(typ messages.Type) messages.Header {
	return messages.Header{Version: messages.Version, Type: typ, JobID: ulid.Make().String(), IssuedAt: time.Now().UTC(), Attempts: attempts}
}

func (s *soak) publish(t *testing.T, j *job) {
	t.Helper()
	j.id = j.cmd.Head().JobID
	if _, err := s.bus.Publish(t.Context(), zone, j.host.name, j.cmd); err != nil {
		t.Fatal(err)
	}
	s.jobs[j.id] = j
	s.pending[j.host]++
	if j.backup != nil {
		j.backup.uses++
	}
}

// next publishes the host's next job: what is to be done with a backup comes before another.
func (s *soak) next(t *testing.T, h *host) {
	t.Helper()
	for _, b := range s.backups {
		if b.host == h && b.uses == 0 && !b.deleting && !b.restored {
			s.restore(t, b)
			return
		}
	}
	var restored []*backup
	for _, b := range s.backups {
		if b.host == h && b.uses == 0 && !b.deleting && b.restored {
			restored = append(restored, b)
		}
	}
	const keep = 6
	switch {
	case len(restored) > keep:
		s.remove(t, restored[0])
	case len(restored) > 0 && s.chance(4):
		s.verify(t, restored[s.rnd.IntN(len(restored))])
	default:
		s.take(t, h)
	}
}

// take publishes a backup with features chosen at random. One in eight is cancelled.
func (s *soak) take(t *testing.T, h *host) {
	t.Helper()
	repos := h.repositories()
	src := h.sources[s.rnd.IntN(len(h.sources))]
	cmd := &messages.TakeBackup{Header: s.header(messages.TypeTake), Repository: repos[s.rnd.IntN(len(repos))], VM: src.vm}
	if src.vm == "" {
		cmd.Images = []messages.Image{{Path: src.image()}}
	}
	cmd.Details = messages.Details{Compression: s.chance(2), IntegrityCheck: s.chance(2)}
	if s.chance(4) {
		cmd.Details.BandwidthLimit = 2
	}
	if s.chance(5) {
		cmd.Details.Encryption, cmd.Details.Passphrase = true, s.seal(t, h)
	}
	j := &job{host: h, cmd: cmd, source: src, cancelled: s.chance(8)}
	s.publish(t, j)
	if j.cancelled {
		s.cancel(t.Context(), j, s.between(0, 2*time.Second))
	}
}

// cancel asks for a job's end after a while. Whether that succeeds is the job's final event to say.
func (s *soak) cancel(ctx context.Context, j *job, after time.Duration) {
	s.wg.Go(func() {
		select {
		case <-time.After(after):
		case <-ctx.Done():
			return
		}
		_, _ = s.manager.Cancel(ctx, fleet.JobAddress{ID: j.id})
	})
}

func (s *soak) seal(t *testing.T, h *host) string {
	t.Helper()
	info, err := s.bus.Host(t.Context(), zone, h.name)
	if err != nil {
		info.SealKey = s.sealKeys[h] // it is away just now
	}
	s.sealKeys[h] = info.SealKey
	p, err := secret.NewPassphrase([]byte(s.passphrase))
	if err != nil {
		t.Fatal(err)
	}
	sealed, err := secret.Seal(info.SealKey, p)
	if err != nil {
		t.Fatal(err)
	}
	return sealed
}

// details are those of a job that reads the backup.
func (s *soak) details(t *testing.T, b *backup) messages.Details {
	t.Helper()
	if !b.encrypted {
		return messages.Details{}
	}
	return messages.Details{Passphrase: s.seal(t, b.host)}
}

func (s *soak) restore(t *testing.T, b *backup) {
	t.Helper()
	h := s.header(messages.TypeRestore)
	s.publish(t, &job{host: b.host, source: b.source, backup: b, cmd: &messages.RestoreBackup{
		Header: h, Backup: b.ref, ToDir: filepath.Join(b.host.dir, "restored", h.JobID), Details: s.details(t, b),
	}})
}

func (s *soak) verify(t *testing.T, b *backup) {
	t.Helper()
	s.publish(t, &job{host: b.host, backup: b, cmd: &messages.VerifyBackup{
		Header: s.header(messages.TypeVerify), Backup: b.ref, Details: s.details(t, b),
	}})
}

func (s *soak) remove(t *testing.T, b *backup) {
	t.Helper()
	b.deleting = true
	s.publish(t, &job{host: b.host, backup: b, cmd: &messages.DeleteBackup{Header: s.header(messages.TypeDelete), Backup: b.ref}})
}

// ended takes note of a job's final event.
func (s *soak) ended(t *testing.T, ev messages.Event) {
	t.Helper()
	j := s.jobs[ev.JobID]
	if j == nil {
		t.Errorf("an event of a job that nobody has published: %+v", ev)
		return
	}
	if j.final != nil {
		t.Errorf("job %s has ended with %s and with %s", j.id, j.final.Kind, ev.Kind)
		return
	}
	j.final = &ev
	s.pending[j.host]--
	s.outcomes[string(ev.Type)+" "+string(ev.Kind)]++
	if j.backup != nil {
		j.backup.uses--
	}
	switch {
	case ev.Kind == messages.KindCancelled && j.cancelled:
	case ev.Kind == messages.KindFailed && ev.Type == messages.TypeTake && ev.Error.Code == messages.CodeTargetFull:
	case ev.Kind != messages.KindSucceeded:
		t.Errorf("job %s (%s, attempt %d) on %s: %s: %+v", j.id, ev.Type, ev.Attempt, j.host.name, ev.Kind, ev.Error)
	case ev.Type == messages.TypeTake:
		encrypted := j.cmd.(*messages.TakeBackup).Details.Encryption
		s.backups = append(s.backups, &backup{ref: ev.Backup.Ref(), host: j.host, source: j.source, encrypted: encrypted})
	case ev.Type == messages.TypeRestore:
		s.compare(t, j)
	case ev.Type == messages.TypeDelete:
		s.deleted[j.backup] = true
	}
}

// compare holds what was restored against its source.
func (s *soak) compare(t *testing.T, j *job) {
	t.Helper()
	j.backup.restored = true
	if len(j.final.Restored) != len(j.source.disks) {
		t.Errorf("job %s restored %v, want %d disks", j.id, j.final.Restored, len(j.source.disks))
	}
	for disk, path := range j.final.Restored {
		out := lab.Run(t, "qemu-img", "compare", "-U", "-f", "raw", "-F", "qcow2", j.source.disks[disk], path)
		if !strings.Contains(out, "identical") {
			t.Errorf("job %s: %s of backup %s: %s", j.id, disk, j.backup.ref.ID, out)
		}
	}
}
