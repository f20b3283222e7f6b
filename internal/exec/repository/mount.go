package repository

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/moby/sys/mountinfo"
	"github.com/rs/zerolog"
	"golang.org/x/sys/unix"

	"github.com/nasfleet/nasfleet/internal/exec/bounded"
	"github.com/nasfleet/nasfleet/internal/exec/proc"
	"github.com/nasfleet/nasfleet/messages"
)

// mountFailure is mount(8)'s exit status for "mount failure" (mount(8), section EXIT STATUS).
const mountFailure = 32

var errNoAnswer = errors.New("no answer in time")

// mount is one mount point: a folder of the host's own that exists while something is mounted there.
type mount struct {
	dir     string
	timeout time.Duration
	log     zerolog.Logger
	// daemon serves a FUSE mount as long as it runs; nil for the kernel's file systems.
	daemon *daemon
	// dead means that nobody answers any more: there is nothing to be polite to.
	dead bool
}

// attach mounts spec on a new folder. After an error nothing is left.
func attach(ctx context.Context, spec messages.Repository, o Options) (*mount, error) {
	opts, err := mountOptions(spec, o.MountOptions)
	if err != nil {
		return nil, err
	}
	dir, err := resolve(o.MountDir)
	if err != nil {
		return nil, messages.EnsureCode(messages.CodeInternal, err)
	}
	m := &mount{dir: dir, timeout: o.Timeout, log: o.Log}
	if err := m.prepare(); err != nil {
		return nil, messages.EnsureCode(messages.CodeMountFailed, err)
	}
	limited, cancel := context.WithTimeoutCause(ctx, m.timeout, errNoAnswer)
	defer cancel()
	if program, ok := fuseProgram(spec.Type); ok {
		err = m.serve(limited, program, spec.Address, opts)
	} else {
		err = m.mount(limited, spec, opts)
	}
	if err == nil {
		err = m.verify(limited)
	}
	if err == nil {
		m.followNoLinks(limited)
		return m, nil
	}
	switch {
	case ctx.Err() != nil:
		err = contextError(ctx, "mount "+spec.Address)
	case errors.Is(err, errNoAnswer):
		err = messages.Errorf(messages.CodeMountFailed, "mounting %s: no answer within %s", spec.Address, m.timeout)
	}
	return nil, errors.Join(messages.EnsureCode(messages.CodeMountFailed, err), m.detach())
}

// resolve makes a path absolute with the links of its parent resolved, as mountinfo shows it. The last
// element is not looked at: something dead may be mounted there.
func resolve(dir string) (string, error) {
	if dir == "" {
		return "", errors.New("no folder to mount on")
	}
	dir, err := filepath.Abs(dir)
	if err != nil {
		return "", err
	}
	if err := os.MkdirAll(filepath.Dir(dir), 0o700); err != nil {
		return "", err
	}
	parent, err := filepath.EvalSymlinks(filepath.Dir(dir))
	if err != nil {
		return "", err
	}
	return filepath.Join(parent, filepath.Base(dir)), nil
}

// prepare makes the mount point: what an earlier attempt left mounted there goes first, and a folder with
// something in it is refused.
func (m *mount) prepare() error {
	if err := m.unmount(); err != nil {
		return err
	}
	// Made anew: removing refuses whatever is not an empty folder.
	if err := unix.Rmdir(m.dir); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("mount point %s: %w", m.dir, err)
	}
	return os.Mkdir(m.dir, 0o700)
}

// mount runs mount(8).
func (m *mount) mount(ctx context.Context, spec messages.Repository, opts []string) error {
	err := run(ctx, proc.Spec{
		Path: "mount",
		Args: []string{"-t", spec.Type, "-o", strings.Join(opts, ","), "--", spec.Address, m.dir},
	})
	if proc.ExitCode(err) != mountFailure {
		return err
	}
	// The first are mount(8)'s words, the second those of mount.cifs.
	for _, words := range []string{"unknown filesystem type", "filesystem not supported"} {
		if strings.Contains(err.Error(), words) {
			return messages.Errorf(messages.CodeRepositoryUnsupported, "%w", err).
				WithHint("The host cannot mount %s: install its package (the one with mount.%s) or load its kernel module.", spec.Type, spec.Type)
		}
	}
	return err
}

// verify makes sure that a mount is really there and protected: mount(8) also ends with success
// when it did nothing (nofail), and a helper may drop options.
func (m *mount) verify(ctx context.Context) error {
	info, err := m.info()
	if err != nil {
		return err
	}
	if info == nil && m.daemon != nil {
		return m.gaveUp(ctx)
	}
	if info == nil {
		return fmt.Errorf("mount ended with success, but nothing is mounted on %s", m.dir)
	}
	have := strings.Split(info.Options, ",")
	for _, o := range protection() {
		if !slices.Contains(have, o) {
			return fmt.Errorf("the mount is not %s", o)
		}
	}
	return nil
}

// followNoLinks has the kernel follow no symbolic link below the mount point, whoever exchanges what lies there and
// when. Kernels before 5.10 cannot, and then what is opened was looked at before. The options of the mount itself stay.
func (m *mount) followNoLinks(ctx context.Context) {
	info, err := m.info()
	if err != nil || info == nil {
		return
	}
	flags := uintptr(unix.MS_REMOUNT | unix.MS_BIND | unix.MS_NOSYMFOLLOW)
	for o := range strings.SplitSeq(info.Options, ",") {
		flags |= map[string]uintptr{
			"ro": unix.MS_RDONLY, "nosuid": unix.MS_NOSUID, "nodev": unix.MS_NODEV, "noexec": unix.MS_NOEXEC,
			"noatime": unix.MS_NOATIME, "nodiratime": unix.MS_NODIRATIME, "relatime": unix.MS_RELATIME,
		}[o]
	}
	if flags&(unix.MS_NOATIME|unix.MS_RELATIME) == 0 {
		flags |= unix.MS_STRICTATIME
	}
	// To find the mount point the kernel may ask the server.
	_, _, err = bounded.Call(ctx, func() (struct{}, error) { return struct{}{}, unix.Mount("", m.dir, "", flags, "") })
	if err != nil {
		m.log.Debug().Err(err).Msg("symbolic links on the repository are followed by who opens them")
	}
}

// info returns what is mounted on the mount point, the topmost where there are several; nil for nothing.
func (m *mount) info() (*mountinfo.Info, error) {
	infos, err := mountinfo.GetMounts(func(i *mountinfo.Info) (skip, stop bool) { return i.Mountpoint != m.dir, false })
	if err != nil || len(infos) == 0 {
		return nil, err
	}
	return infos[len(infos)-1], nil
}

// abort fails whatever waits on the mount, and takes it away: processes and goroutines that hang in the
// kernel go on with an error. Without a FUSE program's end of the connection the kernel aborts it; of
// NFS and CIFS the forced unmount does.
func (m *mount) abort() {
	m.dead = true
	if m.daemon != nil {
		killHelpers(m.daemon.Process)
	}
	if err := m.unmount(); err != nil {
		m.log.Warn().Err(err).Msg("a lost repository")
	}
}

// detach takes the mount, its daemon and the mount point away.
func (m *mount) detach() error {
	err := m.unmount()
	if m.daemon != nil {
		err = errors.Join(err, m.daemon.end())
	}
	if err != nil {
		return err
	}
	if err := unix.Rmdir(m.dir); err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("mount point %s: %w", m.dir, err)
	}
	return nil
}

// unmount takes away all that is mounted on the mount point. What is busy or hangs is forced (NFS and FUSE
// then fail every request that waits) and detached: nobody finds it any more, and the kernel lets go
// of it with its last user. umount(8) is a child because umount(2) can hang and a child can be left behind;
// it must not look at the mount point (-c), which can hang as well.
func (m *mount) unmount() error {
	tries := [][]string{{"-c"}, {"-c", "-i", "-f", "-l"}, {"-c", "-i", "-f", "-l"}}
	if m.dead {
		tries = tries[1:]
	}
	for _, args := range tries {
		info, err := m.info()
		if err != nil || info == nil {
			return err
		}
		ctx, cancel := context.WithTimeoutCause(context.Background(), m.timeout, errNoAnswer)
		err = run(ctx, proc.Spec{Path: "umount", Args: append(args, "--", m.dir), Grace: grace})
		cancel()
		if err != nil {
			m.log.Warn().Err(err).Str("mount_point", m.dir).Msg("umount failed")
		}
	}
	if info, err := m.info(); err != nil || info != nil {
		return errors.Join(fmt.Errorf("%s cannot be unmounted", m.dir), err)
	}
	return nil
}

// run runs a child. When ctx ends first the child is killed together with the helpers it started:
// mount(8) leaves the work to mount.<type>, which would go on without it.
func run(ctx context.Context, spec proc.Spec) error {
	if err := context.Cause(ctx); err != nil {
		return err
	}
	p, err := proc.Start(spec)
	if err != nil {
		return err
	}
	select {
	case <-p.Done():
		return p.Err()
	case <-ctx.Done():
		killHelpers(p)
		return errors.Join(context.Cause(ctx), p.Kill())
	}
}

// killHelpers kills a child and what it started: proc makes each child the leader of a process group.
func killHelpers(p *proc.Process) {
	// An error means that the group has just ended.
	_ = unix.Kill(-p.PID(), unix.SIGKILL)
}
