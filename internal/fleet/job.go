package fleet

import (
	"slices"
	"time"

	"github.com/oklog/ulid/v2"

	"github.com/nasfleet/nasfleet/internal/secret"
	"github.com/nasfleet/nasfleet/messages"
)

// Job is a command and the host it goes to.
type Job struct {
	Zone    string
	Host    string
	Command messages.Command

	// chosenID says that the caller chose the id, so that the job may have been published before.
	chosenID bool
	// seals are put into the command when the job is published.
	sealings []sealing
	// fill is what the settings of the zone may add; nil where nothing is to be filled in any more.
	fill *filling
}

// sealing is a passphrase and the field of the command that takes it, sealed for the host.
type sealing struct {
	passphrase *secret.Passphrase
	into       *string
}

// ID returns the job's id.
func (j *Job) ID() string { return j.Command.Head().JobID }

// seals says that a passphrase is sealed into the command when it is published.
func (j *Job) seals() bool { return len(j.sealings) > 0 }

// Redacted returns the command for people: passphrases, which travel sealed, are "(sealed)".
func (j *Job) Redacted() messages.Command {
	defer j.sealedLater()()
	return redacted(j.Command)
}

// sealedLater puts a text that stands for a sealed passphrase where one is to be, or may come from the
// zone, and returns what takes it away.
func (j *Job) sealedLater() (undo func()) {
	fields := make([]*string, 0, len(j.sealings)+1)
	for _, s := range j.sealings {
		fields = append(fields, s.into)
	}
	if d := detailsOf(j.Command); j.fill != nil && d.Passphrase == "" {
		fields = append(fields, &d.Passphrase)
	}
	before := make([]string, len(fields))
	for i, f := range fields {
		before[i] = *f
	}
	for _, f := range fields {
		*f = sealedLater
	}
	return func() {
		for i, f := range fields {
			*f = before[i]
		}
	}
}

// newHeader begins a command; an empty id makes a new one. The timeout is the job's, 0 the host's.
func newHeader(t messages.Type, id string, attempts int, timeout time.Duration) (messages.Header, error) {
	if id == "" {
		id = ulid.Make().String()
	} else if err := messages.CheckID("job id", id); err != nil {
		return messages.Header{}, refused(err)
	}
	if timeout%time.Second != 0 || timeout < 0 {
		return messages.Header{}, usagef("timeout %s is not a number of whole seconds", timeout)
	}
	return messages.Header{
		Version: messages.Version, Type: t, JobID: id, IssuedAt: time.Now().UTC().Truncate(time.Millisecond),
		Attempts: attempts, Timeout: int(timeout / time.Second),
	}, nil
}

// check refuses a job that would be refused on its way, so that a mistake is told before anything
// is published.
func (j *Job) check() error {
	if err := messages.CheckLabel("zone", j.Zone); err != nil {
		return refused(err)
	}
	if err := messages.CheckLabel("host", j.Host); err != nil {
		return refused(err)
	}
	defer j.sealedLater()()
	if err := j.Command.Validate(); err != nil {
		return refused(err)
	}
	return nil
}

// seal puts the passphrases into the command, for the owner of key only.
func (j *Job) seal(key string) error {
	for _, s := range j.sealings {
		sealed, err := secret.Seal(key, s.passphrase)
		if err != nil {
			return &Error{Class: Failed, Err: err, Hint: "The host announces no usable key; look at its hostworker's log."}
		}
		*s.into = sealed
	}
	return nil
}

// sealed says that the command holds all its passphrases already, sealed by somebody else.
func (j *Job) sealed() bool {
	return !slices.ContainsFunc(j.sealings, func(s sealing) bool { return *s.into == "" })
}

// detailsOf returns the details of a command that has some, and nil for one that has none.
func detailsOf(cmd messages.Command) *messages.Details {
	switch c := cmd.(type) {
	case *messages.TakeBackup:
		return &c.Details
	case *messages.RestoreBackup:
		return &c.Details
	case *messages.VerifyBackup:
		return &c.Details
	case *messages.RekeyBackup:
		return &c.Details
	case *messages.ConsolidateBackup:
		return &c.Details
	}
	return nil
}
