package messages

import (
	"encoding/json"
	"time"
)

// Action says what a control request asks of a host.
type Action string

// The actions.
const (
	// ActionCancel ends a job, whether it waits or runs.
	ActionCancel Action = "cancel"
	// ActionThrottle gives a job another bandwidth limit.
	ActionThrottle Action = "throttle"
)

// ControlRequest asks a host to change one of its jobs. It is sent to the host's ControlSubject as
// a request on core NATS, is not stored, and is answered by a ControlReply.
type ControlRequest struct {
	// Version of the contract the request is written in; 1.
	Version int    `json:"version"`
	Action  Action `json:"action"`
	JobID   string `json:"job_id"`
	// IssuedAt bounds how long a signed request is good for, as that of a command does.
	IssuedAt time.Time `json:"issued_at"`
	// BandwidthLimit is the new limit in MiB/s for the whole job, 0 for none. It goes with throttle
	// alone, which needs it.
	BandwidthLimit *int `json:"bandwidth_limit,omitempty"`
}

// NewControlRequest makes a request of this moment.
func NewControlRequest(a Action, job string) ControlRequest {
	return ControlRequest{Version: Version, Action: a, JobID: job, IssuedAt: time.Now().UTC().Truncate(time.Millisecond)}
}

// Reply says what a host did about a ControlRequest.
type Reply string

// The replies.
const (
	// ReplyCancelled: the job waited, and its cancelled event is stored.
	ReplyCancelled Reply = "cancelled"
	// ReplyCancelling: the job runs and was told to end. Its final event follows: cancelled, or what
	// it came to before it could be stopped.
	ReplyCancelling Reply = "cancelling"
	// ReplyThrottled: the job runs under the new limit from now on.
	ReplyThrottled Reply = "throttled"
	// ReplyNoted: the job waits, and gets the new limit when it runs.
	ReplyNoted Reply = "noted"
	// ReplyRefused: nothing was changed; Error says why.
	ReplyRefused Reply = "refused"
)

// ControlReply is a host's answer to a ControlRequest.
type ControlReply struct {
	Version int    `json:"version"`
	JobID   string `json:"job_id"`
	Reply   Reply  `json:"reply"`
	// Error is set where the reply is refused, and only there.
	Error *Failure `json:"error,omitempty"`
}

// Validate checks every field and returns an *Error that names the first bad one.
func (r ControlRequest) Validate() error {
	switch {
	case r.Version < 1:
		return Errorf(CodeInvalidMessage, "version is missing")
	case r.Version > Version:
		return Errorf(CodeUnsupportedVersion, "version %d is newer than %d", r.Version, Version)
	}
	if r.IssuedAt.IsZero() {
		return Errorf(CodeInvalidMessage, "issued_at is missing")
	}
	if err := CheckID("job_id", r.JobID); err != nil {
		return err
	}
	switch limit := r.BandwidthLimit; r.Action {
	case ActionCancel:
		if limit != nil {
			return Errorf(CodeInvalidMessage, "bandwidth_limit does not go with cancel")
		}
	case ActionThrottle:
		if limit == nil {
			return Errorf(CodeInvalidMessage, "throttle needs a bandwidth_limit")
		}
		if *limit < 0 || *limit > maxBandwidth {
			return Errorf(CodeInvalidDetail, "bandwidth_limit %d is not from 0 to %d", *limit, maxBandwidth)
		}
	default:
		return Errorf(CodeInvalidMessage, "action %q is neither cancel nor throttle", r.Action)
	}
	return nil
}

// DecodeControlRequest reads a request as strictly as Decode reads a command. The request is
// returned as far as it could be read, its JobID "" where it is no ULID.
func DecodeControlRequest(data []byte) (ControlRequest, error) {
	var r ControlRequest
	err := json.Unmarshal(data, &r)
	if CheckID("job_id", r.JobID) != nil {
		r.JobID = ""
	}
	if r.Version > Version {
		return r, Errorf(CodeUnsupportedVersion, "version %d is newer than %d", r.Version, Version)
	}
	if err != nil {
		return r, Errorf(CodeInvalidMessage, "not a JSON control request: %w", err)
	}
	var strict ControlRequest
	if err := strictUnmarshal(data, &strict); err != nil {
		return r, EnsureCode(CodeInvalidMessage, err)
	}
	if err := checkExact(data); err != nil {
		return r, EnsureCode(CodeInvalidMessage, err)
	}
	return r, strict.Validate()
}

// DecodeControlReply reads a reply to a request. Unknown fields are left alone: replies grow. A
// reply that is unknown, or is another job's, is an *Error.
func DecodeControlReply(req ControlRequest, data []byte) (ControlReply, error) {
	var r ControlReply
	if err := json.Unmarshal(data, &r); err != nil {
		return ControlReply{}, Errorf(CodeInvalidMessage, "not a control reply: %w", err)
	}
	if r.JobID != req.JobID {
		return ControlReply{}, Errorf(CodeInvalidMessage, "the reply is about job %q", r.JobID)
	}
	switch r.Reply {
	case ReplyCancelled, ReplyCancelling, ReplyThrottled, ReplyNoted, ReplyRefused:
	default:
		return ControlReply{}, Errorf(CodeInvalidMessage, "unknown reply %q", r.Reply)
	}
	if (r.Reply == ReplyRefused) != (r.Error != nil) {
		return ControlReply{}, Errorf(CodeInvalidMessage, "a reply has an error when it is refused, and only then")
	}
	return r, nil
}

// Cancelled is the event that ends a cancelled job. Its host stores it; the management side does so
// for a job that no host has accepted.
func Cancelled(zone, host string, cmd Command, attempt int, reason error) Event {
	h := cmd.Head()
	return Event{
		Version: Version, Kind: KindCancelled, JobID: h.JobID, Type: h.Type, Zone: zone, Host: host, VM: cmd.Target(),
		Time: time.Now().UTC(), Attempt: attempt, Error: FailureOf(reason),
	}
}
