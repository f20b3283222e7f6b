package exec

import (
	"bytes"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	osexec "os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/nasfleet/nasfleet/internal/exec/repository"
	"github.com/nasfleet/nasfleet/internal/secret"
	"github.com/nasfleet/nasfleet/messages"
)

func TestInUse(t *testing.T) {
	path := write(t, filepath.Join(t.TempDir(), "disk"), make([]byte, 512))
	if used, err := inUse(path); used || err != nil {
		t.Errorf("a file that nobody has open: %t, %v", used, err)
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	check(t, err)
	defer func() { check(t, f.Close()) }()
	// Below QEMU's bytes, its first right, a right it does not share, above its bytes.
	for start, want := range map[int64]bool{0: false, 100: true, 201: true, 300: false} {
		lock := unix.Flock_t{Type: unix.F_RDLCK, Start: start, Len: 1}
		check(t, unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &lock))
		if used, err := inUse(path); used != want || err != nil {
			t.Errorf("a lock on byte %d: %t, %v", start, used, err)
		}
		lock.Type = unix.F_UNLCK
		check(t, unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &lock))
	}
}

func TestMayReplace(t *testing.T) {
	dir := t.TempDir()
	file, link := write(t, filepath.Join(dir, "f"), nil), filepath.Join(dir, "link")
	check(t, os.Symlink(file, link))
	gentle := &restoring{cmd: &messages.RestoreBackup{}}
	forced := &restoring{cmd: &messages.RestoreBackup{Force: true}}
	for _, c := range []struct {
		t    *restoring
		path string
		code messages.Code
	}{
		{gentle, filepath.Join(dir, "none"), ""}, {gentle, file, messages.CodeTargetExists}, {gentle, link, messages.CodeTargetExists},
		{forced, filepath.Join(dir, "none"), ""}, {forced, file, ""}, {forced, link, messages.CodeTargetExists}, {forced, dir, messages.CodeTargetExists},
	} {
		wantCode(t, c.t.mayReplace(c.path), c.code)
	}
}

func TestChoose(t *testing.T) {
	b := &repository.Backup{Manifest: repository.Manifest{Disks: []repository.Disk{{Name: "vda"}, {Name: "vdb"}, {Name: "vdc"}}}}
	for asked, want := range map[string]string{"": "vda vdb vdc", "vdb": "vdb", "vdc vda": "vda vdc", "vda vda": "vda"} {
		r := &restoring{backup: &storedBackup{chain: []*repository.Backup{b}}, cmd: &messages.RestoreBackup{Disks: strings.Fields(asked)}}
		disks, err := r.choose()
		check(t, err)
		var got []string
		for _, d := range disks {
			got = append(got, d.Name)
		}
		if !slices.Equal(got, strings.Fields(want)) {
			t.Errorf("%q: %v", asked, got)
		}
	}
	r := &restoring{backup: &storedBackup{chain: []*repository.Backup{b}}, cmd: &messages.RestoreBackup{Disks: []string{"vda", "hda"}}}
	_, err := r.choose()
	wantCode(t, err, messages.CodeDiskNotFound)
	if len(b.Manifest.Disks) != 3 || b.Manifest.Disks[0].Name != "vda" {
		t.Error("choosing changed the manifest")
	}
}

func TestRename(t *testing.T) {
	for name, f := range map[string]func(from, to string) error{
		"flag": renameNoReplace,
		"link": func(from, to string) error {
			err := rename(from, to, false)
			if err == nil && !sameFile(from, to) {
				t.Error("the file has not kept its first name")
			}
			if err == nil {
				err = os.Remove(from)
			}
			return err
		},
	} {
		dir := t.TempDir()
		from, to := write(t, filepath.Join(dir, "tmp"), []byte("new")), filepath.Join(dir, "disk")
		check(t, f(from, to))
		if got := names(t, dir); !slices.Equal(got, []string{"disk"}) {
			t.Errorf("%s: %v", name, got)
		}
		write(t, from, []byte("newer"))
		if err := f(from, to); !errors.Is(err, fs.ErrExist) || !exists(from) {
			t.Errorf("%s: over a name that is taken: %v", name, err)
		}
		check(t, rename(from, to, true))
		if got, _ := os.ReadFile(to); string(got) != "newer" || exists(from) {
			t.Errorf("%s: replaced by %q", name, got)
		}
	}
}

func TestUnwrap(t *testing.T) {
	right, err := secret.NewPassphrase([]byte("right"))
	check(t, err)
	wrong, err := secret.NewPassphrase([]byte("wrong"))
	check(t, err)
	wrap := func(p *secret.Passphrase, key []byte) json.RawMessage {
		w, err := secret.WrapKey(p, key, 0)
		check(t, err)
		raw, err := json.Marshal(w)
		check(t, err)
		return raw
	}
	key, other := secret.NewDigestKey(), secret.NewDigestKey()
	got, err := unwrap([]json.RawMessage{[]byte("1"), wrap(wrong, other), wrap(right, key)}, right)
	if err != nil || !bytes.Equal(got, key) {
		t.Errorf("the third key: %v", err)
	}
	_, err = unwrap([]json.RawMessage{wrap(right, key)}, wrong)
	wantCode(t, err, messages.CodeWrongPassphrase)
	_, err = unwrap(nil, right)
	wantCode(t, err, messages.CodeBackupCorrupt)
	_, err = unwrap([]json.RawMessage{[]byte(`"x"`)}, right)
	wantCode(t, err, messages.CodeBackupCorrupt)
}

// takeImages backs up images of these sizes (bytes), and returns how to find the backup.
func takeImages(t *testing.T, e *Executor, sizes ...int) messages.BackupRef {
	t.Helper()
	dir := t.TempDir()
	cmd := &messages.TakeBackup{
		Header:     messages.Header{JobID: testJob},
		Repository: messages.Repository{Type: messages.RepositoryDir, Address: t.TempDir()},
	}
	for i, size := range sizes {
		path := write(t, filepath.Join(dir, "vm"+string(rune('1'+i))+".img"), bytes.Repeat([]byte{byte('A' + i)}, size))
		cmd.Images = append(cmd.Images, messages.Image{Path: path})
	}
	_, err := e.Run(t.Context(), cmd, nil, quiet{})
	check(t, err)
	return messages.BackupRef{ID: testJob, VM: "vm1", Repository: cmd.Repository}
}

// restoreJob is the id of the jobs that restore.
const restoreJob = "01J8ZQ5V9K3N7R2T4W6Y8A0B1D"

func TestAnEmptyImageIsRefused(t *testing.T) {
	e := newExecutor(t)
	nas := t.TempDir()
	_, err := e.Run(t.Context(), &messages.TakeBackup{
		Header:     messages.Header{JobID: testJob},
		Images:     []messages.Image{{Path: write(t, filepath.Join(t.TempDir(), "empty.img"), nil)}},
		Repository: messages.Repository{Type: messages.RepositoryDir, Address: nas},
	}, nil, quiet{})
	wantCode(t, err, messages.CodeDiskUnsupported)
	for _, dir := range []string{nas, e.cfg.RunDir} {
		if left := names(t, dir); left != nil {
			t.Errorf("left in %s: %v", dir, left)
		}
	}
}

func TestHostileManifestsTouchNoTarget(t *testing.T) {
	for name, change := range map[string]func(disk map[string]any){
		"a size of 512 TiB":      func(d map[string]any) { d["virtual_bytes"] = int64(1) << 49 },
		"another size":           func(d map[string]any) { d["virtual_bytes"] = 1<<20 + 512 },
		"no size":                func(d map[string]any) { d["virtual_bytes"] = 0 },
		"no digests":             func(d map[string]any) { delete(d, "digests_file") },
		"another disk's digests": func(d map[string]any) { d["digests_file"] = "disk1.digests" },
	} {
		t.Run(name, func(t *testing.T) {
			e := newExecutor(t)
			ref := takeImages(t, e, 1<<20, 2<<20)
			path := filepath.Join(ref.Repository.Address, ref.VM, ref.ID, "manifest.json")
			data, err := os.ReadFile(path)
			check(t, err)
			var m map[string]any
			check(t, json.Unmarshal(data, &m))
			disks := m["disks"].([]any)
			change(disks[0].(map[string]any))
			m["disks"] = disks[:1]
			data, err = json.Marshal(m)
			check(t, err)
			write(t, path, data)
			to := t.TempDir()
			_, err = e.Run(t.Context(), &messages.RestoreBackup{Header: messages.Header{JobID: restoreJob}, Backup: ref, ToDir: to}, nil, quiet{})
			wantCode(t, err, messages.CodeBackupCorrupt)
			for _, dir := range []string{to, e.cfg.RunDir} {
				if left := names(t, dir); left != nil {
					t.Errorf("left in %s: %v", dir, left)
				}
			}
		})
	}
}

// A VM of which one disk can be restored and another cannot keeps all as they were.
func TestNoDiskIsOverwrittenBeforeAllAreOpen(t *testing.T) {
	e := newExecutor(t)
	ref := takeImages(t, e, 1<<20, 1<<20, 4<<20) // more than disksAtOnce
	old := bytes.Repeat([]byte("old "), 1<<18)
	dir := t.TempDir()
	var paths []string
	for _, name := range []string{"vda", "vdb", "vdc"} {
		paths = append(paths, write(t, filepath.Join(dir, name), old))
	}
	ws, err := e.open(restoreJob)
	check(t, err)
	r := &restoring{e: e, ws: ws, cmd: &messages.RestoreBackup{Backup: ref, ToVM: "vm1"}, r: quiet{}}
	r.backup, err = e.stored(t.Context(), ws, ref, messages.Details{})
	check(t, err)
	for i, d := range r.backup.manifest().Disks {
		r.to = append(r.to, &restoreTarget{disk: d, path: paths[i], format: "raw"})
	}
	wantCode(t, r.copy(t.Context()), messages.CodeTargetTooSmall)
	check(t, ws.close())
	for _, path := range paths {
		if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, old) {
			t.Errorf("%s was written, %v", path, err)
		}
	}
}

func TestRestoredIsWhatWasTaken(t *testing.T) {
	e := newExecutor(t)
	ref := takeImages(t, e, 1<<20, 3<<20+512)
	to := filepath.Join(t.TempDir(), "link")
	check(t, os.Symlink(t.TempDir(), to))
	cmd := &messages.RestoreBackup{Header: messages.Header{JobID: restoreJob}, Backup: ref, ToDir: to, Format: "raw"}
	out, err := e.Run(t.Context(), cmd, nil, quiet{})
	check(t, err)
	for i, size := range []int{1 << 20, 3<<20 + 512} {
		path := out.Restored["disk"+string(rune('0'+i))]
		if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, bytes.Repeat([]byte{byte('A' + i)}, size)) {
			t.Errorf("%s has %d bytes of something else, %v", path, len(got), err)
		}
	}
	if got := names(t, to); !slices.Equal(got, []string{"disk0.raw", "disk1.raw"}) {
		t.Errorf("restored: %v", got)
	}
	_, err = e.Run(t.Context(), cmd, nil, quiet{})
	wantCode(t, err, messages.CodeTargetExists)
}

// An image that a VM has open would be read torn.
func TestAnImageInUseIsRefused(t *testing.T) {
	e := newExecutor(t)
	image := write(t, filepath.Join(t.TempDir(), "vm1.img"), make([]byte, 1<<20))
	user := osexec.Command("qemu-io", "-f", "raw", image)
	in, err := user.StdinPipe()
	check(t, err)
	out, err := user.StdoutPipe()
	check(t, err)
	check(t, user.Start())
	defer func() { _ = in.Close(); _ = user.Wait() }()
	_, err = in.Write([]byte("length\n")) // it answers once the image is open
	check(t, err)
	_, err = out.Read(make([]byte, 1))
	check(t, err)
	nas := t.TempDir()
	_, err = e.Run(t.Context(), &messages.TakeBackup{
		Header: messages.Header{JobID: testJob}, Images: []messages.Image{{Path: image}},
		Repository: messages.Repository{Type: messages.RepositoryDir, Address: nas},
	}, nil, quiet{})
	wantCode(t, err, messages.CodeVMRunning)
	if left := names(t, nas); left != nil {
		t.Errorf("left: %v", left)
	}
}
