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
