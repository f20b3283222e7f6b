package worker

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nasfleet/nasfleet/internal/exec"
	"github.com/nasfleet/nasfleet/messages"
)

// journal keeps what a worker that is killed, or stopped, must find again of each job that has not
// ended: its attempts, what it was told about it, and what it has done until that is published. The
// server's count of deliveries will not do: a command is also delivered when nothing was tried.
type journal struct {
	dir  string
	lock *os.File

	mu sync.Mutex // held from the reading of a record to its writing
}

// record is what is kept of a job.
type record struct {
	// Attempts counts those that have begun; one that was given back is taken off again.
	Attempts int `json:"attempts"`
	// Since is when the first attempt began: from then on the job's time runs.
	Since time.Time `json:"since,omitzero"`
	// Open says that an attempt is under way. A worker that finds it so knows that it was cut off.
	Open bool `json:"open,omitempty"`
	// Cuts counts the attempts in a row that were cut off, by the death of the worker.
	Cuts int `json:"cuts,omitempty"`
	// Left says that an attempt that was cut off may have left something.
	Left bool `json:"left,omitempty"`
	// Cancelled says that the job was told to end, and that nothing else may become of it.
	Cancelled bool `json:"cancelled,omitempty"`
	// Limit is the bandwidth limit (MiB/s) that the job was given since its command; nil for none.
	Limit *int `json:"limit,omitempty"`
	// Done is set once the job has succeeded: it is not done again, only reported.
	Done *result `json:"done,omitempty"`
}

// result is what an attempt has to report.
type result struct {
	Outcome exec.Outcome `json:"outcome"`
	// Verified is nil where nothing was read back.
	Verified *messages.Event `json:"verified,omitempty"`
}

// begun says that the job was accepted once.
func (r record) begun() bool { return r.Attempts > 0 || !r.Since.IsZero() }

// untidy says that an attempt may have left something that nobody has ended.
func (r record) untidy() bool { return r.Open || r.Left }

// dangerous says that the job's next attempt may kill the worker: that has cut off two of its
// attempts in a row, or the last but one that it has.
func (r record) dangerous(attempts int) bool {
	if r.Done != nil || r.Cancelled || r.Attempts >= attempts {
		return false // there is no next attempt
	}
	cuts := r.Cuts
	if r.Open {
		cuts++
	}
	return cuts >= 2 || cuts > 0 && r.Attempts+1 >= attempts
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
	j := &journal{dir: dir, lock: lock}
	if err := j.sweep(); err != nil {
		j.close()
		return nil, fmt.Errorf("tidy the journal: %w", err)
	}
	return j, nil
}

// unfinished ends the name of a record that is being written.
const unfinished = ".tmp"

// sweep removes what a worker that was killed while it wrote has left.
func (j *journal) sweep() error {
	entries, err := os.ReadDir(j.dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if strings.HasSuffix(e.Name(), unfinished) {
			err = errors.Join(err, os.Remove(filepath.Join(j.dir, e.Name())))
		}
	}
	return err
}

func (j *journal) close() { _ = j.lock.Close() }

// begin notes a new attempt, and returns the record with its number.
func (j *journal) begin(job string) (record, error) {
	return j.update(job, func(r *record) {
		if r.Open {
			r.Cuts++
			r.Left = true
		}
		if r.Since.IsZero() {
			r.Since = time.Now().UTC()
		}
		r.Attempts++
		r.Open = true
	})
}

// ended notes that an attempt came to an end and has cleaned up.
func (j *journal) ended(job string) error {
	_, err := j.update(job, func(r *record) { r.Open, r.Cuts = false, 0 })
	return err
}

// done notes what a job has done. The attempt is still to clean up.
func (j *journal) done(job string, res result) error {
	_, err := j.update(job, func(r *record) { r.Done = &res })
	return err
}

// giveBack takes the last attempt back. A failure costs the job one attempt, no more.
func (j *journal) giveBack(job string) {
	_, _ = j.update(job, func(r *record) { r.Attempts, r.Open = max(0, r.Attempts-1), false })
}

// cancel notes that the job is to end.
func (j *journal) cancel(job string) error {
	_, err := j.update(job, func(r *record) { r.Cancelled = true })
	return err
}

// limit notes a new bandwidth limit.
func (j *journal) limit(job string, mib int) error {
	_, err := j.update(job, func(r *record) { r.Limit = &mib })
	return err
}

// end forgets a job. A record that stays is only a small file.
func (j *journal) end(job string) { _ = os.Remove(j.path(job)) }

// read returns a job's record, the zero one where there is none.
func (j *journal) read(job string) (record, error) {
	data, err := os.ReadFile(j.path(job))
	if errors.Is(err, fs.ErrNotExist) {
		return record{}, nil
	}
	if err != nil {
		return record{}, err
	}
	var r record
	if json.Unmarshal(data, &r) != nil {
		// A record that was torn by a power cut had begun at least once.
		return record{Attempts: 1, Open: true}, nil //nolint:nilerr // it is an answer
	}
	return r, nil
}

func (j *journal) update(job string, change func(*record)) (record, error) {
	j.mu.Lock()
	defer j.mu.Unlock()
	r, err := j.read(job)
	if err != nil {
		return r, err
	}
	change(&r)
	return r, j.write(job, r)
}

func (j *journal) write(job string, r record) error {
	data, err := json.Marshal(r)
	if err != nil {
		return err
	}
	tmp := j.path(job) + unfinished
	if err := writeSynced(tmp, data); err != nil {
		// It takes room that may be what is missing.
		return errors.Join(err, os.Remove(tmp))
	}
	return os.Rename(tmp, j.path(job))
}

func writeSynced(path string, data []byte) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	return errors.Join(err, f.Sync(), f.Close())
}

// path is safe because a job is only begun, and only changed, when its id is a ULID.
func (j *journal) path(job string) string { return filepath.Join(j.dir, job+".json") }
