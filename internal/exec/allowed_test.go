package exec

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/nasfleet/nasfleet/messages"
)

func TestCheckPaths(t *testing.T) {
	dir := t.TempDir()
	in, out := filepath.Join(dir, "in"), filepath.Join(dir, "out")
	for _, d := range []string{in, out, filepath.Join(dir, "in-too"), filepath.Join(dir, "state")} {
		if err := os.Mkdir(d, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	for link, to := range map[string]string{
		filepath.Join(in, "away"): out, filepath.Join(out, "back"): in, filepath.Join(in, "shadow"): "/etc/shadow",
		filepath.Join(in, "loop"): filepath.Join(in, "loop"), filepath.Join(in, "nowhere"): filepath.Join(out, "not-yet"),
	} {
		if err := os.Symlink(to, link); err != nil {
			t.Fatal(err)
		}
	}
	open := &Executor{cfg: Config{RunDir: "/run/nasfleet", StateDir: filepath.Join(dir, "state")}}
	strict := &Executor{cfg: Config{AllowPaths: []string{in, filepath.Join(dir, "gone")}}}
	for _, tt := range []struct {
		path         string
		open, strict bool
	}{
		{filepath.Join(in, "disk.raw"), true, true},
		{filepath.Join(in, "new", "folder"), true, true},
		{in, true, true},
		{filepath.Join(dir, "in-too"), true, false},
		{filepath.Join(out, "disk.raw"), true, false},
		{filepath.Join(in, "away", "disk.raw"), true, false},
		{filepath.Join(in, "away", "new"), true, false},
		{filepath.Join(out, "back", "disk.raw"), true, true},
		{filepath.Join(in, "nowhere"), false, false},
		{filepath.Join(in, "shadow"), false, false},
		{filepath.Join(in, "loop"), false, false},
		{filepath.Join(dir, "state", "host.key"), false, false},
		{"/etc/shadow", false, false},
		{"/bin/sh", false, false},
		{"/usr/local", false, false},
		{"/proc/self/mem", false, false},
		{"/", true, false},
	} {
		for name, e := range map[string]struct {
			e    *Executor
			want bool
		}{"by default": {open, tt.open}, "below in": {strict, tt.strict}} {
			for what, cmd := range map[string]messages.Command{
				"an image":     &messages.TakeBackup{Images: []messages.Image{{Path: tt.path}}},
				"restore":      &messages.RestoreBackup{ToDir: tt.path},
				"a disk":       &messages.TakeBackup{Repository: messages.Repository{Type: "ext4", Address: tt.path}},
				"a disk, //":   &messages.ListBackups{Repository: messages.Repository{Type: "ext4", Address: "/" + tt.path}},
				"a repository": &messages.ListBackups{Repository: messages.Repository{Type: messages.RepositoryDir, Address: tt.path}},
			} {
				err := e.e.checkPaths(t.Context(), cmd)
				if (err == nil) != e.want || err != nil && messages.CodeOf(err) != messages.CodePathNotAllowed {
					t.Errorf("%s, %s, %s: %v", name, what, tt.path, err)
				}
			}
		}
	}
	// A mount's address is no folder of the host, and a VM's disks are libvirt's word.
	for _, cmd := range []messages.Command{
		&messages.TakeBackup{VM: "web", Repository: messages.Repository{Type: "nfs", Address: "/etc"}}, &messages.RestoreBackup{ToVM: "web"},
	} {
		if err := strict.checkPaths(t.Context(), cmd); err != nil {
			t.Error(err)
		}
	}
}

// A command overwrites images in the pools that the host allows, and without any in none.
func TestCheckPools(t *testing.T) {
	for image, allowed := range map[string][]string{"vms/i": {"other", "vms"}, "vms/": {"vm"}, "VMS/i": {"vms"}, "vms/j": nil} {
		e := &Executor{cfg: Config{AllowRBD: allowed}}
		err := e.checkPaths(t.Context(), &messages.RestoreBackup{ToRBD: map[string]string{"vda": image}, Backup: messages.BackupRef{Repository: messages.Repository{Type: "nfs", Address: "nas:/b"}}})
		want := messages.CodePathNotAllowed
		if image == "vms/i" {
			want = ""
		}
		wantCode(t, err, want)
	}
}

// TestCheckCredentials: a command names files as credentials only in the host's folder for them.
func TestCheckCredentials(t *testing.T) {
	dir := t.TempDir()
	in := filepath.Join(dir, "credentials")
	for _, d := range []string{in, in + "-too"} {
		check(t, os.Mkdir(d, 0o700))
		write(t, filepath.Join(d, "nas"), nil)
	}
	check(t, os.Symlink("/etc/shadow", filepath.Join(in, "shadow")))
	check(t, os.Symlink(in, filepath.Join(dir, "link")))
	at := func(name string) string { return filepath.Join(dir, name) }
	for _, tt := range []struct {
		path string
		want bool
	}{
		{at("credentials/nas"), true},
		{at("credentials/not-yet"), true},
		{at("link/nas"), true},
		{at("credentials-too/nas"), false},
		{at("credentials/shadow"), false},
		{in + "/../credentials-too/nas", false},
		{"/etc/shadow", false},
		{"/root/.ssh/id_ed25519", false},
		{"/proc/self/environ", false},
		{"relative", false},
		{"", false},
	} {
		for fsType, option := range map[string]string{
			"cifs": "credentials", "smb3": "cred", "ceph": "secretfile", "fuse.sshfs": "IdentityFile", "sshfs": "userknownhostsfile",
		} {
			cmd := &messages.ListBackups{Repository: messages.Repository{Type: fsType, Address: "nas:/x", MountOptions: "ro," + option + "=" + tt.path}}
			err := (&Executor{cfg: Config{MountCredentials: in}}).checkPaths(t.Context(), cmd)
			if (err == nil) != tt.want || err != nil && messages.CodeOf(err) != messages.CodePathNotAllowed {
				t.Errorf("%s %s=%s: %v", fsType, option, tt.path, err)
			}
			if err := (&Executor{}).checkPaths(t.Context(), cmd); messages.CodeOf(err) != messages.CodePathNotAllowed {
				t.Errorf("without a folder %s=%s: %v", option, tt.path, err)
			}
		}
	}
}

// TestCheckAddress: a disk that does not say where it is could be any of the host's.
func TestCheckAddress(t *testing.T) {
	dir := t.TempDir()
	open, strict := &Executor{}, &Executor{cfg: Config{AllowPaths: []string{dir}}}
	for _, address := range []string{"LABEL=root", "UUID=1", "disk.img", "LABEL=a:b"} {
		cmd := &messages.ListBackups{Repository: messages.Repository{Type: "ext4", Address: address}}
		check(t, open.checkPaths(t.Context(), cmd))
		wantCode(t, strict.checkPaths(t.Context(), cmd), messages.CodePathNotAllowed)
	}
	for _, r := range []messages.Repository{{Type: "nfs", Address: "nas:/etc"}, {Type: "cifs", Address: "//nas/etc"}, {Type: "fuse.sshfs", Address: "nas:/etc"}, {Type: "ceph", Address: ":/etc"}} {
		check(t, strict.checkPaths(t.Context(), &messages.ListBackups{Repository: r}))
	}
}

// A type of command that checkPaths has not been taught is refused, not let through.
func TestAStrangeCommandNamesNoPaths(t *testing.T) {
	type stranger struct{ messages.Command }
	wantCode(t, new(Executor).checkPaths(t.Context(), stranger{}), messages.CodeInternal)
}
