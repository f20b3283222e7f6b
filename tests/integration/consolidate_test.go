package integration

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/nasfleet/nasfleet/messages"
	"github.com/nasfleet/nasfleet/tests/lab"
)

// opening are the flags to open an encrypted backup with.
func (f features) opening(w *world, t *testing.T) []string {
	if !f.encrypt {
		return nil
	}
	return []string{"--passphrase-file", w.passphraseFile(t, passphrase)}
}

// consolidate makes a full backup of a chain, which must show the moment of its newest backup.
func (m *moments) consolidate(t *testing.T, f features, top messages.Event, args ...string) messages.Event {
	t.Helper()
	args = append([]string{"consolidate", "--backup", top.BackupID}, args...)
	ev := m.w.mustJob(t, append(args, f.opening(m.w, t)...)...)
	was, now := top.Backup, ev.Backup
	if now.ID != ev.JobID || now.Mode != messages.ModeFull || now.Parent != "" || now.ConsolidatedFrom != top.BackupID {
		t.Errorf("it is no full backup of %s: %s", top.BackupID, asJSON(now))
	}
	if !now.CreatedAt.Equal(was.CreatedAt) || now.Quiesced != was.Quiesced || now.VirtualBytes != was.VirtualBytes || now.VM != was.VM {
		t.Errorf("it shows another moment:\n%s\n%s", asJSON(was), asJSON(now))
	}
	m.at[ev.BackupID] = m.at[top.BackupID]
	return ev
}

// TestConsolidate makes a full backup of the chain of a running VM, in each way that one can be stored in. It
// restores to the bytes of the chain's newest moment, with nasfleet and without; the old chain goes, and
// incrementals go on.
func TestConsolidate(t *testing.T) {
	t.Parallel()
	l := lab.Libvirtd(t)
	w := newWorld(t, l.URI)
	disks := twoDisks(t, w)
	vm := l.DefineVM(t, lab.VMOptions{Name: "up", Disks: disks})
	for i, f := range []features{{}, {compress: true}, {compress: true, encrypt: true, verify: true}} {
		t.Run(f.String(), func(t *testing.T) {
			m, path := newMoments(w, disks), fmt.Sprint("chain", i)
			take := func(mode string) messages.Event {
				t.Helper()
				ev := w.take(t, append(f.flags(w, t), "--vm", "up", "--mode", mode, "--backup-path", path)...)
				m.keep(t, ev)
				return ev
			}
			chain := []messages.Event{take("full")}
			for step := range int64(3) {
				vm.Write(t, "vda", (20+step)*lab.MiB+4096, lab.MiB, byte(0x10+step))
				vm.Write(t, "vda", 150*lab.MiB+8*step*lab.MiB, 2*lab.MiB, byte(0x20+step)) // where nothing was
				vm.Discard(t, "vda", (2+8*step)*lab.MiB, 3*lab.MiB+64<<10)                 // back to zero
				vm.Write(t, "vda", 200*lab.MiB-512, 512, byte(0x30+step))
				vm.Write(t, "vdb", step*lab.MiB, lab.MiB, byte(0x40+step))
				chain = append(chain, take("incremental"))
			}
			full, middle, top := chain[0], chain[1], chain[3]

			before := checkpoints(t, l, "up")
			whole := m.consolidate(t, f, top, "--verify")
			older := m.consolidate(t, f, middle)
			if now := checkpoints(t, l, "up"); !slices.Equal(before, now) {
				t.Errorf("the checkpoints were %v and are %v", before, now)
			}
			for _, ev := range append(slices.Clone(chain), whole, older) {
				m.check(t, f, ev)
			}
			w.mustJob(t, append([]string{"verify", "--backup", whole.BackupID}, f.opening(w, t)...)...)
			dir := filepath.Join(w.nas, path, "up", whole.BackupID)
			file := filepath.Join(dir, whole.Backup.Disks[0].File)
			byHandMatches(t, w, f, file, m.at[top.BackupID]["vda"])
			sameFile(t, filepath.Join(dir, "domain.xml"), filepath.Join(w.nas, path, "up", top.BackupID, "domain.xml"))

			// The newest incremental of the old chain goes: the checkpoint is held by the new backup.
			w.mustJob(t, "delete", "--backup", full.BackupID, "--cascade")
			if now := checkpoints(t, l, "up"); !slices.Equal(before, now) {
				t.Errorf("with the old chain went the checkpoint of the new backup: %v are %v", before, now)
			}
			vm.Write(t, "vda", 30*lab.MiB, lab.MiB, 0x77)
			vm.Discard(t, "vda", 150*lab.MiB, lab.MiB)
			next := take("incremental")
			isIncremental(t, next, whole.BackupID)
			for _, ev := range []messages.Event{whole, older, next} {
				m.check(t, f, ev)
			}
			// And the chain of that once more, in another format.
			other := f
			other.compress = !f.compress
			again := m.consolidate(t, f, next, fmt.Sprintf("--compress=%t", other.compress))
			m.check(t, f, again)
			if again.Backup.Compressed != other.compress {
				t.Errorf("compressed is %t", again.Backup.Compressed)
			}
			w.nothingLeft(t)
		})
	}
	vm.Running(t)
}

// byHandMatches checks a backup's file with qemu-img alone, and compares it with what it should be.
func byHandMatches(t *testing.T, w *world, f features, file string, want original) {
	t.Helper()
	qemuImg(t, f.encrypt, w.keyFile(t), file, "check")
	out := filepath.Join(w.dir, "by-hand.raw")
	if f.encrypt {
		lab.Run(t, "qemu-img", "convert", "--object", "secret,id=p,file="+w.keyFile(t), "--image-opts", luksOpts(file), "-O", "raw", out)
	} else {
		lab.Run(t, "qemu-img", "convert", "-f", "qcow2", "-O", "raw", file, out)
	}
	compare(t, want.format, want.path, "raw", out)
	if err := os.Remove(out); err != nil {
		t.Error(err)
	}
}

func sameFile(t *testing.T, a, b string) {
	t.Helper()
	x, err := os.ReadFile(a)
	if err != nil {
		t.Fatal(err)
	}
	y, err := os.ReadFile(b)
	if err != nil || string(x) != string(y) {
		t.Errorf("%s and %s differ (%v)", a, b, err)
	}
}

// TestConsolidateIsRefused: a chain with a damaged link becomes no backup, nor does one whose protection would be
// lost, one that cannot be opened, and a full backup.
func TestConsolidateIsRefused(t *testing.T) {
	t.Parallel()
	l := lab.Libvirtd(t)
	w := newWorld(t, l.URI)
	c := newChained(t, w, l, "vm")
	f := features{encrypt: true}
	var plain, sealed []messages.Event
	for _, mode := range []string{"full", "incremental", "incremental"} {
		c.change(t)
		plain = append(plain, c.take(t, "--mode", mode))
		sealed = append(sealed, c.take(t, append(f.flags(w, t), "--mode", mode, "--backup-path", "sealed")...))
	}
	backups := len(w.ls(t))
	usage := func(want string, args ...string) {
		t.Helper()
		if _, errs, code := w.try(append([]string{"consolidate"}, args...)...); code != 2 || !strings.Contains(errs, want) {
			t.Errorf("%v: exit code %d, %s", args, code, errs)
		}
	}
	top := sealed[2].BackupID
	usage("full one already", "--backup", plain[0].BackupID)
	usage("no passphrase", "--backup", top)
	usage("is encrypted", append(f.opening(w, t), "--backup", top, "--no-encrypt")...)
	usage("has no passphrase", "--backup", plain[2].BackupID, "--encrypt")
	w.mustFail(t, messages.CodeWrongPassphrase, "consolidate", "--backup", top, "--passphrase-file", w.passphraseFile(t, "another"))

	file := filepath.Join(w.nas, "vm", plain[1].BackupID, "vda.qcow2")
	flip(t, file, dataOffset(t, file, false, "").file)
	ev := w.mustFail(t, messages.CodeBackupCorrupt, "consolidate", "--backup", plain[2].BackupID)
	if !strings.Contains(ev.Error.Message, "vda") {
		t.Errorf("the message does not name the disk: %s", ev.Error.Message)
	}
	lab.Run(t, "mv", filepath.Dir(file), filepath.Dir(file)+".away")
	w.mustFail(t, messages.CodeChainBroken, "consolidate", "--backup", plain[2].BackupID)
	lab.Run(t, "mv", filepath.Dir(file)+".away", filepath.Dir(file))
	if n := len(w.ls(t)); n != backups {
		t.Errorf("%d backups became %d", backups, n)
	}
	for _, dir := range []string{filepath.Join(w.nas, "vm"), filepath.Join(w.nas, "sealed", "vm")} {
		if entries, err := os.ReadDir(dir); err != nil || len(entries) != 3 {
			t.Errorf("%s holds %v (%v)", dir, entries, err)
		}
	}
	w.nothingLeft(t)
}

// TestConsolidateKilled kills the worker while it copies, and has the next one, which knows no libvirt, bring the job to
// its end: one good backup, and nothing else. A job that is cancelled leaves nothing at all.
func TestConsolidateKilled(t *testing.T) {
	t.Parallel()
	l := lab.Libvirtd(t)
	w := newWorld(t, l.URI, "--ack-wait", "3s")
	c := newNoisy(t, w, l, "vm")
	c.take(t, "--mode", "full")
	c.changeMuch(t)
	top := c.take(t, "--mode", "incremental")
	slowly := func() (job string) {
		job = newJobID()
		copying := w.watchPhase(t, job, messages.PhaseCopying)
		w.publisher(t, "consolidate", "--backup", top.BackupID, "--bandwidth", "4", "--job-id", job)
		await(t, "the copy of job "+job, copying)
		return job
	}
	cancelled := slowly()
	w.publisher(t, "cancel", cancelled)
	if ev := w.awaitFinal(t, cancelled); ev.Kind != messages.KindCancelled {
		t.Errorf("not cancelled: %s", asJSON(ev))
	}
	w.nothingLeft(t)

	job := slowly()
	partial := filepath.Join(w.nas, "vm", job+".partial")
	if !exists(partial) {
		t.Errorf("there is no %s: was the worker killed too early?", partial)
	}
	w.kill(t)
	w.libvirt = "none"
	w.start(t)
	w.publisher(t, "throttle", job, "0")
	ev := w.awaitFinal(t, job)
	if ev.Kind != messages.KindSucceeded || ev.Attempt != 2 {
		t.Fatalf("after the kill: %s", asJSON(ev))
	}
	c.restores(t, ev)
	entries, err := os.ReadDir(filepath.Join(w.nas, "vm"))
	if err != nil || len(entries) != 3 {
		t.Errorf("the repository holds %v (%v)", entries, err)
	}
	w.nothingLeft(t)
}
