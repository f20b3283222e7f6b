package repository

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"github.com/nasfleet/nasfleet/messages"
)

// newImage makes an ext4 file system in a file and says how to mount it.
func newImage(t *testing.T, mib int64) (messages.Repository, string) {
	t.Helper()
	image := filepath.Join(t.TempDir(), "nas.img")
	check(t, os.WriteFile(image, nil, 0o600))
	check(t, os.Truncate(image, mib<<20))
	if out, err := exec.Command("mkfs.ext4", "-q", "-F", "-O", "^has_journal", image).CombinedOutput(); err != nil {
		t.Fatalf("mkfs.ext4: %v: %s", err, out)
	}
	return messages.Repository{Type: "ext4", Address: image, MountOptions: "loop"}, image
}

func mountDir(t *testing.T) string {
	t.Helper()
	return filepath.Join(t.TempDir(), "run", "job")
}

func mounted(t *testing.T, dir string) *mountinfo.Info {
	t.Helper()
	info, err := (&mount{dir: dir}).info()
	check(t, err)
	return info
}

func TestMount(t *testing.T) {
	spec, image := newImage(t, 32)
	dir := mountDir(t)
	r, err := Open(t.Context(), spec, Options{MountDir: dir})
	check(t, err)
	info := mounted(t, dir)
	if info == nil || info.FSType != "ext4" {
		t.Fatalf("mounted: %+v", info)
	}
	for _, o := range protection() {
		if !strings.Contains(","+info.Options+",", ","+o+",") {
			t.Errorf("not %s: %s", o, info.Options)
		}
	}
	free, err := r.FreeBytes(t.Context())
	check(t, err)
	if free < 16<<20 || free > 32<<20 {
		t.Errorf("%d bytes free", free)
	}
	loc := location()
	b := commit(t, r, loc)
	if !strings.HasPrefix(b.Dir, dir) {
		t.Errorf("backup in %s", b.Dir)
	}
	check(t, r.Close())
	wantUnmounted(t, dir, image)
	check(t, r.Close())

	r, err = Open(t.Context(), spec, Options{MountDir: dir})
	check(t, err)
	_, err = r.Find(t.Context(), ref(loc))
	check(t, err)
	check(t, r.Close())
	wantUnmounted(t, dir, image)
}

// TestMountFollowsNoLinks: neither we nor a storage daemon can be led outside by a link, even one that was put there
// after everything was looked at.
func TestMountFollowsNoLinks(t *testing.T) {
	for _, options := range []string{"loop", "loop,ro", "loop,noatime,nodiratime", "loop,strictatime"} {
		spec, _ := newImage(t, 8)
		spec.MountOptions = options
		dir := mountDir(t)
		r, err := Open(t.Context(), spec, Options{MountDir: dir})
		check(t, err)
		have := strings.Split(mounted(t, dir).Options, ",")
		for _, o := range append(protection(), strings.Split(options, ",")[1:]...) {
			if !slices.Contains(have, o) && o != "strictatime" {
				t.Errorf("%s: mounted with %s", options, have)
			}
		}
		if options != "loop,ro" {
			link := filepath.Join(dir, "link")
			check(t, os.Symlink("/etc/passwd", link))
			if _, err := os.ReadFile(link); !errors.Is(err, unix.ELOOP) {
				t.Errorf("%s: a link was followed: %v", options, err)
			}
		}
		check(t, r.Close())
	}
}

func TestMountFailures(t *testing.T) {
	_, image := newImage(t, 8)
	empty := filepath.Join(t.TempDir(), "empty")
	check(t, os.WriteFile(empty, make([]byte, 1<<20), 0o600))
	const failed, unsupported = messages.CodeMountFailed, messages.CodeRepositoryUnsupported
	for name, c := range map[string]struct {
		spec  messages.Repository
		code  messages.Code
		words string
	}{
		"no such image": {messages.Repository{Type: "ext4", Address: "/does/not/exist", MountOptions: "loop"}, failed, "/does/not/exist"},
		"no ext4":       {messages.Repository{Type: "ext4", Address: empty, MountOptions: "loop"}, failed, "wrong fs type"},
		"bad option":    {messages.Repository{Type: "ext4", Address: image, MountOptions: "loop,bogus=1"}, failed, "bad option"},
		"did nothing":   {messages.Repository{Type: "ext4", Address: "/dev/not-there", MountOptions: "nofail"}, failed, "nothing is mounted"},
		"unknown type":  {messages.Repository{Type: "bogusfs", Address: "nas:/x"}, unsupported, "unknown filesystem type"},
		"no program":    {messages.Repository{Type: "fuse.bogusfs", Address: "nas:/x"}, unsupported, "bogusfs"},
		"not a folder":  {messages.Repository{Type: "dir", Address: image}, failed, "not a directory"},
		"no folder":     {messages.Repository{Type: "dir", Address: "/does/not/exist"}, failed, "no such file"},
	} {
		t.Run(name, func(t *testing.T) {
			dir := mountDir(t)
			_, err := Open(t.Context(), c.spec, Options{MountDir: dir, MountOptions: []string{"bogus"}})
			wantCode(t, err, c.code)
			if !strings.Contains(err.Error(), c.words) {
				t.Errorf("%q is not in %v", c.words, err)
			}
			wantUnmounted(t, dir, c.spec.Address)
		})
	}
}

func TestMountPointInUse(t *testing.T) {
	spec, image := newImage(t, 8)
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	check(t, os.WriteFile(file, nil, 0o600))
	_, err := Open(t.Context(), spec, Options{MountDir: dir})
	wantCode(t, err, messages.CodeMountFailed)
	if _, err := os.Stat(file); err != nil || mounted(t, dir) != nil || hasLoop(t, image) {
		t.Fatalf("%v, %v", err, mounted(t, dir))
	}
}

func TestMountOverLeftover(t *testing.T) {
	spec, image := newImage(t, 8)
	dir := mountDir(t)
	_, err := Open(t.Context(), spec, Options{MountDir: dir})
	check(t, err) // never closed: the worker was killed
	r, err := Open(t.Context(), spec, Options{MountDir: dir})
	check(t, err)
	if n, err := mountinfo.GetMounts(mountinfo.SingleEntryFilter(dir)); err != nil || len(n) != 1 {
		t.Fatalf("%v, %v", n, err)
	}
	check(t, r.Close())
	wantUnmounted(t, dir, image)
}

func TestCloseBusy(t *testing.T) {
	spec, image := newImage(t, 8)
	dir := mountDir(t)
	r, err := Open(t.Context(), spec, Options{MountDir: dir})
	check(t, err)
	busy, err := os.Create(filepath.Join(dir, "busy"))
	check(t, err)
	check(t, r.Close())
	wantUnmounted(t, dir, "")
	_, err = busy.Write([]byte("still there"))
	check(t, err)
	check(t, busy.Close())
	wantUnmounted(t, dir, image)
}

// umount that hangs, as on a NAS that is gone, until it is told to be lazy.
func TestCloseHangs(t *testing.T) {
	spec, image := newImage(t, 8)
	dir := mountDir(t)
	r, err := Open(t.Context(), spec, Options{MountDir: dir, Timeout: 500 * time.Millisecond})
	check(t, err)
	pid := filepath.Join(t.TempDir(), "pid")
	fakeCommand(t, "umount", fmt.Sprintf("case \"$*\" in *-l*) exec /usr/bin/umount \"$@\";; esac\necho $$ >%s\nexec sleep 1000\n", pid))
	check(t, r.Close())
	wantUnmounted(t, dir, image)
	data, err := os.ReadFile(pid)
	check(t, err)
	wantGone(t, strings.TrimSpace(string(data)))
}

// fakeCommand puts a command first in PATH that runs a script, with $dir for its last argument.
func fakeCommand(t *testing.T, name, script string) {
	t.Helper()
	bin := t.TempDir()
	text := "#!/bin/sh\nfor dir; do :; done\n" + script
	check(t, os.WriteFile(filepath.Join(bin, name), []byte(text), 0o700))
	t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
}

// A mount command that hangs, with a helper of its own, after it has mounted already.
func TestMountStuck(t *testing.T) {
	spec, image := newImage(t, 8)
	pids := filepath.Join(t.TempDir(), "pids")
	fakeCommand(t, "mount", fmt.Sprintf("/usr/bin/mount \"$@\"\nsleep 1000 &\necho $$ $! >%s\nwait\n", pids))
	for name, stop := range map[string]func() (context.Context, context.CancelFunc, time.Duration, messages.Code){
		"timeout": func() (context.Context, context.CancelFunc, time.Duration, messages.Code) {
			return t.Context(), func() {}, 500 * time.Millisecond, messages.CodeMountFailed
		},
		"cancelled": func() (context.Context, context.CancelFunc, time.Duration, messages.Code) {
			ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
			return ctx, cancel, time.Hour, messages.CodeTimeout
		},
	} {
		t.Run(name, func(t *testing.T) {
			ctx, cancel, timeout, code := stop()
			defer cancel()
			dir := mountDir(t)
			_, err := Open(ctx, spec, Options{MountDir: dir, Timeout: timeout})
			wantCode(t, err, code)
			wantUnmounted(t, dir, image)
			data, err := os.ReadFile(pids)
			check(t, err)
			for _, pid := range strings.Fields(string(data)) {
				wantGone(t, pid)
			}
		})
	}
}

// wantGone waits for a process to be gone, or a zombie that its parent has yet to notice.
func wantGone(t *testing.T, pid string) {
	t.Helper()
	waitFor(t, "process "+pid+" to end", func() bool {
		stat, err := os.ReadFile("/proc/" + pid + "/stat")
		return err != nil || strings.Contains(string(stat), ") Z ")
	})
}

// A helper that drops the options it was given.
func TestMountUnprotected(t *testing.T) {
	spec, image := newImage(t, 8)
	fakeCommand(t, "mount", "exec /usr/bin/mount -o loop "+spec.Address+" \"$dir\"\n")
	dir := mountDir(t)
	_, err := Open(t.Context(), spec, Options{MountDir: dir})
	wantCode(t, err, messages.CodeMountFailed)
	if !strings.Contains(err.Error(), "nosuid") {
		t.Fatal(err)
	}
	wantUnmounted(t, dir, image)
}

func TestTargetFull(t *testing.T) {
	spec, image := newImage(t, 8)
	dir := mountDir(t)
	r, err := Open(t.Context(), spec, Options{MountDir: dir})
	check(t, err)
	loc := Location{VM: testVM, ID: testID}
	p, err := r.Create(t.Context(), loc)
	check(t, err)
	wantCode(t, p.WriteFile(t.Context(), "big", make([]byte, 9<<20)), messages.CodeTargetFull)
	wantCode(t, p.CopyIn(t.Context(), image, "big"), messages.CodeTargetFull)
	if n := names(t, p.Dir()); len(n) != 0 {
		t.Fatalf("half a file is left: %v", n)
	}

	// No room is left for the manifest.
	fill(t, p)
	filler, err := os.Create(filepath.Join(dir, "filler"))
	check(t, err)
	for size := 1 << 20; size > 0; {
		if _, err := filler.Write(make([]byte, size)); errors.Is(err, unix.ENOSPC) {
			size /= 2
		} else {
			check(t, err)
		}
	}
	check(t, filler.Close())
	if free, err := r.FreeBytes(t.Context()); err != nil || free > 4096 {
		t.Fatalf("%d bytes free, %v", free, err)
	}
	_, err = p.Commit(t.Context(), manifest(loc))
	wantCode(t, err, messages.CodeTargetFull)
	_, err = r.Find(t.Context(), ref(loc))
	wantCode(t, err, messages.CodeBackupNotFound)
	check(t, p.Discard(t.Context()))
	wantAbsent(t, filepath.Join(dir, testVM))
	check(t, os.Remove(filepath.Join(dir, "filler")))
	commit(t, r, loc)
	check(t, r.Close())
	wantUnmounted(t, dir, image)
}

func TestReadOnly(t *testing.T) {
	spec, image := newImage(t, 8)
	spec.MountOptions += ",ro"
	dir := mountDir(t)
	r, err := Open(t.Context(), spec, Options{MountDir: dir})
	check(t, err)
	_, err = r.Create(t.Context(), location())
	wantCode(t, err, messages.CodeTargetWriteFailed)
	check(t, r.Close())
	wantUnmounted(t, dir, image)
}

func TestFreeBytes(t *testing.T) {
	for _, c := range []struct {
		st   unix.Statfs_t
		want int64
	}{
		{unix.Statfs_t{Bsize: 4096, Blocks: 10, Bavail: 3}, 12288},
		{unix.Statfs_t{Bsize: 1 << 20, Frsize: 512, Blocks: 10, Bavail: 3}, 1536}, // in fragments
		{unix.Statfs_t{Bsize: 4096}, math.MaxInt64},                               // does not tell
		{unix.Statfs_t{Bsize: 4096, Blocks: 10, Bavail: math.MaxUint64}, math.MaxInt64},
	} {
		if got := freeBytes(c.st); got != c.want {
			t.Errorf("%+v: got %d, want %d", c.st, got, c.want)
		}
	}
}

// freePort returns a TCP port of the loopback that nobody listens on.
func freePort(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	check(t, err)
	defer closeQuietly(l)
	return strconv.Itoa(l.Addr().(*net.TCPAddr).Port)
}
