package repository

import (
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nasfleet/nasfleet/messages"
)

// hang stops a server's connections: what was mounted stays so and nothing answers.
func (s *sshServer) hang(t *testing.T) {
	t.Helper()
	connections := s.descendants(t)
	if len(connections) == 0 {
		t.Fatal("no connection")
	}
	for _, pid := range connections {
		check(t, unix.Kill(pid, unix.SIGSTOP))
	}
}

// openWatched opens a server's repository, and returns where it says that it is lost.
func openWatched(t *testing.T, s *sshServer, dir string, stall time.Duration) (*Repository, <-chan error) {
	t.Helper()
	lost := make(chan error, 2)
	r, err := Open(t.Context(), s.spec, Options{MountDir: dir, StallTimeout: stall, Lost: func(err error) { lost <- err }})
	check(t, err)
	return r, lost
}

func wantLost(t *testing.T, lost <-chan error) {
	t.Helper()
	select {
	case err := <-lost:
		wantCode(t, err, messages.CodeRepositoryLost)
	case <-time.After(time.Minute):
		t.Fatal("nobody noticed")
	}
}

// A server that hangs is noticed whatever the job does at that moment, each call ends with the code of it,
// and nothing is left.
func TestEveryCallEndsOnAHangingServer(t *testing.T) {
	local := filepath.Join(t.TempDir(), "local")
	check(t, os.WriteFile(local, []byte("x"), 0o600))
	loc := location()
	for name, f := range map[string]func(context.Context, *Repository, *Partial, *Backup) error{
		"create": func(ctx context.Context, r *Repository, _ *Partial, _ *Backup) error {
			_, err := r.Create(ctx, Location{VM: "another", ID: testID})
			return err
		},
		"path": func(ctx context.Context, _ *Repository, p *Partial, _ *Backup) error {
			_, err := p.Path(ctx, "unseen.qcow2")
			return err
		},
		"write": func(ctx context.Context, _ *Repository, p *Partial, _ *Backup) error {
			return p.WriteFile(ctx, "new.xml", []byte("x"))
		},
		"copy in": func(ctx context.Context, _ *Repository, p *Partial, _ *Backup) error {
			return p.CopyIn(ctx, local, "new.digests")
		},
		"commit": func(ctx context.Context, _ *Repository, p *Partial, _ *Backup) error {
			_, err := p.Commit(ctx, manifest(p.loc))
			return err
		},
		"discard": func(ctx context.Context, _ *Repository, p *Partial, _ *Backup) error { return p.Discard(ctx) },
		"find": func(ctx context.Context, r *Repository, _ *Partial, _ *Backup) error {
			_, err := r.Find(ctx, messages.BackupRef{ID: testID, VM: "another"})
			return err
		},
		"read": func(ctx context.Context, _ *Repository, _ *Partial, b *Backup) error {
			_, err := b.ReadFile(ctx, "domain.xml", 1<<20)
			return err
		},
		"list": func(ctx context.Context, r *Repository, _ *Partial, _ *Backup) error {
			_, _, err := r.List(ctx, loc.BackupPath, "")
			return err
		},
		"delete": func(ctx context.Context, r *Repository, _ *Partial, _ *Backup) error { return r.Delete(ctx, ref(loc)) },
		"sweep":  func(ctx context.Context, r *Repository, _ *Partial, _ *Backup) error { return r.Sweep(ctx, loc) },
		"free": func(ctx context.Context, r *Repository, _ *Partial, _ *Backup) error {
			_, err := r.FreeBytes(ctx)
			return err
		},
		"nothing": func(_ context.Context, r *Repository, _ *Partial, _ *Backup) error {
			<-r.watched
			return r.lost
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s, dir := startSSH(t), mountDir(t)
			r, lost := openWatched(t, s, dir, 2*time.Second)
			commit(t, r, loc)
			b, err := r.Find(t.Context(), ref(loc))
			check(t, err)
			p, err := r.Create(t.Context(), Location{VM: testVM, ID: "01J8ZQ5V9K3N7R2T4W6Y8A0B1D"})
			check(t, err)
			fill(t, p)
			s.hang(t)
			// No deadline of the test's own.
			wantCode(t, f(context.Background(), r, p, b), messages.CodeRepositoryLost)
			wantLost(t, lost)
			_, err = r.Create(context.Background(), loc)
			wantCode(t, err, messages.CodeRepositoryLost)
			wantCode(t, r.Check(t.Context()), messages.CodeRepositoryLost)
			began := time.Now()
			check(t, r.Close())
			if took := time.Since(began); took > 20*time.Second {
				t.Errorf("Close took %s", took)
			}
			wantUnmounted(t, dir, "")
			waitFor(t, "the programs to end", func() bool { return len(clients(t, s)) == 0 })
		})
	}
}

// The mount and its program can go in other ways. Each is noticed at once, long before the timeout.
func TestAMountThatGoesIsLost(t *testing.T) {
	for name, f := range map[string]func(*testing.T, *sshServer, *Repository){
		"the server ends": func(t *testing.T, s *sshServer, _ *Repository) {
			for _, pid := range append(s.descendants(t), s.pid) {
				check(t, unix.Kill(pid, unix.SIGKILL))
			}
		},
		"sshfs is killed": func(t *testing.T, _ *sshServer, r *Repository) {
			check(t, unix.Kill(r.mnt.daemon.PID(), unix.SIGKILL))
		},
		"somebody unmounts it": func(t *testing.T, _ *sshServer, r *Repository) {
			check(t, unix.Unmount(r.dir, unix.MNT_DETACH))
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s, dir := startSSH(t), mountDir(t)
			r, lost := openWatched(t, s, dir, time.Hour)
			f(t, s, r)
			wantLost(t, lost)
			check(t, r.Close())
			wantUnmounted(t, dir, "")
			waitFor(t, "the programs to end", func() bool { return len(clients(t, s)) == 0 })
		})
	}
}

func TestAHealthyRepositoryIsNotLost(t *testing.T) {
	lost := make(chan error, 1)
	spec := messages.Repository{Type: messages.RepositoryDir, Address: t.TempDir()}
	r, err := Open(t.Context(), spec, Options{StallTimeout: 2 * time.Second, Lost: func(err error) { lost <- err }})
	check(t, err)
	select {
	case err := <-lost:
		t.Error(err)
	case <-time.After(3 * time.Second): // longer than the timeout
	}
	check(t, r.Check(t.Context()))
	check(t, r.Close())
}
