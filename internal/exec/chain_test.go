package exec

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/rs/zerolog"

	"github.com/nasfleet/nasfleet/internal/exec/hypervisor"
	"github.com/nasfleet/nasfleet/internal/exec/repository"
	"github.com/nasfleet/nasfleet/messages"
)

// What an incremental continues is gone, or nobody can say: a repository that does not answer breaks no
// chain, and is worth another attempt.
func TestCheckChain(t *testing.T) {
	repo, err := repository.Open(t.Context(), messages.Repository{Type: messages.RepositoryDir, Address: t.TempDir()}, repository.Options{})
	check(t, err)
	cancelled, cancel := context.WithCancelCause(t.Context())
	cancel(messages.Errorf(messages.CodeRepositoryLost, "no answer"))
	check1 := func(ctx context.Context, mode messages.Mode) messages.Code {
		k := &taking{cmd: &messages.TakeBackup{Mode: mode}, links: []repository.Backup{{Manifest: repository.Manifest{ID: testJob, VM: "vm1"}}}}
		return messages.CodeOf(k.checkChain(ctx, repo))
	}
	for mode, want := range map[messages.Mode]messages.Code{
		messages.ModeIncremental: messages.CodeChainBroken, messages.ModeAuto: messages.CodeBackupInUse,
	} {
		if got := check1(t.Context(), mode); got != want {
			t.Errorf("%s: a parent that is gone is %s", mode, got)
		}
		if got := check1(cancelled, mode); got != messages.CodeRepositoryLost {
			t.Errorf("%s: a repository that is lost is %s", mode, got)
		}
	}
	check(t, repo.Close())
}

// A folder of a VM that cannot be read tells nothing about its backups: their checkpoints are no orphans.
func TestUnreadFolder(t *testing.T) {
	unread := messages.EnsureCode(messages.CodeMountFailed, errors.New("i/o error"))
	for name, tt := range map[string]struct {
		problem repository.Problem
		want    messages.Code
	}{
		"the folder":      {repository.Problem{VM: "vm1", Err: unread}, messages.CodeMountFailed},
		"one backup":      {repository.Problem{VM: "vm1", ID: testJob, Err: unread}, ""},
		"a damaged thing": {repository.Problem{VM: "vm1", Err: messages.Errorf(messages.CodeBackupCorrupt, "no folder")}, ""},
	} {
		s := &survey{problems: []repository.Problem{tt.problem}}
		if got := messages.CodeOf(s.unread()); got != tt.want {
			t.Errorf("%s: %s", name, got)
		}
	}
}

// A libvirt that does not answer has not said that a checkpoint is lost: its bitmaps stay, and the job is
// tried again.
func TestALibvirtThatIsAwayLosesNoCheckpoint(t *testing.T) {
	e := newExecutor(t)
	var log bytes.Buffer
	e.cfg.Log = zerolog.New(&log)
	var err error
	e.cfg.Hypervisor, err = hypervisor.Connect(t.Context(), "test:///default", zerolog.Nop())
	check(t, err)
	check(t, e.cfg.Hypervisor.Close()) // each call fails from now on
	s := &survey{dom: hypervisor.Domain{Name: "test", UUID: "u"}, backups: []repository.Backup{{Manifest: repository.Manifest{
		ID: testJob, UUID: "u", Checkpoint: checkpointPrefix + testJob, Disks: []repository.Disk{{Name: "vda", Bitmap: true}},
	}}}}
	links, f, err := s.pick(t.Context(), e, []sourceDisk{{name: "vda"}})
	wantCode(t, err, messages.CodeHypervisorDown)
	if links != nil || f != nil {
		t.Errorf("%v, %+v", links, f)
	}
	if strings.Contains(log.String(), "checkpoint") {
		t.Errorf("it was tried to remove it: %s", &log)
	}
}
