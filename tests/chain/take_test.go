package chain

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"

	"github.com/oklog/ulid/v2"

	"github.com/nasfleet/nasfleet/messages"
	"github.com/nasfleet/nasfleet/tests/lab"
)

// taking is a backup that was chosen at random.
type taking struct {
	mode      messages.Mode
	encrypted bool
	// incremental says whether it has to become one.
	incremental bool
	args        []string
}

func (r *run) choose() taking {
	// Mostly as the chain is: it would be a short one otherwise.
	k := taking{
		mode: []messages.Mode{
			messages.ModeIncremental, messages.ModeIncremental, messages.ModeIncremental, messages.ModeAuto, messages.ModeAuto,
			messages.ModeAuto, messages.ModeAuto, messages.ModeFull, "",
		}[r.rnd.IntN(9)],
		encrypted: r.rnd.IntN(2) == 0,
	}
	tip := r.find(r.tip)
	if tip != nil && r.rnd.IntN(6) > 0 {
		k.encrypted = tip.encrypted
	}
	k.args = []string{"take", "--zone", zone, "--host", name, "--vm", vmName, "--repo", r.nas, "--attempts", "1"}
	if k.mode != "" {
		k.args = append(k.args, "--mode", string(k.mode))
	}
	if k.encrypted {
		k.args = append(k.args, "--encrypt", "--passphrase-file", r.passphrase)
	}
	for _, flag := range []string{"--compress", "--verify"} {
		if r.rnd.IntN(2) == 0 {
			k.args = append(k.args, flag)
		}
	}
	k.incremental = r.continues(k.encrypted) &&
		(k.mode == messages.ModeIncremental || k.mode == messages.ModeAuto && tip.links < messages.DefaultFullEvery)
	return k
}

// took holds a job's end against the model: the mode is the one that it had to be, and an incremental fails
// only where nothing can be continued. mayFail is for one that was made to fail or to end.
func (r *run) took(k taking, ev messages.Event, mayFail bool) {
	r.t.Helper()
	switch {
	case ev.Kind == messages.KindSucceeded:
		b := backup{id: ev.BackupID, parent: ev.Backup.Parent, encrypted: k.encrypted}
		switch {
		case k.incremental:
			b.links = r.find(r.tip).links + 1
			if b.parent != r.tip || ev.Backup.Mode != messages.ModeIncremental {
				r.t.Errorf("%v: not an incremental of %s but %s of %q: %s", k.args, r.tip, ev.Backup.Mode, b.parent, ev.Backup.FullReason)
			}
		case b.parent != "" || ev.Backup.Mode != messages.ModeFull || k.mode == messages.ModeIncremental:
			r.t.Errorf("%v: not a full backup but %s of %q", k.args, ev.Backup.Mode, b.parent)
		case k.mode != "":
			b.links = 1
		}
		r.add(b)
		r.did[fmt.Sprintf("%s backup as %s", ev.Backup.Mode, orNone(string(k.mode)))]++
		r.restores(r.backups[len(r.backups)-1])
	case k.mode == messages.ModeIncremental && !k.incremental && ev.Kind == messages.KindFailed && ev.Error.Code == messages.CodeChainBroken:
		r.did["refused incremental"]++
	case mayFail:
		r.did[fmt.Sprintf("%s: %s", ev.Kind, ev.Error.Code)]++
	default:
		r.t.Errorf("%v: %s: %v", k.args, ev.Kind, ev.Error)
	}
}

func orNone(mode string) string {
	if mode == "" {
		return "no mode"
	}
	return mode
}

// room prunes where there are many backups, and says whether there is room for one more.
func (r *run) room() bool {
	r.t.Helper()
	if len(r.backups) < mostBackups {
		return true
	}
	r.prune()
	return len(r.backups) < mostBackups
}

func (r *run) backup() {
	r.t.Helper()
	if !r.room() {
		b := r.backups[0]
		r.host.mustJob(r.t, "delete", "--backup", b.id, "--cascade")
		r.remove(r.withChildren(b.id)...)
	}
	k := r.choose()
	ev, err := r.host.job(k.args...)
	if err != nil {
		r.t.Fatal(err)
	}
	r.took(k, ev, false)
}

// backupWithoutSpace takes a backup while the NAS is full.
func (r *run) backupWithoutSpace() {
	r.t.Helper()
	r.writeUpTo(4 * lab.MiB)
	filler := filepath.Join(r.nas, "filler")
	r.fillNAS(filler)
	k := r.choose()
	ev, err := r.host.job(k.args...)
	if err := os.Remove(filler); err != nil {
		r.t.Error(err)
	}
	if err != nil {
		r.t.Fatal(err)
	}
	r.took(k, ev, true)
}

// fillNAS makes a file that leaves noSpace.
func (r *run) fillNAS(path string) {
	r.t.Helper()
	var fs syscall.Statfs_t
	if err := syscall.Statfs(r.nas, &fs); err != nil {
		r.t.Fatal(err)
	}
	// The file system keeps some for itself: the rest is written until it is full.
	size := int64(fs.Bfree)*fs.Bsize - 64*lab.MiB
	lab.Run(r.t, "fallocate", "--length", fmt.Sprint(size), path)
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		r.t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	for block := make([]byte, 64<<10); err == nil; {
		var n int
		n, err = f.Write(block)
		size += int64(n)
	}
	if !errors.Is(err, syscall.ENOSPC) {
		r.t.Fatal(err)
	}
	if err := f.Truncate(size - noSpace); err != nil {
		r.t.Fatal(err)
	}
}

// backupOutOfTime takes a backup that is slower than its time.
func (r *run) backupOutOfTime() {
	r.t.Helper()
	r.writeUpTo(6 * lab.MiB)
	k := r.choose()
	ev, err := r.host.job(append(k.args, "--bandwidth", "1", "--timeout", "1s")...)
	if err != nil {
		r.t.Fatal(err)
	}
	r.took(k, ev, true)
}

// cancelled cancels a backup as soon as libvirt runs it.
func (r *run) cancelled() {
	r.t.Helper()
	r.writeUpTo(6 * lab.MiB)
	k, id := r.choose(), ulid.Make().String()
	type end struct {
		ev  messages.Event
		err error
	}
	ended := make(chan end, 1)
	go func() {
		ev, err := r.host.job(append(k.args, "--bandwidth", "1", "--job-id", id)...)
		ended <- end{ev, err}
	}()
	var e *end
	lab.EventuallyIn(r.t, patience, "libvirt runs the backup", func() bool {
		select {
		case got := <-ended:
			e = &got
			return true
		default:
			return r.vm.HasBackupJob(r.t)
		}
	})
	if e == nil {
		_, _, refused := r.host.publisher("cancel", id)
		got := <-ended
		e = &got
		if refused != nil && got.ev.Kind == messages.KindCancelled {
			r.t.Errorf("the job was cancelled, and publisher says that it was not: %v", refused)
		}
	}
	if e.err != nil {
		r.t.Fatal(e.err)
	}
	r.took(k, e.ev, true)
}
