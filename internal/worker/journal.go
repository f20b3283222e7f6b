package worker

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/nasfleet/nasfleet/internal/exec"
	"github.com/nasfleet/nasfleet/messages"
)

// journal counts the attempts at each job that has not ended, and keeps what a job has done until
// that is published. The server's count of deliveries will not do: a command is also delivered when
// nothing was tried, and a worker that is killed must find that it had begun.
type journal struct {
	dir  string
	lock *os.File
}

type record struct {
	Attempts int `json:"attempts"`
	// Done is set once the job has succeeded: it is not done again, only reported.
	Done *result `json:"done,omitempty"`
}

// result is what an attempt has to report.
type result struct {
	Outcome exec.Outcome `json:"outcome"`
	// Verified is nil where nothing was read back.
	Verified *messages.Event `json:"verified,omitempty"`
}

// openJournal takes the lock of the zone's host: two workers of one name would do each job twice.
func openJournal(stateDir, zone, host string) (*journal, error) {
	dir := filepath.Join(stateDir, zone+"."+host)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the journal's folder: %w", err)
	}
	lock, err := os.OpenFile(filepath.Join(dir, "lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open the journal's lock: %w", err)
	}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		_ = lock.Close()
		return nil, fmt.Errorf("another hostworker of %s/%s runs on this machine (lock %s): %w", zone, host, lock.Name(), err)
	}
	return &journal{dir: dir, lock: lock}, nil
}

func (j *journal) close() { _ = j.lock.Close() }

// begin notes a new attempt, and returns the record with its number. A job that is done has no other.
func (j *journal) begin(job string) (record, error) {
	r, err := j.read(job)
	if err != nil || r.Done != nil {
		return r, err
	}
	r.Attempts++
	return r, j.write(job, r)
}

// begun says whether there was an attempt at a job that has not ended.
func (j *journal) begun(job string) bool {
	r, err := j.read(job)
	return err == nil && r.Attempts > 0
}

// done notes what a job has done.
func (j *journal) done(job string, attempt int, res result) error {
	return j.write(job, record{Attempts: attempt, Done: &res})
}

// giveBack takes the last attempt back. A failure costs the job one attempt, no more.
func (j *journal) giveBack(job string) {
	if r, err := j.read(job); err == nil && r.Attempts > 0 {
		r.Attempts--
		_ = j.write(job, r)
	}
}

// end forgets a job. A record that stays is only a small file.
func (j *journal) end(job string) { _ = os.Remove(j.path(job)) }

func (j *journal) read(job string) (record, error) {
	data, err := os.ReadFile(j.path(job))
	if errors.Is(err, fs.ErrNotExist) {
		return record{}, nil
	}
	if err != nil {
		return record{}, err
	}
	// A record that was torn by a power cut had begun at least once.
	r := record{Attempts: 1}
	_ = json.Unmarshal(data, &r)
	return r, nil
}

func (j *journal) write(job string, r record) error {
	data, err := json.Marshal(r)
	if err != nil {
		return err
	}
	tmp := j.path(job) + ".tmp"
	f, err := os.OpenFile(tmp, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	return os.Rename(tmp, j.path(job))
}

// path is safe because a job is only begun when its id is a ULID.
func (j *journal) path(job string) string { return filepath.Join(j.dir, job+".json") }
