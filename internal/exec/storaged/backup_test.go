package storaged

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/nasfleet/nasfleet/messages"
)

const testPassphrase = "correct-horse-4711"

// TestBackup takes a backup in every combination, looks at it with other tools and reads it back.
func TestBackup(t *testing.T) {
	d, _ := startDaemon(t, quick)
	for _, compression := range []string{"", "zstd", "zlib"} {
		for _, passphrase := range []string{"", testPassphrase} {
			// Whole clusters, a disk that ends inside one, and one smaller than any.
			for _, size := range []int{3 << 20, 1<<20 + 5*512, 512} {
				if passphrase != "" && size == 512 {
					continue // a container takes seconds
				}
				name := fmt.Sprintf("%s,encrypted=%t,%d", compression, passphrase != "", size)
				t.Run(name, func(t *testing.T) { testBackup(t, d, compression, passphrase, size) })
			}
		}
	}
}

func testBackup(t *testing.T, d *Daemon, compression, passphrase string, size int) {
	dir := t.TempDir()
	path := filepath.Join(dir, "a backup, with=commas")
	want := content(size)
	source := writeFile(t, filepath.Join(dir, "source"), want)
	var key []byte
	if passphrase != "" {
		key = []byte(passphrase)
	}

	if err := d.CreateBackup(t.Context(), "vda", NewBackup{Path: path, Size: int64(size), Compression: compression, Passphrase: key}); err != nil {
		t.Fatal(err)
	}
	copyIn(t, d, source, "vda")
	if err := d.CloseExport(t.Context(), "vda"); err != nil {
		t.Fatal(err)
	}
	requireEmpty(t, d)
	if info, err := os.Stat(path); err != nil || info.Mode() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	examine(t, path, source, compression, passphrase)

	if err := d.OpenBackup(t.Context(), "vda", Backup{path, key}); err != nil {
		t.Fatal(err)
	}
	requireSame(t, copyOut(t, d, "vda"), want)
	clusters := NewBackup{Compression: compression}.ClusterSize()
	report, err := Check(t.Context(), "", d.Socket(), "vda")
	if err != nil {
		t.Error(err)
	}
	if report.Leaks != 0 || report.TotalClusters != (int64(size)+clusters-1)/clusters {
		t.Errorf("unexpected report %+v", report)
	}
	if compressed := report.CompressedClusters > 0; compressed != (compression != "") {
		t.Errorf("%d compressed clusters", report.CompressedClusters)
	}
	if err := d.CloseExport(t.Context(), "vda"); err != nil {
		t.Error(err)
	}
	requireEmpty(t, d)
}

// examine looks at a backup with qemu-img and cryptsetup alone.
func examine(t *testing.T, path, source, compression, passphrase string) {
	t.Helper()
	image := fmt.Sprintf(`json:{"driver":"qcow2","file":{"driver":"file","filename":%q}}`, path)
	secret := []string{}
	if passphrase != "" {
		run(t, passphrase, "cryptsetup", "open", "--test-passphrase", "--key-file", "-", path)
		if _, err := try(t, passphrase+"x", "cryptsetup", "open", "--test-passphrase", "--key-file", "-", path); err == nil {
			t.Error("cryptsetup takes a wrong passphrase")
		}
		if dump := run(t, "", "cryptsetup", "luksDump", path); !strings.Contains(dump, "xts-plain64") {
			t.Errorf("unexpected LUKS header:\n%s", dump)
		}
		key := writeFile(t, filepath.Join(shortDir(t), "key"), []byte(passphrase))
		secret = []string{"--object", "secret,id=s,file=" + key}
		image = fmt.Sprintf(`json:{"driver":"qcow2","file":{"driver":"luks","key-secret":"s","file":{"driver":"file","filename":%q}}}`, path)
	}
	info := run(t, "", "qemu-img", append(append([]string{"info"}, secret...), image)...)
	want := compression
	if want == "" {
		want = "zlib"
	}
	clusters := "cluster_size: 65536"
	if compression != "" {
		clusters = "cluster_size: 262144"
	}
	if !strings.Contains(info, "compression type: "+want) || !strings.Contains(info, clusters) {
		t.Errorf("unexpected image:\n%s", info)
	}
	raw := fmt.Sprintf(`json:{"driver":"raw","file":{"driver":"file","filename":%q}}`, source)
	run(t, "", "qemu-img", append(append([]string{"compare"}, secret...), raw, image)...)
}

// TestBackupZeroes writes zeroes as data, which must cost no space in any mode, and as zeroes.
func TestBackupZeroes(t *testing.T) {
	d, _ := startDaemon(t, quick)
	for _, compression := range []string{"", "zstd"} {
		path := filepath.Join(t.TempDir(), "backup")
		backup := NewBackup{Path: path, Size: 16 << 20, Compression: compression}
		if err := d.CreateBackup(t.Context(), "vda", backup); err != nil {
			t.Fatal(err)
		}
		run(t, "", "qemu-io", "-f", "raw", "-c", "write -P 0 0 8M", "-c", "write -z 8M 4M", "-c", "write -zu 12M 2M", d.uri("vda"))
		if err := d.CloseExport(t.Context(), "vda"); err != nil {
			t.Fatal(err)
		}
		if info, err := os.Stat(path); err != nil || info.Size() > 8*backup.ClusterSize() {
			t.Errorf("compression %q: zeroes take %d bytes, %v", compression, info.Size(), err)
		}
		if err := d.OpenBackup(t.Context(), "vda", Backup{Path: path}); err != nil {
			t.Fatal(err)
		}
		requireSame(t, copyOut(t, d, "vda"), make([]byte, 16<<20))
		if err := d.CloseExport(t.Context(), "vda"); err != nil {
			t.Error(err)
		}
	}
}

// TestPassphraseStaysSecret looks for it wherever another user or a reader of logs could.
func TestPassphraseStaysSecret(t *testing.T) {
	d, log := startDaemon(t, quick)
	path := filepath.Join(t.TempDir(), "backup")
	if err := d.CreateBackup(t.Context(), "vda", NewBackup{Path: path, Size: 1 << 20, Compression: "zstd", Passphrase: []byte(testPassphrase)}); err != nil {
		t.Fatal(err)
	}
	if err := d.OpenBackup(t.Context(), "vdb", Backup{path, []byte("wrong-" + testPassphrase)}); messages.CodeOf(err) != messages.CodeWrongPassphrase {
		t.Errorf("opened with a wrong passphrase: %v", err)
	} else {
		requireNoSecret(t, "the error", err.Error())
	}
	for _, name := range []string{"cmdline", "environ"} {
		data, err := os.ReadFile(fmt.Sprintf("/proc/%d/%s", d.PID(), name))
		if err != nil {
			t.Fatal(err)
		}
		requireNoSecret(t, name, string(data))
	}
	requireNoSecret(t, "the log", log.String())
	if !strings.Contains(log.String(), "object-add") {
		t.Error("the log does not cover the sending of the secret")
	}
	requireNoSecret(t, "the daemon's standard error", d.proc.Stderr())
	var objects []struct{ Name, Type string }
	if err := d.qmp.execute(t.Context(), "qom-list", object{"path": "/objects"}, &objects); err != nil || len(objects) != 1 {
		t.Errorf("objects in the daemon: %v, %v", objects, err)
	}
	if err := d.CloseExport(t.Context(), "vda"); err != nil {
		t.Fatal(err)
	}
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	requireNoSecret(t, "the file", string(data))
}

func requireNoSecret(t *testing.T, where, text string) {
	t.Helper()
	base64 := "Y29ycmVjdC1ob3JzZS00Nzxx"[:20]
	if strings.Contains(text, testPassphrase) || strings.Contains(text, base64) {
		t.Errorf("the passphrase is in %s", where)
	}
}

// TestHostileBackup opens files that an attacker has put in a backup's place.
func TestHostileBackup(t *testing.T) {
	d, _ := startDaemon(t, quick)
	dir := t.TempDir()
	victim := writeFile(t, filepath.Join(dir, "victim"), bytes.Repeat([]byte("secret of the host\n"), 40000))
	key := []byte(testPassphrase)
	keyFile := writeFile(t, filepath.Join(dir, "key"), key)
	good := filepath.Join(dir, "good")
	run(t, "", "qemu-img", "create", "-q", "-f", "qcow2", good, "1M")
	goodLUKS := filepath.Join(dir, "good.luks")
	run(t, "", "qemu-img", "create", "-q", "--object", "secret,id=s,file="+keyFile, "-f", "luks", "-o", "key-secret=s,iter-time=10", goodLUKS, "1M")

	tests := []struct {
		name string
		make func(path string)
		key  []byte
		want messages.Code
	}{
		{"backing file", func(p string) {
			run(t, "", "qemu-img", "create", "-q", "-f", "qcow2", "-b", victim, "-F", "raw", p)
		}, nil, messages.CodeBackupCorrupt},
		{"data file", func(p string) {
			run(t, "", "qemu-img", "create", "-q", "-f", "qcow2", "-o", "data_file="+p+".data,data_file_raw=on", p, "64K")
		}, nil, messages.CodeBackupCorrupt},
		{"backing file in LUKS", func(p string) { wrapLUKS(t, p, keyFile, "-b", victim, "-F", "raw") }, key, messages.CodeBackupCorrupt},
		{"data file in LUKS", func(p string) {
			wrapLUKS(t, p, keyFile, "-o", "data_file="+p+".data,data_file_raw=on")
		}, key, messages.CodeBackupCorrupt},
		{"raw", func(p string) { writeFile(t, p, content(1<<20)) }, nil, messages.CodeBackupCorrupt},
		{"raw for LUKS", func(p string) { writeFile(t, p, content(1<<20)) }, key, messages.CodeBackupCorrupt},
		{"empty", func(p string) { writeFile(t, p, nil) }, nil, messages.CodeBackupCorrupt},
		{"cut off", func(p string) { writeFile(t, p, []byte("QFI\xfb\x00\x00\x00\x03")) }, nil, messages.CodeBackupCorrupt},
		{"symlink", func(p string) { mustDo(t, os.Symlink(good, p)) }, nil, messages.CodeBackupCorrupt},
		{"folder", func(p string) { mustDo(t, os.Mkdir(p, 0o700)) }, nil, messages.CodeBackupCorrupt},
		{"missing", func(string) {}, nil, messages.CodeBackupNotFound},
		{"plain in place of encrypted", func(p string) { mustDo(t, os.Link(good, p)) }, key, messages.CodeBackupCorrupt},
		{"encrypted, no passphrase", func(p string) { mustDo(t, os.Link(goodLUKS, p)) }, nil, messages.CodePassphraseMissing},
		{"wrong passphrase", func(p string) { mustDo(t, os.Link(goodLUKS, p)) }, []byte("wrong"), messages.CodeWrongPassphrase},
		{"no qcow2 in LUKS", func(p string) { mustDo(t, os.Link(goodLUKS, p)) }, key, messages.CodeBackupCorrupt},
		{"absurd rounds", func(p string) {
			data, err := os.ReadFile(goodLUKS)
			mustDo(t, err)
			data[luksSlots+4] = 0xff
			writeFile(t, p, data)
		}, key, messages.CodeBackupCorrupt},
	}
	for i, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			path := filepath.Join(dir, fmt.Sprint(i))
			test.make(path)
			err := d.OpenBackup(t.Context(), "vda", Backup{path, test.key})
			if messages.CodeOf(err) != test.want {
				t.Errorf("got %v, want %s", err, test.want)
			}
			requireEmpty(t, d)
		})
	}
}

func mustDo(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// wrapLUKS makes a qcow2 with the given options of qemu-img create inside a LUKS container.
func wrapLUKS(t *testing.T, path, keyFile string, options ...string) {
	t.Helper()
	inner := path + ".inner"
	run(t, "", "qemu-img", append(append([]string{"create", "-q", "-f", "qcow2"}, options...), inner, "64K")...)
	run(t, "", "qemu-img", "convert", "-f", "raw", "-O", "luks", "--object", "secret,id=s,file="+keyFile,
		"-o", "key-secret=s,iter-time=10", inner, path)
}
