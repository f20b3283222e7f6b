package worker

import (
	"context"
	"errors"
	"time"

	"github.com/nasfleet/nasfleet/internal/exec"
	"github.com/nasfleet/nasfleet/internal/exec/copier"
	"github.com/nasfleet/nasfleet/messages"
)

// Delivery is one command handed to this worker. Exactly one of its last four methods ends it;
// a delivery that is not ended comes back after the queue's AckWait.
type Delivery interface {
	// Job is the job id in the command's subject. It may be anything that fits a subject.
	Job() string
	// Subject is where the command came on.
	Subject() string
	Data() []byte
	// Signature is what the command carries beside its bytes, or "". Nobody has checked it.
	Signature() string
	// Extend says that the command is still worked on.
	Extend() error
	// Ack ends the command for good, and returns once the server has noted it.
	Ack(context.Context) error
	// Retry gives it back for later.
	Retry(time.Duration) error
	// Return gives it back at once.
	Return() error
	// Term ends a command that is not to be tried again.
	Term(reason string) error
}

// Queue hands out the host's commands, oldest first.
type Queue interface {
	// Next blocks until there is one. It rides out a lost connection, and fails only when ctx has
	// ended or the queue is gone for good.
	Next(context.Context) (Delivery, error)
}

// Outbox takes what the worker has to say. PublishEvent, PublishAccepted and the catalog's methods
// return once the server has stored it; they try again until ctx ends.
type Outbox interface {
	PublishEvent(context.Context, messages.Event) error
	// PublishAccepted stores an accepted event, or says false where the management side has
	// cancelled the job: of the two, the server stores one.
	PublishAccepted(context.Context, messages.Event) (bool, error)
	PublishProgress(messages.Progress) error
	// FinalEvent returns the event that ended a job, or nil.
	FinalEvent(ctx context.Context, zone, host, job string) (*messages.Event, error)
	// Command returns the stored command of a job, or nil.
	Command(ctx context.Context, zone, host, job string) ([]byte, error)
	// PutBackup and RemoveBackup are ErrForbidden where the host may not write the entry and ctx has
	// ended meanwhile.
	PutBackup(context.Context, messages.CatalogEntry) error
	RemoveBackup(ctx context.Context, zone, host, id string) error
	Announce(context.Context, messages.HostInfo) error
	Withdraw(ctx context.Context, zone, host string) error
}

// ErrForbidden is a right that this host has not got.
var ErrForbidden = errors.New("this host has no right to it")

// Authority says whether a command is the publisher's own; see secret.Verifier.
type Authority interface {
	// Verify checks a signature over a command's bytes and the subject it came on.
	Verify(subject, signature string, data []byte) error
	// VerifyTime checks that a command is not too old to be begun.
	VerifyTime(issued, now time.Time) error
}

// Executor does a job once; see exec.Executor.
type Executor interface {
	// Run does the job under a limiter, which may change while it runs.
	Run(context.Context, messages.Command, *copier.Limiter, exec.Reporter) (exec.Outcome, error)
	// CleanUp ends what killed attempts at a command left, when there is to be no other. Where one of
	// them had done the job, it returns what there is to report.
	CleanUp(context.Context, messages.Command) (*exec.Outcome, error)
}
