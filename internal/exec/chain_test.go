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
	s := &survey{dom: hypervisor.Domain{Name: "test", UUID: "u", State: hypervisor.Running}, backups: []repository.Backup{{Manifest: repository.Manifest{
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

// Every backup that names a checkpoint holds it, also one that is damaged; what has no manifest to read may
// be the backup that it was made for. Of those that name one the shortest chain is continued.
func TestWhoHoldsACheckpoint(t *testing.T) {
	const mine, foreign = "nasfleet: this repository", "nasfleet: another"
	backup := func(id, uuid, checkpoint string, links int) repository.Backup {
		return repository.Backup{Manifest: repository.Manifest{ID: id, UUID: uuid, Checkpoint: checkpoint, Links: links}}
	}
	s := &survey{
		dom: hypervisor.Domain{Name: "vm1", UUID: "u", State: hypervisor.Running}, description: mine,
		backups: []repository.Backup{
			backup("S", "u", checkpointPrefix+"T", 5), backup("T", "u", checkpointPrefix+"T", 4), backup("Z", "u", checkpointPrefix+"T", 0),
			backup("A", "u", checkpointPrefix+"T", 1), backup("X", "other", checkpointPrefix+"T", 1), backup("P", "u", "", 0),
		},
		problems: []repository.Problem{
			{ID: "D", Checkpoint: checkpointPrefix + "GONE", Err: messages.Errorf(messages.CodeBackupCorrupt, "a file is missing")},
			{ID: "E", Err: messages.Errorf(messages.CodeBackupCorrupt, "not JSON")},
		},
		checkpoints: []hypervisor.Checkpoint{
			{Name: checkpointPrefix + "T", Description: "an address of the repository that was used once"},
			{Name: checkpointPrefix + "GONE", Description: mine}, {Name: checkpointPrefix + "E", Description: mine},
			{Name: checkpointPrefix + "ORPHAN", Description: mine}, {Name: checkpointPrefix + "F", Description: foreign},
			{Name: "somebody's", Description: mine},
		},
	}
	for name, want := range map[string]string{"T": "S", "GONE": "D", "E": "E", "ORPHAN": "", "F": "", "A": ""} {
		if got := s.holder(checkpointPrefix + name); got != want {
			t.Errorf("checkpoint %s is held by %q, want %q", name, got, want)
		}
	}
	var ours []string
	for _, c := range s.ours() {
		ours = append(ours, strings.TrimPrefix(c.Name, checkpointPrefix))
	}
	if got := strings.Join(ours, " "); got != "T GONE E ORPHAN" {
		t.Errorf("ours are %s", got)
	}
	if s.mayBeHeld() {
		t.Error("all there is can be read, and a checkpoint may be held all the same")
	}
	tips, f, err := s.pick(t.Context(), nil, nil)
	var order []string
	for _, b := range tips {
		order = append(order, b.Manifest.ID)
	}
	if got := strings.Join(order, " "); got != "Z A T S" || f != nil || err != nil {
		t.Errorf("to be continued: %s, %v, %v", got, f, err)
	}
	s.problems = append(s.problems, repository.Problem{ID: "U", Err: messages.Errorf(messages.CodeMountFailed, "i/o error")})
	if !s.mayBeHeld() {
		t.Error("a backup that cannot be read holds nothing")
	}
}

// Of backups that hold one checkpoint the next is continued where the best cannot be.
func TestContinueOne(t *testing.T) {
	disk := sourceDisk{name: "vda", path: "/d/vda", format: "qcow2", size: 1 << 20}
	manifest := func(id, parent string, links int) repository.Manifest {
		return repository.Manifest{
			ID: id, UUID: "u", Parent: parent, Links: links, Checkpoint: checkpointPrefix + "T",
			Disks: []repository.Disk{{Name: "vda", Bitmap: true, VirtualBytes: disk.size, Source: repository.Source{Path: disk.path, Format: disk.format}}},
		}
	}
	bottom, top, other := manifest("F", "", 0), manifest("T", "F", 2), manifest("C", "", 0)
	bottom.Checkpoint = ""
	for name, tt := range map[string]struct {
		spoil func(s *survey)
		want  string
		// unreadable is the backup whose digests are damaged.
		unreadable string
	}{
		"the consolidated":                 {spoil: func(*survey) {}, want: "C"},
		"one that failed a verification":   {spoil: func(s *survey) { s.backups[0].Damaged = true }, want: "T"},
		"one in the clear":                 {spoil: func(s *survey) { s.backups[0].Manifest.Encryption.LUKS = true }, want: "T"},
		"one that is gone":                 {spoil: func(s *survey) { s.backups = s.backups[1:] }, want: "T"},
		"the first says why neither can":   {spoil: func(s *survey) { s.backups[0].Damaged, s.backups[2].Damaged = true, true }, want: ""},
		"the chain of the original broken": {spoil: func(s *survey) { s.backups = s.backups[:2] }, want: "C"},
		"one with bad digests":             {spoil: func(*survey) {}, want: "T", unreadable: "C"},
	} {
		s := &survey{dom: hypervisor.Domain{UUID: "u", State: hypervisor.Running}, backups: []repository.Backup{{Manifest: other}, {Manifest: top}, {Manifest: bottom}},
			checkpoints: []hypervisor.Checkpoint{{Name: checkpointPrefix + "T", Disks: []string{"vda"}}}}
		tt.spoil(s)
		k := &taking{cmd: &messages.TakeBackup{Mode: messages.ModeIncremental}, chain: s}
		tips, _, err := s.pick(t.Context(), nil, nil)
		check(t, err)
		f, err := k.continueOne(tips, []sourceDisk{disk}, func(links []repository.Backup) (*full, error) {
			if links[0].Manifest.ID == tt.unreadable {
				return fullBecause(messages.FullParentBroken, "damaged"), nil
			}
			return nil, nil
		})
		check(t, err)
		if k.man.Parent != tt.want || (f == nil) != (tt.want != "") {
			t.Errorf("%s: continues %q, %+v", name, k.man.Parent, f)
		}
		if tt.want == "" && !strings.Contains(f.why, "backup C ") {
			t.Errorf("%s: %+v", name, f)
		}
	}
}
