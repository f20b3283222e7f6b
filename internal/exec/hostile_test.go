package exec

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nasfleet/nasfleet/internal/exec/digest"
	"github.com/nasfleet/nasfleet/messages"
	"github.com/nasfleet/nasfleet/tests/lab"
)

// hostilePatience is more than anything done with a hostile backup takes, on a slow machine.
const hostilePatience = 3 * time.Minute

// spoiler makes a backup hostile: it changes what lies in its folder, where disk is the file of a disk.
type spoiler func(t *testing.T, folder, disk string)

// patch writes big-endian fields into the disk's file.
func patch(fields map[int64]any) spoiler {
	return func(t *testing.T, _, disk string) {
		t.Helper()
		f, err := os.OpenFile(disk, os.O_RDWR, 0)
		check(t, err)
		for at, value := range fields {
			var b bytes.Buffer
			check(t, binary.Write(&b, binary.BigEndian, value))
			_, err := f.WriteAt(b.Bytes(), at)
			check(t, err)
		}
		check(t, f.Close())
	}
}

// instead puts something else in the place of the disk, or of another file of the folder.
func instead(name string, make func(path string) error) spoiler {
	return func(t *testing.T, folder, disk string) {
		t.Helper()
		path := disk
		if name != "" {
			path = filepath.Join(folder, name)
		}
		check(t, os.Remove(path))
		check(t, make(path))
	}
}

// qcow2 makes another image of the same size in the disk's place.
func qcow2(args ...string) spoiler {
	return func(t *testing.T, _, disk string) {
		t.Helper()
		check(t, os.Remove(disk))
		lab.Run(t, "qemu-img", append(append([]string{"create", "-q", "-u", "-f", "qcow2"}, args...), disk, "1M")...)
	}
}

// TestHostileBackups does everything that is done with a backup to such as an attacker has put on the NAS. Nothing of it
// hangs, reads or writes anything outside, or is taken for a good backup; it can be listed over and deleted.
func TestHostileBackups(t *testing.T) {
	e, seal := keyedExecutor(t)
	outside := t.TempDir()
	victim := write(t, filepath.Join(outside, "victim"), bytes.Repeat([]byte("secret of the host\n"), 60_000))
	before, err := os.ReadFile(victim)
	check(t, err)

	plain := takeImages(t, e, 1<<20)
	encrypted := takeEncrypted(t, e, seal)
	huge := func(size int64) func(string) error {
		return func(path string) error {
			return errors.Join(os.WriteFile(path, []byte("QFI\xfb"), 0o600), os.Truncate(path, size))
		}
	}
	for name, c := range map[string]struct {
		encrypted bool
		spoil     spoiler
	}{
		// The numbers are offsets of fields in QEMU's docs/interop/qcow2.
		"a backing file":           {false, qcow2("-b", victim, "-F", "raw")},
		"the host's passwords":     {false, qcow2("-b", "/etc/shadow", "-F", "raw")},
		"a backing file guessed":   {false, patch(map[int64]any{8: uint64(0x70), 16: uint32(11), 0x70: []byte("/etc/shadow")})},
		"a backing file, json":     {false, qcow2("-b", `json:{"driver":"raw","file":{"driver":"file","filename":"`+victim+`"}}`, "-F", "raw")},
		"a server":                 {false, qcow2("-b", "nbd://127.0.0.1:1/x", "-F", "raw")},
		"a data file":              {false, patch(map[int64]any{72: uint64(4)})},
		"extended entries":         {false, patch(map[int64]any{72: uint64(16)})},
		"unknown features":         {false, patch(map[int64]any{72: uint64(1) << 60})},
		"exabytes":                 {false, patch(map[int64]any{24: uint64(1) << 62})},
		"beyond 64 bits":           {false, patch(map[int64]any{24: ^uint64(0)})},
		"another size":             {false, patch(map[int64]any{24: uint64(2 << 20)})},
		"encrypted in itself":      {false, patch(map[int64]any{32: uint32(2)})},
		"tables without end":       {false, patch(map[int64]any{36: uint32(0x7fffffff)})},
		"tables elsewhere":         {false, patch(map[int64]any{40: uint64(1) << 61})},
		"reference counts":         {false, patch(map[int64]any{48: uint64(1) << 60, 56: uint32(0x7fffffff)})},
		"snapshots without end":    {false, patch(map[int64]any{60: uint32(0xffffffff), 64: uint64(1 << 20)})},
		"a header without end":     {false, patch(map[int64]any{100: uint32(0xfffffff8)})},
		"an extension without end": {false, patch(map[int64]any{104: []uint32{0x23852875, 0xffffffff}})},
		"clusters of exabytes":     {false, patch(map[int64]any{20: uint32(62)})},
		"a link":                   {false, instead("", func(p string) error { return os.Symlink(victim, p) })},
		"a pipe":                   {false, instead("", func(p string) error { return unix.Mkfifo(p, 0o600) })},
		"a device":                 {false, instead("", func(p string) error { return unix.Mknod(p, unix.S_IFCHR|0o600, int(unix.Mkdev(1, 5))) })},
		"a folder":                 {false, instead("", func(p string) error { return os.Mkdir(p, 0o700) })},
		"a hard link to another":   {false, instead("", func(p string) error { return os.Link(victim, p) })},
		"a file of a tebibyte":     {false, instead("", huge(1<<40))},
		"digests, a link":          {false, instead("disk0.digests", func(p string) error { return os.Symlink(victim, p) })},
		"digests, a pipe":          {false, instead("disk0.digests", func(p string) error { return unix.Mkfifo(p, 0o600) })},
		"digests, a tebibyte":      {false, instead("disk0.digests", huge(1<<40))},
		"digests of exabytes":      {false, instead("disk0.digests", digestsOf(t, 1<<50))},

		// Those of the LUKS1 on-disk format.
		"LUKS, no qcow2 in it":       {true, patch(map[int64]any{104: uint32(8)})},
		"LUKS, payload elsewhere":    {true, patch(map[int64]any{104: uint32(0xffffffff)})},
		"LUKS, a key of gigabytes":   {true, patch(map[int64]any{108: uint32(0xffffffff)})},
		"LUKS, rounds of hours":      {true, patch(map[int64]any{164: uint32(0xffffffff)})},
		"LUKS, a slot of hours":      {true, patch(map[int64]any{208 + 4: uint32(0xffffffff)})},
		"LUKS, a slot elsewhere":     {true, patch(map[int64]any{208 + 40: uint32(0xffffffff)})},
		"LUKS, stripes without end":  {true, patch(map[int64]any{208 + 44: uint32(0xffffffff)})},
		"LUKS, every slot at once":   {true, patch(map[int64]any{208 + 44: uint32(0xffffffff), 256: uint32(0x00AC71F3), 256 + 4: uint32(1 << 28), 256 + 44: uint32(4000)})},
		"LUKS, an unknown cipher":    {true, patch(map[int64]any{8: []byte("../../../etc/shadow\x00")})},
		"LUKS, version 2":            {true, patch(map[int64]any{6: uint16(2)})},
		"a bare qcow2 instead":       {true, qcow2()},
		"a bare qcow2 on the victim": {true, qcow2("-b", victim, "-F", "raw")},
	} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), hostilePatience)
			defer cancel()
			ref, details := plain, messages.Details{}
			if c.encrypted {
				ref, details = encrypted, messages.Details{Passphrase: seal("old")}
			}
			ref = copied(t, ref)
			folder := filepath.Join(ref.Repository.Address, ref.VM, ref.ID)
			disk, _ := filepath.Glob(filepath.Join(folder, "disk0.[ql]*"))
			c.spoil(t, folder, disk[0])
			measureAgain(t, folder)

			to := filepath.Join(t.TempDir(), "to")
			commands := []messages.Command{
				&messages.VerifyBackup{Header: messages.Header{JobID: restoreJob}, Backup: ref, Details: details},
				&messages.RestoreBackup{Header: messages.Header{JobID: restoreJob}, Backup: ref, ToDir: to, Details: details},
				&messages.ConsolidateBackup{Header: messages.Header{JobID: rekeyJob}, Backup: ref, Details: details},
			}
			if c.encrypted {
				commands = append(commands, rekeyCommand(ref, seal, ""))
			}
			for _, cmd := range commands {
				_, err := e.Run(ctx, cmd, nil, quiet{})
				code := messages.CodeOf(err)
				if err == nil || code.Retryable() && code != messages.CodeSourceReadFailed || code == messages.CodeInternal || code == messages.CodeTimeout {
					t.Errorf("%T: %v", cmd, err)
				}
			}
			if left, err := os.ReadDir(to); len(left) > 0 {
				t.Errorf("restored: %v, %v", left, err)
			}
			if now, err := os.ReadFile(victim); err != nil || !bytes.Equal(now, before) {
				t.Errorf("the victim was written to: %v", err)
			}
			out, err := e.Run(ctx, &messages.ListBackups{Header: messages.Header{JobID: restoreJob}, Repository: ref.Repository}, nil, quiet{})
			if err != nil || len(out.Listed)+len(out.Notes) != 1 {
				t.Errorf("listed %v, %q, %v", out.Listed, out.Notes, err)
			}
			_, err = e.Run(ctx, &messages.DeleteBackup{Header: messages.Header{JobID: restoreJob}, Backup: ref}, nil, quiet{})
			check(t, err)
			if left := names(t, ref.Repository.Address); left != nil {
				t.Errorf("left on the repository: %v", left)
			}
			if left := names(t, e.cfg.RunDir); left != nil {
				t.Errorf("left in the run folder: %v", left)
			}
		})
	}
	if entries := names(t, outside); !slices.Equal(entries, []string{"victim"}) {
		t.Errorf("outside lies %v", entries)
	}
}

// digestsOf makes digests of a disk of that size, as sparse as they come.
func digestsOf(t *testing.T, size int64) func(string) error {
	t.Helper()
	return func(path string) error {
		w, err := digest.Create(path, size, nil)
		if err != nil {
			return err
		}
		return w.Close()
	}
}

// copied copies a repository with one backup.
func copied(t *testing.T, ref messages.BackupRef) messages.BackupRef {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "nas")
	check(t, os.CopyFS(dir, os.DirFS(ref.Repository.Address)))
	ref.Repository.Address = dir
	return ref
}

// measureAgain has the manifest tell the truth on the length of the files, as an attacker would.
func measureAgain(t *testing.T, folder string) {
	t.Helper()
	path := filepath.Join(folder, "manifest.json")
	data, err := os.ReadFile(path)
	check(t, err)
	var m map[string]any
	check(t, json.Unmarshal(data, &m))
	disks, _ := m["disks"].([]any)
	for _, d := range disks {
		disk, _ := d.(map[string]any)
		file, _ := disk["file"].(string)
		info, err := os.Stat(filepath.Join(folder, file))
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		check(t, err)
		disk["file_bytes"] = info.Size()
	}
	data, err = json.Marshal(m)
	check(t, err)
	check(t, os.WriteFile(path, data, 0o600))
}

// TestNamesMeanThemselves takes a backup of images, into a folder, and restores it to one, whose names mean something to
// QEMU, to a shell, to C or to who reads them. Each means only itself, all the way.
func TestNamesMeanThemselves(t *testing.T) {
	e := newExecutor(t)
	for _, name := range []string{
		"a,b=c,driver=null-co", "json:{}", "nbd:127.0.0.1:1", "file:x", "$(touch x)", "`touch x`;touch x", "-rf x", "%s%n", "a\\b", `a"b'c`, "~root",
		"*", "é", "e\u0301", "\u202eweb", "．．", " ", "a  b ", "manifest.json", strings.Repeat("n", 200),
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			at := func(part string) string { return filepath.Join(dir, part) }
			check(t, os.Mkdir(at("nas"), 0o700))
			image := write(t, filepath.Join(dir, "in", name), bytes.Repeat([]byte("x"), 64<<10))
			repo := messages.Repository{Type: messages.RepositoryDir, Address: at("nas")}
			take := &messages.TakeBackup{
				Header:     messages.Header{Version: 1, Type: messages.TypeTake, JobID: testJob, IssuedAt: time.Now()},
				Images:     []messages.Image{{Path: image}},
				Repository: repo, BackupPath: name + "/" + name,
			}
			check(t, take.Validate())
			out, err := e.Run(t.Context(), take, nil, quiet{})
			check(t, err)
			restore := &messages.RestoreBackup{
				Header: messages.Header{Version: 1, Type: messages.TypeRestore, JobID: restoreJob, IssuedAt: time.Now()},
				Backup: messages.BackupRef{Repository: repo, BackupPath: take.BackupPath, VM: out.Backup.VM, ID: testJob},
				ToDir:  filepath.Join(dir, "out", name), Format: "raw",
			}
			check(t, restore.Validate())
			_, err = e.Run(t.Context(), restore, nil, quiet{})
			check(t, err)
			got, err := os.ReadFile(filepath.Join(dir, "out", name, "disk0.raw"))
			if err != nil || !bytes.Equal(got, bytes.Repeat([]byte("x"), 64<<10)) {
				t.Errorf("restored are %d bytes, %v", len(got), err)
			}
			backup := filepath.Join(dir, "nas", name, name, take.Target(), testJob)
			if files := names(t, backup); len(files) != 3 || !exists(filepath.Join(backup, "manifest.json")) {
				t.Errorf("the backup holds %v", files)
			}
			for _, folder := range []string{dir, at("in"), at("out"), at("nas"), filepath.Join(dir, "nas", name)} {
				if files := names(t, folder); len(files) != 1 && folder != dir || len(files) > 3 {
					t.Errorf("%s holds %v", folder, files)
				}
			}
		})
	}
}
