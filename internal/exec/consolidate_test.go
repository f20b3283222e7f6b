package exec

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nasfleet/nasfleet/internal/exec/repository"
	"github.com/nasfleet/nasfleet/messages"
	"github.com/nasfleet/nasfleet/tests/lab"
)

const consolidateJob = "01J8ZQ5V9K3N7R2T4W6Y8A0B1H"

// asIncremental makes the backup otherJob, whole as it is, one of changes: what it has no data of is testJob's.
func asIncremental(t *testing.T, folder string) {
	t.Helper()
	path := filepath.Join(folder, otherJob, "manifest.json")
	data, err := os.ReadFile(path)
	check(t, err)
	m, err := repository.DecodeManifest(data)
	check(t, err)
	m.Mode, m.Parent, m.Links, m.Checkpoint = messages.ModeIncremental, testJob, 2, checkpointPrefix+otherJob
	m.CreatedAt, m.Quiesced, m.FrozenSeconds = time.Date(2026, 2, 3, 4, 5, 6, 789, time.UTC), true, 0.25
	m.Source, m.Consistency = repository.SourceRunning, "as good as it was"
	m.Skipped = []repository.Skipped{{Target: "sda", Reason: "a CD-ROM drive"}}
	m.Notes = []string{"the guest was slow to freeze", "sda was left out: a CD-ROM drive"}
	for i := range m.Disks {
		m.Disks[i].Incremental, m.Disks[i].Bitmap = true, i == 0
	}
	data, err = json.Marshal(m)
	check(t, err)
	check(t, os.WriteFile(path, data, 0o600))
}

// fillOf is what a block (MiB) of a disk is filled with in the first or the second backup of chainOfImages.
func fillOf(disk, backup, block int) byte { return byte(1 + 100*disk + 50*backup + block) }

// chainOfImages makes a chain of two backups of two disks, and returns the incremental and what the disks hold.
func chainOfImages(t *testing.T, e *Executor, d messages.Details) (messages.BackupRef, map[string][]byte) {
	t.Helper()
	nas, want := t.TempDir(), map[string][]byte{}
	for i, job := range []string{testJob, otherJob} {
		cmd := &messages.TakeBackup{
			Header: messages.Header{JobID: job}, Details: d, Repository: messages.Repository{Type: messages.RepositoryDir, Address: nas},
		}
		dir := t.TempDir()
		for k, name := range []string{"vm1.img", "b.img"} {
			// The last block is 512 bytes.
			var content []byte
			for block := range 5 {
				content = append(content, bytes.Repeat([]byte{fillOf(k, i, block)}, 1<<20)...)
			}
			content = content[:4<<20+512]
			disk := "disk" + string(rune('0'+k))
			if i > 0 {
				clear(content[1<<20 : 3<<20])
				copy(want[disk], content[:1<<20])
				copy(want[disk][3<<20:], content[3<<20:])
			} else {
				want[disk] = content
			}
			cmd.Images = append(cmd.Images, messages.Image{Path: write(t, filepath.Join(dir, name), content)})
		}
		_, err := e.Run(t.Context(), cmd, nil, quiet{})
		check(t, err)
	}
	asIncremental(t, filepath.Join(nas, "vm1"))
	return messages.BackupRef{ID: otherJob, VM: "vm1", Repository: messages.Repository{Type: messages.RepositoryDir, Address: nas}}, want
}

func consolidation(ref messages.BackupRef, chain string, d messages.Details) *messages.ConsolidateBackup {
	return &messages.ConsolidateBackup{
		Header: messages.Header{Version: 1, Type: messages.TypeConsolidate, JobID: consolidateJob, IssuedAt: time.Now()},
		Backup: ref, ChainPassphrase: chain, Details: d,
	}
}

// phases notes those of a job.
type phases struct {
	quiet
	seen *[]messages.Phase
}

func (p phases) Phase(at messages.Phase) { *p.seen = append(*p.seen, at) }

// TestConsolidate makes a full backup of a chain without libvirt, in the clear and encrypted, and of a chain in the
// clear an encrypted one. Done again it finds what it has made, also when the chain is gone.
func TestConsolidate(t *testing.T) {
	e, seal := keyedExecutor(t)
	encrypted := func(text string) messages.Details {
		return messages.Details{Encryption: true, Passphrase: seal(text), Revision: firstRevision}
	}
	for name, tt := range map[string]struct {
		chain, made messages.Details
		open        string
	}{
		"in the clear":  {made: messages.Details{IntegrityCheck: true}},
		"compressed":    {made: messages.Details{Compression: true, CompressionType: messages.Zlib}},
		"encrypted":     {chain: encrypted("old"), open: "old", made: messages.Details{Encryption: true, Compression: true, Passphrase: seal("new"), IntegrityCheck: true}},
		"for the first": {made: encrypted("new")},
	} {
		t.Run(name, func(t *testing.T) {
			ref, want := chainOfImages(t, e, tt.chain)
			folder := filepath.Join(ref.Repository.Address, "vm1")
			cmd := consolidation(ref, seal(tt.open), tt.made)
			var seen []messages.Phase
			out, err := e.Run(t.Context(), cmd, nil, phases{seen: &seen})
			check(t, err)
			if slices.Contains(seen, messages.PhaseFreezing) || slices.Contains(seen, messages.PhaseVerifying) != tt.made.IntegrityCheck {
				t.Errorf("its phases are %v", seen)
			}
			entry := out.Backup
			if entry == nil || entry.ID != consolidateJob || entry.ConsolidatedFrom != otherJob || entry.Mode != messages.ModeFull || entry.Encrypted != tt.made.Encryption {
				t.Fatalf("the catalog says %+v", entry)
			}
			data, err := os.ReadFile(filepath.Join(folder, consolidateJob, "manifest.json"))
			check(t, err)
			m, err := repository.DecodeManifest(data)
			check(t, err)
			if m.Parent != "" || m.Links > 1 || m.Checkpoint != checkpointPrefix+otherJob || !m.Disks[0].Bitmap || m.Disks[1].Bitmap || m.ConsolidatedFrom != otherJob {
				t.Errorf("its place in a chain: %s", data)
			}
			if !m.CreatedAt.Equal(time.Date(2026, 2, 3, 4, 5, 6, 789, time.UTC)) || !m.Quiesced || m.FrozenSeconds != 0.25 ||
				m.Source != repository.SourceRunning || m.Consistency != "as good as it was" || len(m.Skipped) != 1 {
				t.Errorf("its moment: %s", data)
			}
			if len(m.Notes) != 3 || m.Notes[0] != "the guest was slow to freeze" || !strings.Contains(m.Notes[1], otherJob) || m.Notes[2] != "sda was left out: a CD-ROM drive" {
				t.Errorf("its notes are %q", m.Notes)
			}

			for _, link := range []string{testJob, otherJob} {
				check(t, os.RemoveAll(filepath.Join(folder, link)))
			}
			to := filepath.Join(t.TempDir(), "r")
			_, err = e.Run(t.Context(), &messages.RestoreBackup{
				Header: messages.Header{JobID: rekeyJob}, Backup: entry.Ref(), ToDir: to, Format: "raw", Details: messages.Details{Passphrase: tt.made.Passphrase},
			}, nil, quiet{})
			check(t, err)
			for disk, content := range want {
				if got, err := os.ReadFile(filepath.Join(to, disk+".raw")); err != nil || !bytes.Equal(got, content) {
					t.Errorf("%s is something else, %v", disk, err)
				}
			}

			again, err := e.Run(t.Context(), cmd, nil, quiet{})
			if err != nil || again.Backup == nil || again.Backup.ConsolidatedFrom != otherJob {
				t.Errorf("done again: %+v, %v", again, err)
			}
			found, err := e.CleanUp(t.Context(), cmd)
			if err != nil || found == nil || found.BackupID != consolidateJob {
				t.Errorf("cleaned up: %+v, %v", found, err)
			}
			if got := names(t, folder); !slices.Equal(got, []string{consolidateJob}) {
				t.Errorf("there is %v", got)
			}
		})
	}
}

// TestConsolidateRefused: nothing is made, and nothing is left, of a chain that is whole already, that the new backup
// would lay bare, that does not open, that is not what the command takes it for, or whose bytes are not those that were
// copied.
func TestConsolidateRefused(t *testing.T) {
	e, seal := keyedExecutor(t)
	sealed := messages.Details{Encryption: true, Passphrase: seal("old")}
	plainChain, _ := chainOfImages(t, e, messages.Details{})
	sealedChain, _ := chainOfImages(t, e, sealed)
	for name, tt := range map[string]struct {
		sealed bool // the chain
		made   messages.Details
		open   string
		spoil  func(t *testing.T, folder string, cmd *messages.ConsolidateBackup)
		want   messages.Code
		says   string // where others fail with the code too, later
	}{
		"a full backup": {
			spoil: func(_ *testing.T, _ string, cmd *messages.ConsolidateBackup) { cmd.Backup.ID = testJob }, want: messages.CodeAlreadyFull,
		},
		"no backup": {
			spoil: func(_ *testing.T, _ string, cmd *messages.ConsolidateBackup) { cmd.Backup.ID = rekeyJob }, want: messages.CodeBackupNotFound,
		},
		"to be laid bare":         {sealed: true, open: "old", want: messages.CodeSourceEncrypted},
		"no passphrase":           {sealed: true, made: sealed, want: messages.CodePassphraseMissing},
		"another passphrase":      {sealed: true, made: sealed, open: "new", want: messages.CodeWrongPassphrase},
		"a stranger in its place": {open: "old", made: sealed, want: messages.CodeBackupCorrupt, says: "is not encrypted, and"},
		"a passphrase of no host": {made: messages.Details{Encryption: true, Passphrase: "sealed1.x"}, want: messages.CodePassphraseForeign},
		"a folder out of bounds":  {spoil: func(_ *testing.T, _ string, cmd *messages.ConsolidateBackup) { cmd.Backup.Repository.Address = "/etc" }, want: messages.CodePathNotAllowed},
		"the parent is gone": {spoil: func(t *testing.T, f string, _ *messages.ConsolidateBackup) {
			check(t, os.RemoveAll(filepath.Join(f, testJob)))
		}, want: messages.CodeChainBroken},
		"a byte of a link below": {spoil: flipped(testJob, fillOf(0, 0, 1)), want: messages.CodeBackupCorrupt},
		"a byte of the top":      {spoil: flipped(otherJob, fillOf(0, 1, 3)), want: messages.CodeBackupCorrupt},
	} {
		t.Run(name, func(t *testing.T) {
			ref := plainChain
			switch {
			case tt.sealed:
				ref = sealedChain
			case tt.spoil != nil:
				ref, _ = chainOfImages(t, e, messages.Details{})
			}
			folder := filepath.Join(ref.Repository.Address, "vm1")
			cmd := consolidation(ref, seal(tt.open), tt.made)
			if tt.spoil != nil {
				tt.spoil(t, folder, cmd)
			}
			before := names(t, folder)
			_, err := e.Run(t.Context(), cmd, nil, quiet{})
			wantCode(t, err, tt.want)
			if err != nil && !strings.Contains(err.Error(), tt.says) {
				t.Errorf("it does not say %q: %v", tt.says, err)
			}
			if after := names(t, folder); !slices.Equal(before, after) {
				t.Errorf("there was %v, there is %v", before, after)
			}
			if left := names(t, e.cfg.RunDir); left != nil {
				t.Errorf("left: %v", left)
			}
		})
	}
}

// flipped changes a byte of a block of a backup's first disk.
func flipped(job string, fill byte) func(*testing.T, string, *messages.ConsolidateBackup) {
	return func(t *testing.T, folder string, _ *messages.ConsolidateBackup) {
		t.Helper()
		path := filepath.Join(folder, job, "disk0.qcow2")
		data, err := os.ReadFile(path)
		check(t, err)
		at := bytes.Index(data, bytes.Repeat([]byte{fill}, 64<<10))
		if at < 0 {
			t.Fatalf("%s has no block of %d", path, fill)
		}
		data[at+1000]++
		check(t, os.WriteFile(path, data, 0o600))
	}
}

// TestConsolidateToAFullNAS: there is no room for the whole. The chain stays, and nothing else.
func TestConsolidateToAFullNAS(t *testing.T) {
	e := newExecutor(t)
	image := write(t, filepath.Join(t.TempDir(), "disk.raw"), bytes.Repeat([]byte("nasfleet"), 3<<20))
	repo := messages.Repository{Type: messages.RepositoryDir, Address: lab.LoopFS(t, 72)}
	for _, job := range []string{testJob, otherJob} {
		_, err := e.Run(t.Context(), &messages.TakeBackup{
			Header: messages.Header{JobID: job}, Images: []messages.Image{{Path: image, Format: "raw"}}, Repository: repo,
		}, nil, quiet{})
		check(t, err)
	}
	asIncremental(t, filepath.Join(repo.Address, "disk"))
	cmd := consolidation(messages.BackupRef{ID: otherJob, VM: "disk", Repository: repo}, "", messages.Details{})
	_, err := e.Run(t.Context(), cmd, nil, quiet{})
	wantCode(t, err, messages.CodeTargetFull)
	if got := names(t, filepath.Join(repo.Address, "disk")); !slices.Equal(got, []string{otherJob, testJob}) && !slices.Equal(got, []string{testJob, otherJob}) {
		t.Errorf("there is %v", got)
	}
	if left := names(t, e.cfg.RunDir); left != nil {
		t.Errorf("left: %v", left)
	}
}

// TestTheNASHangsInAConsolidation: both sides of the copy are on the repository. Whichever hangs, the job ends in
// bounded time; what it left on the NAS goes with the next attempt, which succeeds.
func TestTheNASHangsInAConsolidation(t *testing.T) {
	for _, at := range []messages.Phase{messages.PhaseCopying, messages.PhaseVerifying, messages.PhaseCommitting} {
		t.Run(string(at), func(t *testing.T) {
			n := newNAS(t)
			for _, job := range []string{testJob, otherJob} {
				_, err := n.e.Run(t.Context(), n.take(job), nil, quiet{})
				check(t, err)
			}
			asIncremental(t, filepath.Join(n.sshd.Export, n.ref(otherJob).VM))
			cmd := consolidation(n.ref(otherJob), "", messages.Details{IntegrityCheck: true})
			began := time.Now()
			_, err := n.e.Run(t.Context(), cmd, nil, breaker{at: at, once: &sync.Once{}, do: func() { n.sshd.Hang(t); began = time.Now() }})
			wantCode(t, err, messages.CodeRepositoryLost)
			if took := time.Since(began); took > time.Minute {
				t.Errorf("it took %s", took)
			}
			n.nothingLeft(t)
			n.sshd.Resume(t)
			_, err = n.e.Run(t.Context(), cmd, nil, quiet{})
			check(t, err)
			lab.NoFilesMatching(t, n.sshd.Export, "*.partial")
			n.nothingLeft(t)
		})
	}
}
