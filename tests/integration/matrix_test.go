package integration

import (
	"crypto/rand"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/nasfleet/nasfleet/messages"
	"github.com/nasfleet/nasfleet/tests/lab"
)

// passphrase is what tests encrypt with. It is this run's own, so that it is looked for and found
// nowhere by chance: other tests run at the same time.
var passphrase = "correct horse " + rand.Text()

// features is one combination of the four.
type features struct{ compress, encrypt, bandwidth, verify bool }

// combinations are all sixteen.
func combinations() []features {
	var all []features
	for i := range 16 {
		all = append(all, features{i&1 != 0, i&2 != 0, i&4 != 0, i&8 != 0})
	}
	return all
}

func (f features) String() string {
	var on []string
	for _, x := range []struct {
		name string
		set  bool
	}{{"compress", f.compress}, {"encrypt", f.encrypt}, {"bandwidth", f.bandwidth}, {"verify", f.verify}} {
		if x.set {
			on = append(on, x.name)
		}
	}
	if on == nil {
		return "off"
	}
	return strings.Join(on, "+")
}

// flags turns the features into publisher's flags.
func (f features) flags(w *world, t *testing.T) []string {
	var flags []string
	if f.compress {
		flags = append(flags, "--compress")
	}
	if f.encrypt {
		flags = append(flags, "--encrypt", "--passphrase-file", w.passphraseFile(t, passphrase))
	}
	if f.bandwidth {
		flags = append(flags, "--bandwidth", "200")
	}
	if f.verify {
		flags = append(flags, "--verify")
	}
	return flags
}

// passphraseFile writes a passphrase to a file for publisher to read, beside the world's folder:
// what is searched for secrets does not hold it.
func (w *world) passphraseFile(t *testing.T, p string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "passphrase")
	if err := os.WriteFile(path, []byte(p+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// checkFeatures looks at a backup's files with the tools of others.
func (w *world) checkFeatures(t *testing.T, f features, ev messages.Event) {
	t.Helper()
	dir := filepath.Join(w.nas, ev.VM, ev.BackupID)
	for _, d := range ev.Backup.Disks {
		path := filepath.Join(dir, d.File)
		if f.encrypt {
			if out := lab.Run(t, "cryptsetup", "luksDump", path); !strings.Contains(out, "aes") {
				t.Errorf("%s: cryptsetup luksDump says\n%s", d.Name, out)
			}
			lab.Run(t, "cryptsetup", "open", "--test-passphrase", "--key-file", w.keyFile(t), path)
		} else if out := lab.Run(t, "qemu-img", "check", "-f", "qcow2", path); !strings.Contains(out, "No errors") {
			t.Errorf("%s: qemu-img check says\n%s", d.Name, out)
		}
		out := qemuImg(t, f.encrypt, w.keyFile(t), path, "check", "--output", "json")
		if compressed := strings.Contains(out, `"compressed-clusters"`); compressed != f.compress {
			t.Errorf("%s: compressed is %v, want %v:\n%s", d.Name, compressed, f.compress, out)
		}
	}
	if f.verify {
		if story := w.story(t, ev.JobID); !strings.Contains(story, "verified") {
			t.Errorf("no verified event: %s", story)
		}
	}
}

// keyFile holds the passphrase as cryptsetup and qemu-img want it: without a line break.
func (w *world) keyFile(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "key")
	if err := os.WriteFile(path, []byte(passphrase), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// qemuImg runs a command of qemu-img on a backup's disk, encrypted or not.
func qemuImg(t *testing.T, encrypted bool, keyFile, path string, args ...string) string {
	t.Helper()
	if !encrypted {
		return lab.Run(t, "qemu-img", append(args, "-f", "qcow2", path)...)
	}
	return lab.Run(t, "qemu-img", append(args, "--object", "secret,id=p,file="+keyFile, "--image-opts", luksOpts(path))...)
}

func luksOpts(path string) string {
	return "driver=qcow2,file.driver=luks,file.key-secret=p,file.file.driver=file,file.file.filename=" + path
}

// story is the list of a job's event kinds, in order.
func (w *world) story(t *testing.T, job string) string {
	t.Helper()
	var kinds []string
	for _, ev := range w.events(t, job) {
		kinds = append(kinds, string(ev.Kind))
	}
	return strings.Join(kinds, " ")
}

// restoreAndCompare restores a backup to a folder and compares each disk with what it should be.
func (w *world) restoreAndCompare(t *testing.T, f features, ev messages.Event, want map[string]original) {
	t.Helper()
	to := filepath.Join(w.dir, "restored-"+ev.BackupID)
	args := []string{"restore", "--backup", ev.BackupID, "--zone", zone, "--host", host, "--to", to}
	if f.encrypt {
		args = append(args, "--passphrase-file", w.passphraseFile(t, passphrase))
	}
	w.mustJob(t, args...)
	for disk, o := range want {
		compare(t, o.format, o.path, "qcow2", filepath.Join(to, disk+".qcow2"))
	}
	if err := os.RemoveAll(to); err != nil {
		t.Error(err)
	}
}

// original is a disk as it was backed up.
type original struct{ format, path string }

// compare asks qemu-img whether two disks have the same content. A running VM's disk is shared.
func compare(t *testing.T, formatA, a, formatB, b string) {
	t.Helper()
	if out := lab.Run(t, "qemu-img", "compare", "-U", "-f", formatA, "-F", formatB, a, b); !strings.Contains(out, "identical") {
		t.Errorf("%s and %s: %s", a, b, out)
	}
}

// dataImage makes a disk with a file system, text and noise in it.
func dataImage(t *testing.T, w *world, name string, sizeMiB int) string {
	t.Helper()
	return lab.FSImage(t, filepath.Join(w.dir, name), sizeMiB, "/usr/share/perl5")
}

func TestEveryCombinationOfAnImage(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "none")
	image := dataImage(t, w, "disk.img", 256)
	for _, f := range combinations() {
		t.Run(f.String(), func(t *testing.T) {
			ev := w.take(t, append(f.flags(w, t), "--image", image)...)
			w.checkFeatures(t, f, ev)
			w.restoreAndCompare(t, f, ev, map[string]original{"disk0": {"raw", image}})
			w.nothingLeft(t)
		})
	}
}

func TestEveryCombinationOfAStoppedVM(t *testing.T) {
	t.Parallel()
	l := lab.Libvirtd(t)
	w := newWorld(t, l.URI)
	disks := twoDisks(t, w)
	l.DefineVM(t, lab.VMOptions{Name: "down", Disks: disks, Stopped: true})
	for _, f := range combinations() {
		t.Run(f.String(), func(t *testing.T) {
			ev := w.take(t, append(f.flags(w, t), "--vm", "down")...)
			w.checkFeatures(t, f, ev)
			w.restoreAndCompare(t, f, ev, originals(disks))
			w.nothingLeft(t)
		})
	}
}

func TestEveryCombinationOfARunningVM(t *testing.T) {
	t.Parallel()
	l := lab.Libvirtd(t)
	w := newWorld(t, l.URI)
	disks := twoDisks(t, w)
	vm := l.DefineVM(t, lab.VMOptions{Name: "up", Disks: disks})
	for i, f := range combinations() {
		t.Run(f.String(), func(t *testing.T) {
			// The guest writes before each backup, on both disks.
			vm.Write(t, "vda", int64(i)*lab.MiB, lab.MiB, byte(i+1))
			vm.Write(t, "vdb", int64(i)*lab.MiB+4096, lab.MiB, byte(i+101))
			ev := w.take(t, append(f.flags(w, t), "--vm", "up")...)
			w.checkFeatures(t, f, ev)
			w.restoreAndCompare(t, f, ev, originals(disks))
			w.nothingLeft(t)
			vm.Running(t)
			if vm.HasBackupJob(t) {
				t.Error("libvirt still runs a backup job")
			}
		})
	}
}

// twoDisks are a qcow2 and a raw disk, both with data.
func twoDisks(t *testing.T, w *world) []lab.Disk {
	t.Helper()
	raw := dataImage(t, w, "b disk.raw", 128)
	qcow2 := filepath.Join(w.dir, "a.qcow2")
	lab.Run(t, "qemu-img", "convert", "-f", "raw", "-O", "qcow2", dataImage(t, w, "a.raw", 200), qcow2)
	return []lab.Disk{{Path: qcow2, Format: "qcow2"}, {Path: raw, Format: "raw"}}
}

func originals(disks []lab.Disk) map[string]original {
	m := map[string]original{}
	for i, d := range disks {
		m[fmt.Sprintf("vd%c", 'a'+i)] = original{d.Format, d.Path}
	}
	return m
}
