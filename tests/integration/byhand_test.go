package integration

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/nasfleet/nasfleet/tests/lab"
)

// TestRestoreByHand runs the commands of docs/restore-by-hand.md as they stand there, without
// nasfleet: only the paths are filled in.
func TestRestoreByHand(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "none")
	image := dataImage(t, w, "vm.img", 64)
	plain := w.take(t, "--image", image, "--compress")
	sealed := w.take(t, "--image", image, "--compress", "--encrypt", "--passphrase-file", w.passphraseFile(t, passphrase))
	recipes := shellBlocks(t, "../../docs/restore-by-hand.md", "qemu-img convert")
	if len(recipes) != 4 {
		t.Fatalf("the page has %d recipes with qemu-img convert, the tests know 4", len(recipes))
	}
	w.stop(t) // by hand means without it
	for i, ev := range []string{plain.BackupID, sealed.BackupID} {
		dir := filepath.Join(w.nas, "vm", ev)
		out := filepath.Join(w.dir, "by-hand.qcow2")
		byHand(t, dir, recipes[i], strings.NewReplacer(
			"/var/lib/libvirt/images/vda.qcow2", out, "/root/passphrase", w.keyFile(t),
			"vda.qcow2", "disk0.qcow2", "vda.luks", "disk0.luks",
		))
		compare(t, "raw", image, "qcow2", out)
		if err := os.Remove(out); err != nil {
			t.Error(err)
		}
	}
}

// byHand runs a recipe in a folder, as a shell would that knows line breaks and single quotes.
func byHand(t *testing.T, dir, recipe string, names *strings.Replacer) {
	t.Helper()
	args := strings.Fields(names.Replace(strings.ReplaceAll(recipe, "\\\n", " ")))
	for i := 0; i < len(args); i++ {
		if !strings.HasPrefix(args[i], "'") {
			continue
		}
		for !strings.HasSuffix(args[i], "'") {
			args[i] += args[i+1]
			args = slices.Delete(args, i+1, i+2)
		}
		args[i] = strings.Trim(args[i], "'")
	}
	t.Logf("in %s: %s", dir, strings.Join(args, " "))
	lab.Run(t, "env", append([]string{"-C", dir}, args...)...)
}

// TestRestoreAChainByHand does the same with the recipes for incrementals.
func TestRestoreAChainByHand(t *testing.T) {
	t.Parallel()
	l := lab.Libvirtd(t)
	w := newWorld(t, l.URI)
	disk := lab.Disk{Path: filepath.Join(w.dir, "a.qcow2"), Format: "qcow2"}
	lab.Run(t, "qemu-img", "convert", "-f", "raw", "-O", "qcow2", dataImage(t, w, "a.raw", 64), disk.Path)
	vm := l.DefineVM(t, lab.VMOptions{Name: "vm", Disks: []lab.Disk{disk}})
	recipes := shellBlocks(t, "../../docs/restore-by-hand.md", "qemu-img convert")
	for i, f := range []features{{compress: true}, {encrypt: true}} {
		var ids []string
		for step, mode := range []string{"full", "incremental", "incremental"} {
			vm.Write(t, "vda", int64(10+5*step)*lab.MiB, lab.MiB, byte(i+step+1))
			vm.Discard(t, "vda", int64(2*step)*lab.MiB, lab.MiB)
			ev := w.take(t, append(f.flags(w, t), "--vm", "vm", "--mode", mode, "--backup-path", f.String())...)
			ids = append(ids, ev.BackupID)
		}
		out := filepath.Join(w.dir, "by-hand.qcow2")
		byHand(t, filepath.Join(w.nas, f.String(), "vm"), recipes[2+i], strings.NewReplacer(
			"/var/lib/libvirt/images/vda.qcow2", out, "/root/passphrase", w.keyFile(t),
			"FULL", ids[0], "NEXT", ids[1], "LAST", ids[2],
		))
		compare(t, "qcow2", disk.Path, "qcow2", out)
		if err := os.Remove(out); err != nil {
			t.Error(err)
		}
	}
}

// shellBlocks returns the fenced shell blocks of a page that begin with a command.
func shellBlocks(t *testing.T, page, command string) []string {
	t.Helper()
	data, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	var blocks []string
	for _, m := range regexp.MustCompile("(?s)```sh\n(.*?)```").FindAllStringSubmatch(string(data), -1) {
		if strings.HasPrefix(m[1], command) {
			blocks = append(blocks, m[1])
		}
	}
	return blocks
}
