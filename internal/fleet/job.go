package fleet

import (
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
	// passphrase is sealed into the command's details when the job is published.
	passphrase *secret.Passphrase
}

// ID returns the job's id.
func (j *Job) ID() string { return j.Command.Head().JobID }

// seals says that a passphrase is sealed into the command when it is published.
func (j *Job) seals() bool { return j.passphrase != nil }

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
	if j.passphrase != nil {
		d := detailsOf(j.Command)
		d.Passphrase = sealedLater
		defer func() { d.Passphrase = "" }()
	}
	if err := j.Command.Validate(); err != nil {
		return refused(err)
	}
	return nil
}

// seal puts the passphrase into the command, for the owner of key only.
func (j *Job) seal(key string) error {
	sealed, err := secret.Seal(key, j.passphrase)
	if err != nil {
		return &Error{Class: Failed, Err: err, Hint: "The host announces no usable key; look at its hostworker's log."}
	}
	detailsOf(j.Command).Passphrase = sealed
	return nil
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
	}
	return nil
}
