package integration

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/nasfleet/nasfleet/tests/lab"
)

// TestRestoreByHand runs the commands of docs/restore-by-hand.md as they stand there, without
// nasfleet: only the paths are filled in.
func TestRestoreByHand(t *testing.T) {
	w := newWorld(t, "none")
	image := dataImage(t, w, "vm.img", 64)
	plain := w.take(t, "--image", image, "--compress")
	sealed := w.take(t, "--image", image, "--compress", "--encrypt", "--passphrase-file", w.passphraseFile(t, passphrase))
	recipes := shellBlocks(t, "../../docs/restore-by-hand.md", "qemu-img convert")
	if len(recipes) != 2 {
		t.Fatalf("the page has %d recipes with qemu-img convert, the test knows 2", len(recipes))
	}
	w.stop(t) // by hand means without it
	for i, ev := range []string{plain.BackupID, sealed.BackupID} {
		dir := filepath.Join(w.nas, "vm", ev)
		out := filepath.Join(w.dir, "by-hand.qcow2")
		recipe := strings.NewReplacer(
			"/var/lib/libvirt/images/vda.qcow2", out,
			"/root/passphrase", w.keyFile(t),
			"vda.qcow2", "disk0.qcow2", "vda.luks", "disk0.luks",
			"\\\n", " ",
		).Replace(recipes[i])
		args := strings.Fields(recipe)
		t.Logf("in %s: %s", dir, strings.Join(args, " "))
		lab.Run(t, "env", append([]string{"-C", dir}, args...)...)
		compare(t, "raw", image, "qcow2", out)
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
