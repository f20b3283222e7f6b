package worker

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// journal counts the attempts at each job that has not ended. The server's count of deliveries
// will not do: a command is also delivered when nothing was tried, and a worker that is killed
// must find that it had begun.
type journal struct {
	dir  string
	lock *os.File
}

type record struct {
	Attempts int `json:"attempts"`
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

// begin notes a new attempt and returns its number, from 1.
func (j *journal) begin(job string) (int, error) {
	r, err := j.read(job)
	if err != nil {
		return 0, err
	}
	r.Attempts++
	return r.Attempts, j.write(job, r)
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
	if err := os.WriteFile(tmp, data, 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, j.path(job))
}

// path is safe because a job is only begun when its id is a ULID.
func (j *journal) path(job string) string { return filepath.Join(j.dir, job+".json") }
