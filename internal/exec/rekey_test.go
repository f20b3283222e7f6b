package exec

import (
	"bytes"
	"encoding/json"
	"os"
	osexec "os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/nasfleet/nasfleet/internal/exec/repository"
	"github.com/nasfleet/nasfleet/internal/secret"
	"github.com/nasfleet/nasfleet/messages"
)

// The ids of a rekey, and of the passphrases' revisions.
const (
	rekeyJob      = "01J8ZQ5V9K3N7R2T4W6Y8A0B1E"
	firstRevision = "01J8ZQ5V9K3N7R2T4W6Y8A0B1F"
	nextRevision  = "01J8ZQ5V9K3N7R2T4W6Y8A0B1G"
)

// keyedExecutor has a key, and makes containers that open quickly. seal seals for it.
func keyedExecutor(t *testing.T) (e *Executor, seal func(string) string) {
	t.Helper()
	key, err := secret.NewKey()
	check(t, err)
	public, err := key.Public()
	check(t, err)
	e = newExecutor(t)
	e.cfg.Key, e.cfg.LUKSIterTime = key, 10*time.Millisecond
	return e, func(text string) string {
		if text == "" {
			return ""
		}
		p, err := secret.NewPassphrase([]byte(text))
		check(t, err)
		sealed, err := secret.Seal(public, p)
		check(t, err)
		return sealed
	}
}

// takeEncrypted backs up two images that "old" and "old recovery" open.
func takeEncrypted(t *testing.T, e *Executor, seal func(string) string) messages.BackupRef {
	t.Helper()
	dir := t.TempDir()
	cmd := &messages.TakeBackup{
		Header:     messages.Header{JobID: testJob},
		Repository: messages.Repository{Type: messages.RepositoryDir, Address: t.TempDir()},
		Details: messages.Details{
			Encryption: true, Passphrase: seal("old"), Revision: firstRevision, Recovery: seal("old recovery"), RecoveryRevision: firstRevision,
		},
	}
	for i := range 2 {
		path := write(t, filepath.Join(dir, "vm"+string(rune('1'+i))+".img"), bytes.Repeat([]byte{byte('A' + i)}, 1<<20))
		cmd.Images = append(cmd.Images, messages.Image{Path: path})
	}
	out, err := e.Run(t.Context(), cmd, nil, quiet{})
	check(t, err)
	if out.Backup.Revision != firstRevision || out.Backup.RecoveryRevision != firstRevision {
		t.Fatalf("the catalog says %+v", out.Backup)
	}
	return messages.BackupRef{ID: testJob, VM: "vm1", Repository: cmd.Repository}
}

// openers says which passphrases open the whole backup: by the containers, asked of cryptsetup, and
// by the wrapped keys of the manifest. Of one that opens only some of it the name gets a "?".
func openers(t *testing.T, ref messages.BackupRef, passphrases ...string) []string {
	t.Helper()
	dir := filepath.Join(ref.Repository.Address, ref.VM, ref.ID)
	data, err := os.ReadFile(filepath.Join(dir, "manifest.json"))
	check(t, err)
	m, err := repository.DecodeManifest(data)
	check(t, err)
	var list []string
	for _, text := range passphrases {
		opened := 0
		for _, d := range m.Disks {
			cmd := osexec.Command("cryptsetup", "open", "--test-passphrase", "--key-file", "-", filepath.Join(dir, d.File))
			cmd.Stdin = bytes.NewReader([]byte(text))
			if cmd.Run() == nil {
				opened++
			}
		}
		p, err := secret.NewPassphrase([]byte(text))
		check(t, err)
		if _, err := unwrap(m.Digest.WrappedKeys, p); err == nil {
			opened++
		}
		switch opened {
		case 0:
		case len(m.Disks) + 1:
			list = append(list, text)
		default:
			list = append(list, text+"?")
		}
	}
	return list
}

var everyPassphrase = []string{"old", "old recovery", "new", "new recovery"}

func rekeyCommand(ref messages.BackupRef, seal func(string) string, recovery string) *messages.RekeyBackup {
	cmd := &messages.RekeyBackup{
		Header: messages.Header{JobID: rekeyJob}, Backup: ref, OldPassphrase: seal("old"), OldRevision: firstRevision,
		Details: messages.Details{Passphrase: seal("new"), Revision: nextRevision, Recovery: seal(recovery)},
	}
	return cmd
}

func TestRekey(t *testing.T) {
	t.Parallel()
	e, seal := keyedExecutor(t)
	ref := takeEncrypted(t, e, seal)
	dir := filepath.Join(ref.Repository.Address, ref.VM, ref.ID)
	if got := openers(t, ref, everyPassphrase...); !slices.Equal(got, []string{"old", "old recovery"}) {
		t.Fatalf("as taken it opens with %v", got)
	}
	payload := func() []byte {
		data, err := os.ReadFile(filepath.Join(dir, "disk1.luks"))
		check(t, err)
		return data[2068480:] // payload-offset of a LUKS1 container with eight slots
	}
	before := payload()
	out, err := e.Run(t.Context(), rekeyCommand(ref, seal, "new recovery"), nil, quiet{})
	check(t, err)
	if out.Backup == nil || out.Backup.Revision != nextRevision || out.Backup.RecoveryRevision != "" || len(out.Notes) != 1 {
		t.Errorf("outcome %+v, %+v", out, out.Backup)
	}
	if got := openers(t, ref, everyPassphrase...); !slices.Equal(got, []string{"new", "new recovery"}) {
		t.Errorf("afterwards it opens with %v", got)
	}
	if !bytes.Equal(before, payload()) {
		t.Error("data were written")
	}
	// What it is worth: it is verified with the new one, and not with the old one.
	verify := func(text string) error {
		_, err := e.Run(t.Context(), &messages.VerifyBackup{
			Header: messages.Header{JobID: restoreJob}, Backup: ref, Details: messages.Details{Passphrase: seal(text)},
		}, nil, quiet{})
		return err
	}
	check(t, verify("new"))
	check(t, verify("new recovery"))
	wantCode(t, verify("old"), messages.CodeWrongPassphrase)

	// The same job again finds it done; another old passphrase opens nothing.
	_, err = e.Run(t.Context(), rekeyCommand(ref, seal, "new recovery"), nil, quiet{})
	check(t, err)
	wrong := rekeyCommand(ref, seal, "")
	wrong.OldPassphrase, wrong.Details.Passphrase = seal("x"), seal("y")
	_, err = e.Run(t.Context(), wrong, nil, quiet{})
	wantCode(t, err, messages.CodeWrongPassphrase)
	if got := openers(t, ref, everyPassphrase...); !slices.Equal(got, []string{"new", "new recovery"}) {
		t.Errorf("it opens with %v", got)
	}
	// Opened with the recovery passphrase, which is to stay, and the first one forgotten.
	again := rekeyCommand(ref, seal, "new recovery")
	again.OldPassphrase, again.Details.Passphrase = seal("new recovery"), seal("old")
	_, err = e.Run(t.Context(), again, nil, quiet{})
	check(t, err)
	if got := openers(t, ref, everyPassphrase...); !slices.Equal(got, []string{"old", "new recovery"}) {
		t.Errorf("at the end it opens with %v", got)
	}
	if left := names(t, e.cfg.RunDir); left != nil {
		t.Errorf("left: %v", left)
	}
}

// TestRekeyCutOff ends a rekey after each of its steps, as a kill does: the old passphrase or the new
// one opens everything, and the next attempt comes to the same end.
func TestRekeyCutOff(t *testing.T) {
	t.Parallel()
	e, seal := keyedExecutor(t)
	ref := takeEncrypted(t, e, seal)
	taken := filepath.Join(t.TempDir(), "taken")
	dir := filepath.Join(ref.Repository.Address, ref.VM, ref.ID)
	check(t, os.CopyFS(taken, os.DirFS(dir)))
	cmd := rekeyCommand(ref, seal, "")
	// After looking at two disks and the manifest six steps write: two add, the manifest, two take away, the
	// manifest.
	for _, after := range []int{4, 6, 7, 9} {
		check(t, os.RemoveAll(dir))
		check(t, os.CopyFS(dir, os.DirFS(taken)))
		names := cutOff(t, e, cmd, after)
		got := openers(t, ref, everyPassphrase...)
		t.Logf("after %v: %v", names, got)
		if !slices.Contains(got, "old") && !slices.Contains(got, "new") {
			t.Errorf("cut off after %v: it opens with %v", names, got)
		}
		if after == 7 { // a second cut on top of the first
			cutOff(t, e, cmd, 5)
			if got := openers(t, ref, everyPassphrase...); !slices.Contains(got, "old") && !slices.Contains(got, "new") {
				t.Errorf("cut off twice, first after %v: it opens with %v", names, got)
			}
		}
		_, err := e.Run(t.Context(), cmd, nil, quiet{})
		check(t, err)
		if got := openers(t, ref, everyPassphrase...); !slices.Equal(got, []string{"new"}) {
			t.Errorf("cut off after %v and done again: it opens with %v", names, got)
		}
	}
}

// cutOff does the first steps of a rekey and returns their names.
func cutOff(t *testing.T, e *Executor, cmd *messages.RekeyBackup, steps int) []string {
	t.Helper()
	ws, err := e.open(cmd.JobID)
	check(t, err)
	r := &rekeying{ws: ws, cmd: cmd, wrapped: map[string][]json.RawMessage{}}
	defer r.wipe()
	check(t, r.openKeys(e))
	check(t, r.find(t.Context()))
	var done []string
	for _, s := range r.steps()[:steps] {
		check(t, s.run(t.Context()))
		done = append(done, s.name)
	}
	check(t, ws.close())
	return done
}

func TestRekeyRefused(t *testing.T) {
	e, seal := keyedExecutor(t)
	plain := takeImages(t, e, 1<<20)
	for name, change := range map[string]func(*messages.RekeyBackup){
		"a backup in the clear": func(*messages.RekeyBackup) {},
		"new is old":            func(c *messages.RekeyBackup) { c.Details.Passphrase = seal("old") },
	} {
		cmd := rekeyCommand(plain, seal, "")
		change(cmd)
		_, err := e.Run(t.Context(), cmd, nil, quiet{})
		if messages.CodeOf(err) != messages.CodeInvalidDetail {
			t.Errorf("%s: %v", name, err)
		}
	}
	missing := plain
	missing.ID = rekeyJob
	_, err := e.Run(t.Context(), rekeyCommand(missing, seal, ""), nil, quiet{})
	wantCode(t, err, messages.CodeBackupNotFound)
}

// A passphrase that comes without encryption encrypts nothing.
func TestAPassphraseAloneEncryptsNothing(t *testing.T) {
	e, seal := keyedExecutor(t)
	cmd := &messages.TakeBackup{
		Header: messages.Header{JobID: testJob}, Details: messages.Details{Passphrase: seal("old")},
		Images:     []messages.Image{{Path: write(t, filepath.Join(t.TempDir(), "vm1.img"), make([]byte, 1<<20))}},
		Repository: messages.Repository{Type: messages.RepositoryDir, Address: t.TempDir()},
	}
	_, err := e.Run(t.Context(), cmd, nil, quiet{})
	check(t, err)
	data, err := os.ReadFile(filepath.Join(cmd.Repository.Address, "vm1", testJob, "disk0.qcow2"))
	check(t, err)
	if !bytes.HasPrefix(data, []byte("QFI\xfb")) {
		t.Error("the file is no qcow2")
	}
}
