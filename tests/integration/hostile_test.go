package integration

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/nasfleet/nasfleet/messages"
	"github.com/nasfleet/nasfleet/tests/lab"
)

// TestBackingFileElsewhere is about an image whose maker has written the name of a file of the host into its
// header. It is read where the VM's definition, a storage pool or the worker's own settings say so,
// and nowhere else.
func TestBackingFileElsewhere(t *testing.T) {
	l := lab.Libvirtd(t)
	w := newWorld(t, l.URI)
	victims, images := w.mkdir(t, "victims"), w.mkdir(t, "images")
	victim := dataImage(t, w, "victims/secret.raw", 16)
	evil := filepath.Join(images, "evil.qcow2")
	lab.Overlay(t, evil, victim, "raw")
	vm := lab.VMOptions{Name: "tenant", Stopped: true, Disks: []lab.Disk{{Path: evil}}}
	tenant := l.DefineVM(t, vm)
	refused := func(args ...string) {
		t.Helper()
		w.mustFail(t, messages.CodePathNotAllowed, args...)
		if left, err := os.ReadDir(w.nas); err != nil || len(left) > 0 {
			t.Errorf("on the repository: %v, %v", left, err)
		}
		w.nothingLeft(t)
	}
	refused(w.takeArgs("--vm", "tenant")...)
	refused(w.takeArgs("--image", evil, "--image-format", "qcow2")...)

	t.Run("the definition says so", func(t *testing.T) {
		tenant.Undefine(t)
		stated := vm
		stated.Disks = []lab.Disk{{Path: evil, ExtraXML: `<backingStore type='file'><format type='raw'/><source file='` + victim + `'/><backingStore/></backingStore>`}}
		tenant = l.DefineVM(t, stated)
		ev := w.take(t, "--vm", "tenant", "--verify")
		w.restoreAndCompare(t, features{}, ev, map[string]original{"vda": {"qcow2", evil}})
		w.mustJob(t, "restore", "--backup", ev.BackupID, "--to-vm", "tenant")
		compare(t, "raw", victim, "qcow2", evil)
	})
	t.Run("a storage pool", func(t *testing.T) {
		tenant.Undefine(t)
		tenant = l.DefineVM(t, vm)
		w.mustFail(t, messages.CodePathNotAllowed, w.takeArgs("--vm", "tenant")...)
		l.Virsh(t, "pool-create-as", "victims", "dir", "--target", victims)
		defer l.Virsh(t, "pool-destroy", "victims")
		w.take(t, "--vm", "tenant")
	})
	t.Run("the worker's settings", func(t *testing.T) {
		w.mustFail(t, messages.CodePathNotAllowed, w.takeArgs("--image", evil, "--image-format", "qcow2")...)
		w.stop(t)
		w.args = append(w.args, "--allow-path", victims, "--allow-path", images, "--allow-path", w.nas)
		w.start(t)
		w.take(t, "--image", evil, "--image-format", "qcow2")
		w.take(t, "--vm", "tenant")
	})
}
