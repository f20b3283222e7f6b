package chain

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"

	"github.com/nasfleet/nasfleet/messages"
	"github.com/nasfleet/nasfleet/tests/lab"
)

// taking is a backup that was chosen at random.
type taking struct {
	mode      messages.Mode
	encrypted bool
	// incremental says whether it has to become one.
	incremental bool
	// stopped says that the VM does not run.
	stopped bool
	args    []string
}

func (k taking) of() string {
	if k.stopped {
		return " of the stopped VM"
	}
	return ""
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
	r.tookAt(k, ev, r.moment(), mayFail)
}

// tookAt is took for a backup of a moment that may have passed.
func (r *run) tookAt(k taking, ev messages.Event, at map[string]content, mayFail bool) {
	r.t.Helper()
	switch {
	case ev.Kind == messages.KindSucceeded:
		b := backup{id: ev.BackupID, parent: ev.Backup.Parent, encrypted: k.encrypted, disks: at}
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
		if k.stopped {
			b.links = 0 // what comes after continues what this one does
		}
		r.add(b)
		r.did[fmt.Sprintf("%s backup%s as %s", ev.Backup.Mode, k.of(), orNone(string(k.mode)))]++
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
