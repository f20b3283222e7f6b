package integration

import (
	"bytes"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/nasfleet/nasfleet/messages"
	"github.com/nasfleet/nasfleet/tests/lab"
)

// TestBackingFileElsewhere is about an image whose maker has written the name of a file of the host into its
// header. It is read where the VM's definition, a storage pool or the worker's own settings say so,
// and nowhere else.
func TestBackingFileElsewhere(t *testing.T) {
	t.Parallel()
	l := lab.Libvirtd(t)
	w := newWorld(t, l.URI)
	victims, images := w.mkdir(t, "victims"), w.mkdir(t, "images")
	victim := dataImage(t, w, "victims/secret.raw", 16)
	evil := filepath.Join(images, "evil.qcow2")
	lab.Overlay(t, evil, victim, "raw")
	vm := lab.VMOptions{Name: "tenant", Stopped: true, Disks: []lab.Disk{{Path: evil}}}
	tenant := l.DefineVM(t, vm)
	refused := func(args ...string) {
		t.Helper()
		w.mustFail(t, messages.CodePathNotAllowed, args...)
		if left, err := os.ReadDir(w.nas); err != nil || len(left) > 0 {
			t.Errorf("on the repository: %v, %v", left, err)
		}
		w.nothingLeft(t)
	}
	refused(w.takeArgs("--vm", "tenant")...)
	refused(w.takeArgs("--image", evil, "--image-format", "qcow2")...)

	t.Run("the definition says so", func(t *testing.T) {
		tenant.Undefine(t)
		stated := vm
		stated.Disks = []lab.Disk{{Path: evil, ExtraXML: `<backingStore type='file'><format type='raw'/><source file='` + victim + `'/><backingStore/></backingStore>`}}
		tenant = l.DefineVM(t, stated)
		ev := w.take(t, "--vm", "tenant", "--verify")
		w.restoreAndCompare(t, features{}, ev, map[string]original{"vda": {"qcow2", evil}})
		w.mustJob(t, "restore", "--backup", ev.BackupID, "--to-vm", "tenant")
		compare(t, "raw", victim, "qcow2", evil)
	})
	t.Run("a storage pool", func(t *testing.T) {
		tenant.Undefine(t)
		tenant = l.DefineVM(t, vm)
		w.mustFail(t, messages.CodePathNotAllowed, w.takeArgs("--vm", "tenant")...)
		l.Virsh(t, "pool-create-as", "victims", "dir", "--target", victims)
		defer l.Virsh(t, "pool-destroy", "victims")
		w.take(t, "--vm", "tenant")
	})
	t.Run("the worker's settings", func(t *testing.T) {
		w.mustFail(t, messages.CodePathNotAllowed, w.takeArgs("--image", evil, "--image-format", "qcow2")...)
		w.stop(t)
		w.args = append(w.args, "--allow-path", victims, "--allow-path", images, "--allow-path", w.nas)
		w.start(t)
		w.take(t, "--image", evil, "--image-format", "qcow2")
		w.take(t, "--vm", "tenant")
	})
}

// TestHostileMounts sends commands whose repository names files and programs of the host.
func TestHostileMounts(t *testing.T) {
	t.Parallel()
	dir := lab.Dir(t)
	credentials := filepath.Join(dir, "credentials")
	if err := os.Mkdir(credentials, 0o700); err != nil {
		t.Fatal(err)
	}
	w := newWorld(t, "none", "--mount-credentials", credentials)
	server := lab.Sshd(t)
	image := noise(t, filepath.Join(w.dir, "disk.img"), 1, 1)
	on := func(kind, address, options string) []string {
		return w.onRepo(kind, address, options, "--image", image, "--attempts", "1")
	}
	link := filepath.Join(credentials, "id")
	if err := os.Symlink(server.KeyFile, link); err != nil {
		t.Fatal(err)
	}
	proof := filepath.Join(dir, "proof")
	program := filepath.Join(credentials, "program")
	if err := os.WriteFile(program, []byte("#!/bin/sh\n: > "+proof+"\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	options := server.Options()
	for name, c := range map[string]struct {
		code messages.Code
		args []string
	}{
		"a key of the host":     {messages.CodePathNotAllowed, on("fuse.sshfs", server.Address(), options)},
		"by way of a link":      {messages.CodePathNotAllowed, on("fuse.sshfs", server.Address(), strings.ReplaceAll(options, server.KeyFile, link))},
		"credentials":           {messages.CodePathNotAllowed, on("cifs", "//127.0.0.1/x", "credentials=/etc/shadow")},
		"a program":             {messages.CodeInvalidMessage, on("fuse.sshfs", server.Address(), "ssh_command="+program)},
		"a proxy":               {messages.CodeInvalidMessage, on("fuse.sshfs", server.Address(), "ProxyCommand="+program)},
		"a configuration":       {messages.CodeInvalidMessage, on("fuse.sshfs", server.Address(), "F="+program)},
		"no file system":        {messages.CodeRepositoryUnsupported, on("fuse.curl", "http://127.0.0.1/x", "")},
		"a loop device":         {messages.CodeInvalidMessage, on("ext4", image, "loop=/dev/loop0")},
		"programs may be there": {messages.CodeInvalidMessage, on("ext4", image, "loop,exec")},
		"the host's disk":       {messages.CodePathNotAllowed, on("ext4", "/etc/passwd", "loop")},
	} {
		t.Run(name, func(t *testing.T) {
			w.mustFail(t, c.code, c.args...)
			w.nothingLeft(t)
			if _, err := os.Stat(proof); err == nil {
				t.Error("the program ran")
			}
		})
	}
	// The same key where the host wants it.
	for from, to := range map[string]string{server.KeyFile: "key", server.KnownHosts: "known"} {
		data, err := os.ReadFile(from)
		if err != nil {
			t.Fatal(err)
		}
		at := filepath.Join(credentials, to)
		if err := os.WriteFile(at, data, 0o600); err != nil {
			t.Fatal(err)
		}
		options = strings.ReplaceAll(options, from, at)
	}
	w.mustJob(t, on("fuse.sshfs", server.Address(), options)...)
}

// TestRightsOfTheUnit gives the worker no more rights than the unit in operations.md does.
func TestRightsOfTheUnit(t *testing.T) {
	t.Parallel()
	page, err := os.ReadFile("../../docs/operations.md")
	if err != nil {
		t.Fatal(err)
	}
	line := regexp.MustCompile(`(?m)^CapabilityBoundingSet=(.*)$`).FindSubmatch(page)
	if line == nil || !bytes.Contains(page, []byte("\nNoNewPrivileges=yes\n")) {
		t.Fatal("the unit gives the worker every right")
	}
	rights := "-all"
	for _, name := range strings.Fields(string(line[1])) {
		rights += ",+" + strings.ToLower(strings.TrimPrefix(name, "CAP_"))
	}
	l := lab.Libvirtd(t)
	w := &world{
		dir: lab.Dir(t), libvirt: l.URI,
		under: []string{"setpriv", "--no-new-privs", "--bounding-set", rights, "--inh-caps", "-all"},
	}
	w.begin(t)
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", w.worker.Process.Pid))
	if err != nil || !bytes.Contains(status, []byte("NoNewPrivs:\t1")) || bytes.Contains(status, []byte("CapEff:\t000001ffffffffff")) {
		t.Fatalf("the worker has every right: %v\n%s", err, status)
	}
	disks := twoDisks(t, w)
	vm := l.DefineVM(t, lab.VMOptions{Name: "web", Disks: disks})
	vm.Write(t, "vda", 0, lab.MiB, 0x44)
	server := lab.Sshd(t)
	key := w.passphraseFile(t, passphrase)
	for _, flags := range [][]string{
		w.onRepo("ext4", lab.LoopImage(t, 512), "loop"),
		w.onRepo("fuse.sshfs", server.Address(), server.Options()),
	} {
		for _, state := range []string{"running", "stopped"} {
			if state == "stopped" {
				vm.Destroy(t)
			}
			ev := w.mustJob(t, append(slices.Clone(flags), "--vm", "web", "--encrypt", "--passphrase-file", key, "--verify")...)
			w.mustJob(t, "restore", "--backup", ev.BackupID, "--to", filepath.Join(w.dir, "to-"+ev.BackupID), "--passphrase-file", key)
			w.nothingLeft(t)
		}
		vm.Start(t)
	}
}

// TestNobodyElseReads: whatever the worker makes is its own, also where the umask takes nothing away.
func TestNobodyElseReads(t *testing.T) {
	w := &world{dir: lab.Dir(t), libvirt: "none", under: []string{"sh", "-c", `umask 0; exec "$@"`, "sh"}}
	w.begin(t)
	image := noise(t, filepath.Join(w.mkdir(t, "images"), "disk.img"), 2, 2)
	key := w.passphraseFile(t, passphrase)
	ev := w.take(t, "--image", image, "--encrypt", "--passphrase-file", key, "--verify", "--backup-path", "a/b")
	to := filepath.Join(w.dir, "restored")
	w.mustJob(t, "restore", "--backup", ev.BackupID, "--to", to, "--passphrase-file", key)
	w.take(t, "--image", image)
	for root, passable := range map[string]bool{w.nas: false, to: true, w.state: true, filepath.Join(w.dir, "nats"): false} {
		seen := 0
		err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			info, err := d.Info()
			if err != nil {
				return err
			}
			mode := info.Mode().Perm()
			switch {
			case path == w.nas: // the test's
			case d.IsDir() && mode&0o077 != 0 && (path != root || !passable || mode != 0o711):
				t.Errorf("folder %s has mode %04o", path, mode)
			case !d.IsDir() && mode&0o177 != 0 && root != filepath.Join(w.dir, "nats"):
				t.Errorf("file %s has mode %04o", path, mode)
			}
			seen++
			return nil
		})
		if err != nil || seen < 2 {
			t.Errorf("%s: %d entries, %v", root, seen, err)
		}
	}
}
