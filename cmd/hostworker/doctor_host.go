package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	osexec "os/exec"
	"path/filepath"
	"strings"

	"github.com/dustin/go-humanize"
	"golang.org/x/sys/unix"

	"github.com/nasfleet/nasfleet/internal/exec/proc"
)

// The oldest QEMU whose tools can do what backups are made of.
const minMajor, minMinor = 7, 2

func checkUser(context.Context) []finding {
	user := ok("user", "root")
	if uid := os.Geteuid(); uid != 0 {
		user = warn("user", fmt.Sprintf("uid %d", uid),
			"Run as root: to mount a NAS and to read the disks of VMs needs it. Images and repositories of type dir work without.")
	}
	space := ok("mount namespace", "the worker's mounts can be its own")
	if err := tryNamespace(); err != nil {
		space = warn("mount namespace", err.Error(),
			"Give the worker CAP_SYS_ADMIN (root has it): otherwise its mounts are seen by the whole host, and stay when it is killed.")
	}
	return []finding{user, space}
}

func checkTools(ctx context.Context) []finding {
	var all []finding
	for _, tool := range []string{"qemu-img", "qemu-storage-daemon"} {
		var out []byte
		err := ask(ctx, func(ctx context.Context) (err error) {
			out, err = proc.Run(ctx, proc.Spec{Path: tool, Args: []string{"--version"}})
			return err
		})
		if err != nil {
			all = append(all, fail(tool, err.Error(), "Install QEMU's tools (Debian: qemu-utils and qemu-system-common), version 7.2 or newer."))
			continue
		}
		line, _, _ := strings.Cut(string(out), "\n")
		all = append(all, toolFinding(tool, line))
	}
	return all
}

// toolFinding judges a version such as "qemu-img version 7.2.22 (Debian …)".
func toolFinding(tool, line string) finding {
	_, text, _ := strings.Cut(line, "version ")
	var major, minor int
	if _, err := fmt.Sscanf(text, "%d.%d", &major, &minor); err != nil {
		return warn(tool, fmt.Sprintf("%q", line), fmt.Sprintf("Its version cannot be told; %d.%d or newer is needed.", minMajor, minMinor))
	}
	if major < minMajor || major == minMajor && minor < minMinor {
		return fail(tool, line, fmt.Sprintf("Install QEMU %d.%d or newer.", minMajor, minMinor))
	}
	return ok(tool, line)
}

// checkHelpers says which repository types can be mounted. A missing one is only a warning: which
// are needed is the commands' to say.
func checkHelpers(context.Context) []finding {
	all := []finding{helperFinding("mount", "mount", "Install mount: repositories of every type but dir need it.")}
	for _, h := range []struct{ kind, program, pkg string }{
		{"nfs", "mount.nfs", "nfs-common"}, {"cifs", "mount.cifs", "cifs-utils"}, {"fuse.sshfs", "sshfs", "sshfs"},
	} {
		advice := fmt.Sprintf("Install %s if commands name repositories of this type.", h.pkg)
		all = append(all, helperFinding("repository type "+h.kind, h.program, advice))
	}
	return all
}

func helperFinding(check, program, advice string) finding {
	path, err := lookHelper(program)
	if err != nil {
		return warn(check, program+" is not installed", advice)
	}
	return ok(check, path)
}

// lookHelper also looks where mount(8) does and a user's PATH may not reach.
func lookHelper(program string) (string, error) {
	if path, err := osexec.LookPath(program); err == nil {
		return path, nil
	}
	for _, dir := range []string{"/sbin", "/usr/sbin"} {
		if path, err := osexec.LookPath(filepath.Join(dir, program)); err == nil {
			return path, nil
		}
	}
	return "", osexec.ErrNotFound
}

func (c *doctorCmd) checkFolders(context.Context) []finding {
	const little = 1 << 20
	all := []finding{
		c.reachable(folderFinding("scratch", c.Scratch, c.ScratchReserve<<20, "--scratch-reserve keeps them free"), c.Scratch),
		c.reachable(folderFinding("run folder", c.RunDir, little, "jobs need them"), c.RunDir),
		folderFinding("state folder", c.StateDir, little, "the journal needs them"),
	}
	return all
}

// folderFinding looks at a folder that run makes where it is missing, and at the room (bytes) in it.
func folderFinding(check, dir string, need int64, why string) finding {
	const mend = "Let the worker write there, or name another folder."
	at, err := nearest(dir)
	if err != nil {
		return fail(check, err.Error(), mend)
	}
	probe, err := os.MkdirTemp(at, ".doctor-*")
	if err != nil {
		return fail(check, err.Error(), mend)
	}
	if err := os.Remove(probe); err != nil {
		return fail(check, err.Error(), mend)
	}
	var st unix.Statfs_t
	if err := unix.Statfs(at, &st); err != nil {
		return fail(check, (&fs.PathError{Op: "statfs", Path: at, Err: err}).Error(), "Check its file system.")
	}
	free := int64(st.Bavail) * st.Bsize
	detail := fmt.Sprintf("%s, %s free", dir, humanize.IBytes(uint64(free)))
	if at != dir {
		detail += ", will be made"
	}
	if free < need {
		return fail(check, detail, fmt.Sprintf("It needs %s (%s): make room, or name another folder.", humanize.IBytes(uint64(need)), why))
	}
	return ok(check, detail)
}

// nearest returns the folder itself, or the lowest one above it that exists.
func nearest(dir string) (string, error) {
	for {
		_, err := os.Stat(dir)
		if !errors.Is(err, fs.ErrNotExist) || dir == filepath.Dir(dir) {
			return dir, err
		}
		dir = filepath.Dir(dir)
	}
}

// reachable replaces a good finding on a folder that libvirt's QEMU has to reach, and cannot.
func (c *doctorCmd) reachable(f finding, dir string) finding {
	if c.Libvirt == noLibvirt || f.Verdict != good {
		return f
	}
	if closed := closedTo(dir); closed != "" {
		return warn(f.Check, fmt.Sprintf("%s: %s is closed to other users", dir, closed),
			fmt.Sprintf("Open it (chmod o+x %s), because QEMU has to reach what lies below; all is well where QEMU runs as root.", closed))
	}
	return f
}

// closedTo returns the first folder on the way to dir that others may not enter, or "".
func closedTo(dir string) string {
	for at := dir; ; at = filepath.Dir(at) {
		if info, err := os.Stat(at); err == nil && info.Mode()&0o001 == 0 {
			return at
		}
		if at == filepath.Dir(at) {
			return ""
		}
	}
}
