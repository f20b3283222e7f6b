package exec

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nasfleet/nasfleet/messages"
	"github.com/nasfleet/nasfleet/tests/lab"
)

// breaker does something when a job enters a phase, once.
type breaker struct {
	quiet
	at   messages.Phase
	do   func()
	once *sync.Once
}

func (b breaker) Phase(p messages.Phase) {
	if p == b.at {
		b.once.Do(b.do)
	}
}

// nas is an executor, an image of 24 MiB and a repository on an sshd that can hang.
type nas struct {
	e     *Executor
	sshd  *lab.SSHServer
	image string
	repo  messages.Repository
}

func newNAS(t *testing.T) *nas {
	t.Helper()
	n := &nas{e: newExecutor(t), sshd: lab.Sshd(t)}
	n.e.cfg.StallTimeout, n.e.cfg.MountTimeout, n.e.cfg.LUKSIterTime = 3*time.Second, 4*time.Second, 10*time.Millisecond
	n.image = write(t, filepath.Join(t.TempDir(), "disk.raw"), bytes.Repeat([]byte("nasfleet"), 3<<20))
	n.repo = messages.Repository{Type: "fuse.sshfs", Address: n.sshd.Address(), MountOptions: n.sshd.Options()}
	return n
}

const otherJob = "01J8ZQ5V9K3N7R2T4W6Y8A0B1D"

func (n *nas) take(job string) *messages.TakeBackup {
	return &messages.TakeBackup{
		Header: messages.Header{JobID: job}, Images: []messages.Image{{Path: n.image, Format: "raw"}},
		Repository: n.repo, Details: messages.Details{IntegrityCheck: true},
	}
}

func (n *nas) ref(id string) messages.BackupRef {
	return messages.BackupRef{ID: id, VM: n.take(id).Target(), Repository: n.repo}
}

// nothingLeft checks that a job has left neither a folder, nor a mount, nor a process.
func (n *nas) nothingLeft(t *testing.T) {
	t.Helper()
	if left := names(t, n.e.cfg.RunDir); left != nil {
		t.Errorf("left: %v", left)
	}
	lab.NoLeftovers(t, n.e.cfg.RunDir)
}

// TestTheNASHangsInEachPhase stops the server at the moment a job enters a phase. Each job ends with the right
// code in bounded time, and nothing is left of it.
func TestTheNASHangsInEachPhase(t *testing.T) {
	t.Parallel()
	head := messages.Header{JobID: otherJob}
	to := filepath.Join(t.TempDir(), "restored")
	for name, c := range map[string]struct {
		cmd  func(*nas) messages.Command
		at   messages.Phase
		code messages.Code
	}{
		"take, mounting":   {func(n *nas) messages.Command { return n.take(otherJob) }, messages.PhaseMounting, messages.CodeMountFailed},
		"take, copying":    {func(n *nas) messages.Command { return n.take(otherJob) }, messages.PhaseCopying, messages.CodeRepositoryLost},
		"take, freezing":   {func(n *nas) messages.Command { return n.take(otherJob) }, messages.PhaseFreezing, messages.CodeRepositoryLost},
		"take, verifying":  {func(n *nas) messages.Command { return n.take(otherJob) }, messages.PhaseVerifying, messages.CodeRepositoryLost},
		"take, committing": {func(n *nas) messages.Command { return n.take(otherJob) }, messages.PhaseCommitting, messages.CodeRepositoryLost},
		"restore, copying": {func(n *nas) messages.Command {
			return &messages.RestoreBackup{Header: head, Backup: n.ref(testJob), ToDir: to}
		}, messages.PhaseCopying, messages.CodeRepositoryLost},
		// All was read: only the unmounting is left for the server to hang in.
		"restore, committing": {func(n *nas) messages.Command {
			return &messages.RestoreBackup{Header: head, Backup: n.ref(testJob), ToDir: to + "2"}
		}, messages.PhaseCommitting, ""},
		"verify": {func(n *nas) messages.Command {
			return &messages.VerifyBackup{Header: head, Backup: n.ref(testJob)}
		}, messages.PhaseVerifying, messages.CodeRepositoryLost},
		"delete": {func(n *nas) messages.Command {
			return &messages.DeleteBackup{Header: head, Backup: n.ref(testJob)}
		}, messages.PhaseCommitting, messages.CodeRepositoryLost},
		"list": {func(n *nas) messages.Command {
			return &messages.ListBackups{Header: head, Repository: n.repo}
		}, messages.PhaseMounting, messages.CodeMountFailed},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			n := newNAS(t)
			_, err := n.e.Run(t.Context(), n.take(testJob), nil, quiet{})
			check(t, err)
			began := time.Now()
			_, err = n.e.Run(t.Context(), c.cmd(n), nil, breaker{at: c.at, do: func() { n.sshd.Hang(t); began = time.Now() }, once: &sync.Once{}})
			if c.code == "" {
				check(t, err)
			} else {
				wantCode(t, err, c.code)
			}
			if took := time.Since(began); took > time.Minute {
				t.Errorf("it took %s", took)
			}
			n.nothingLeft(t)
			n.sshd.Resume(t)
			// The executor goes on, and what the attempt left goes with the next.
			if _, takes := c.cmd(n).(*messages.TakeBackup); takes {
				_, err = n.e.Run(t.Context(), n.take(otherJob), nil, quiet{})
				check(t, err)
				lab.NoFilesMatching(t, n.sshd.Export, "*.partial")
			}
			_, err = n.e.Run(t.Context(), &messages.ListBackups{Header: head, Repository: n.repo}, nil, quiet{})
			check(t, err)
			n.nothingLeft(t)
		})
	}
}

// frozen freezes a file system: whoever writes to it sleeps in the kernel and cannot be killed, while
// whoever asks how it is gets an answer.
func frozen(t *testing.T, dir string) (thaw func()) {
	t.Helper()
	const fifreeze, fithaw = 0xC0045877, 0xC0045878 // linux/fs.h: _IOWR('X', 119, int), _IOWR('X', 120, int)
	f, err := os.Open(dir)
	check(t, err)
	check(t, unix.IoctlSetInt(int(f.Fd()), fifreeze, 0))
	return sync.OnceFunc(func() {
		if err := errors.Join(unix.IoctlSetInt(int(f.Fd()), fithaw, 0), f.Close()); err != nil {
			t.Error(err)
		}
	})
}

// TestTheKernelHangsInWrites is the worst repository: it answers, its writes hang, and nothing can kill who
// writes. The job ends in bounded time all the same, and what it had to leave ends when the kernel lets go.
func TestTheKernelHangsInWrites(t *testing.T) {
	t.Parallel()
	e := newExecutor(t)
	e.cfg.StallTimeout, e.cfg.MountTimeout = 3*time.Second, 4*time.Second
	image := write(t, filepath.Join(t.TempDir(), "disk.raw"), bytes.Repeat([]byte("nasfleet"), 3<<20))
	cmd := &messages.TakeBackup{
		Header: messages.Header{JobID: testJob}, Images: []messages.Image{{Path: image, Format: "raw"}},
		Repository: messages.Repository{Type: "ext4", Address: lab.LoopImage(t, 128), MountOptions: "loop"},
	}
	var thaw func()
	defer func() {
		if thaw != nil {
			thaw()
		}
	}()
	began := time.Now()
	_, err := e.Run(t.Context(), cmd, nil, breaker{at: messages.PhaseCopying, once: &sync.Once{}, do: func() {
		thaw = frozen(t, filepath.Join(e.cfg.RunDir, testJob, mountFolder))
	}})
	wantCode(t, err, messages.CodeRepositoryLost)
	if took := time.Since(began); took > 2*time.Minute {
		t.Errorf("it took %s", took)
	}
	// The next job, elsewhere, does not mind.
	dir := t.TempDir()
	other := *cmd
	other.JobID, other.Repository = otherJob, messages.Repository{Type: messages.RepositoryDir, Address: dir}
	_, err = e.Run(t.Context(), &other, nil, quiet{})
	check(t, err)
	thaw()
	lab.NoLeftovers(t, e.cfg.RunDir)
	_, err = e.Run(t.Context(), cmd, nil, quiet{})
	check(t, err)
	if left := names(t, e.cfg.RunDir); left != nil {
		t.Errorf("left: %v", left)
	}
}
