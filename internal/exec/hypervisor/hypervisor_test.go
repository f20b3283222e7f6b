package hypervisor

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"go.uber.org/goleak"
	"libvirt.org/go/libvirt"

	"github.com/nasfleet/nasfleet/messages"
	"github.com/nasfleet/nasfleet/tests/lab"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestConnectToNothing(t *testing.T) {
	_, err := Connect(t.Context(), "qemu:///system?socket="+filepath.Join(t.TempDir(), "none"), zerolog.Nop())
	wantCode(t, err, messages.CodeHypervisorDown)
	if err != nil && !strings.Contains(err.Error(), "No such file") {
		t.Errorf("the error does not say why: %v", err)
	}
}

// A panic in a call costs that call: libvirt is asked from goroutines that nobody above can recover.
func TestAPanicCostsOneCall(t *testing.T) {
	h := connect(t, "test:///default")
	_, err := call(t.Context(), h, func(*libvirt.Connect) (int, error) { panic("boom") }, nil)
	wantCode(t, err, messages.CodeInternal)
	if _, err := call(t.Context(), h, (*libvirt.Connect).GetLibVersion, nil); err != nil {
		t.Error(err)
	}
}

func TestLibvirt(t *testing.T) {
	l := lab.Libvirtd(t)
	h := connect(t, l.URI)
	for name, test := range map[string]func(*testing.T, *lab.Libvirt, *Hypervisor){
		"two disks":     testTwoDisks,
		"devices":       testDevices,
		"floppy":        testFloppy,
		"stopped":       testStopped,
		"volume":        testVolume,
		"unknown":       testUnknown,
		"no scratch":    testNoScratchFolder,
		"second begin":  testSecondBegin,
		"foreign job":   testForeignJob,
		"checkpoints":   testCheckpoints,
		"destroyed":     testDestroyed,
		"quiesce":       testQuiesceWithoutAgent,
		"encrypted":     testEncrypted,
		"ended context": testEndedContext,
		"define":        testDefine,
		"permissions":   testScratchPermissions,
	} {
		t.Run(name, func(t *testing.T) { test(t, l, h) })
	}
}

func testTwoDisks(t *testing.T, l *lab.Libvirt, h *Hypervisor) {
	dir := filepath.Join(lab.Dir(t), "disks & more")
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	base := lab.Image(t, filepath.Join(dir, "base.qcow2"), "qcow2", 16)
	top := lab.Overlay(t, filepath.Join(dir, "top.qcow2"), base, "qcow2")
	raw := lab.Image(t, filepath.Join(dir, "raw disk.raw"), "raw", 8)
	vm := l.DefineVM(t, lab.VMOptions{Name: "two", Disks: []lab.Disk{{Path: top}, {Path: raw, Format: "raw"}}})
	defer vm.Destroy(t)
	vm.Write(t, "vda", 0, lab.MiB, 0x11)
	vm.Write(t, "vdb", 0, lab.MiB, 0x22)

	d := inspect(t, h, "two")
	want := []Disk{
		{Target: "vda", Kind: KindFile, Path: top, Format: "qcow2", SizeBytes: 16 * lab.MiB, Backing: []Image{{KindFile, base, "qcow2"}}, BackingEnds: true},
		{Target: "vdb", Kind: KindFile, Path: raw, Format: "raw", SizeBytes: 8 * lab.MiB, BackingEnds: true},
	}
	if d.State != Running || !reflect.DeepEqual(d.Disks, want) || len(d.Skipped) != 0 {
		t.Errorf("got %v %+v, skipped %v", d.State, d.Disks, d.Skipped)
	}
	if d.UID == 0 || d.GID == 0 {
		t.Errorf("QEMU runs as %d:%d; the laboratory's is unprivileged", d.UID, d.GID)
	}

	s := spec(t, d, "vda", "vdb")
	begin(t, h, s)
	if got := exports(t, s.Socket); len(got) != 2 || got["vda"] != 16*lab.MiB || got["vdb"] != 8*lab.MiB {
		t.Errorf("the exports are %v", got)
	}
	job, err := h.BackupJob(t.Context(), "two")
	if err != nil || job != (BackupJob{Running: true, Socket: s.Socket}) {
		t.Errorf("the job is %+v, %v", job, err)
	}
	// What the guest overwrites now must not show.
	vm.Write(t, "vda", 0, lab.MiB, 0x33)
	vm.Write(t, "vdb", 0, lab.MiB, 0x44)
	for export, b := range map[string]byte{"vda": 0x11, "vdb": 0x22} {
		if data := served(t, s.Socket, export); !allAre(data[:lab.MiB], b) || !allAre(data[lab.MiB:], 0) {
			t.Errorf("%s is not served as it was when the backup began", export)
		}
	}
	for range 2 {
		endBackup(t, h, s)
	}
	noneLeft(t, vm, s)
	vm.Write(t, "vda", lab.MiB, lab.MiB, 0x55)

	// One disk of two.
	one := spec(t, d, "vdb")
	begin(t, h, one)
	if got := exports(t, one.Socket); len(got) != 1 || got["vdb"] == 0 {
		t.Errorf("the exports are %v, not vdb alone", got)
	}
	endBackup(t, h, one)
	noneLeft(t, vm, one)

	gone := spec(t, d, "vda", "vdz")
	_, err = h.BeginBackup(t.Context(), gone)
	wantCode(t, err, messages.CodeVMStateChanged)
	noneLeft(t, vm, gone)
}

func testDevices(t *testing.T, l *lab.Libvirt, h *Hypervisor) {
	dir := lab.Dir(t)
	iso := lab.Image(t, filepath.Join(dir, "cd.iso"), "raw", 1)
	device := lab.LoopDevice(t, 8)
	vm := l.DefineVM(t, lab.VMOptions{Name: "devices", Disks: []lab.Disk{
		{Path: lab.Image(t, filepath.Join(dir, "a.qcow2"), "qcow2", 8)},
		{Path: device, Format: "raw", Block: true},
		{Path: lab.Image(t, filepath.Join(dir, "ro.raw"), "raw", 1), Format: "raw", ExtraXML: "<readonly/>"},
		{Path: lab.Image(t, filepath.Join(dir, "shared.raw"), "raw", 1), Format: "raw", ExtraXML: "<shareable/>"},
	}, DevicesXML: `<disk type='file' device='cdrom'><target dev='sda' bus='sata'/></disk>
		<disk type='file' device='cdrom'><source file='` + iso + `'/><target dev='sdb' bus='sata'/></disk>
		<controller type='scsi' model='virtio-scsi'/>`})
	defer vm.Destroy(t)
	vm.Write(t, "vdb", 0, lab.MiB, 0x66)

	d := inspect(t, h, "devices")
	want := []Disk{
		{Target: "vda", Kind: KindFile, Path: filepath.Join(dir, "a.qcow2"), Format: "qcow2", SizeBytes: 8 * lab.MiB, BackingEnds: true},
		{Target: "vdb", Kind: KindBlock, Path: device, Format: "raw", SizeBytes: 8 * lab.MiB, BackingEnds: true},
	}
	if !reflect.DeepEqual(d.Disks, want) {
		t.Errorf("the disks are %+v", d.Disks)
	}
	var left []string
	for _, s := range d.Skipped {
		if s.Reason == "" {
			t.Errorf("%s was left out without a reason", s.Target)
		}
		left = append(left, s.Target)
	}
	slices.Sort(left)
	if !slices.Equal(left, []string{"sda", "sdb", "vdc", "vdd"}) {
		t.Errorf("left out: %v", d.Skipped)
	}

	s := spec(t, d, "vda", "vdb")
	begin(t, h, s)
	if data := served(t, s.Socket, "vdb"); !allAre(data[:lab.MiB], 0x66) || len(data) != 8*lab.MiB {
		t.Error("the block device is not served as the guest wrote it")
	}
	endBackup(t, h, s)
	noneLeft(t, vm, s)

	// A hot-plugged disk is seen, though the persistent definition does not have it.
	hot := lab.Image(t, filepath.Join(dir, "hot.qcow2"), "qcow2", 4)
	l.Virsh(t, "attach-disk", "devices", hot, "sdc", "--driver", "qemu", "--subdriver", "qcow2", "--targetbus", "scsi", "--live")
	d = inspect(t, h, "devices")
	if i := slices.IndexFunc(d.Disks, func(x Disk) bool { return x.Path == hot }); i < 0 {
		t.Errorf("the hot-plugged disk is not among %+v", d.Disks)
	}
	if strings.Contains(d.XML, hot) {
		t.Error("the XML is not the persistent definition")
	}
}

func testFloppy(t *testing.T, l *lab.Libvirt, h *Hypervisor) {
	dir := lab.Dir(t)
	floppy := filepath.Join(dir, "floppy.img")
	lab.Run(t, "qemu-img", "create", "-q", "-f", "raw", floppy, "1440K")
	vm := l.DefineVM(t, lab.VMOptions{Name: "floppy", Machine: "pc",
		Disks: []lab.Disk{{Path: lab.Image(t, filepath.Join(dir, "a.raw"), "raw", 4), Format: "raw"}},
		DevicesXML: `<disk type='file' device='floppy'><driver name='qemu' type='raw'/><source file='` + floppy + `'/><target dev='fda' bus='fdc'/></disk>
			<disk type='file' device='floppy'><target dev='fdb' bus='fdc'/></disk>`})
	defer vm.Destroy(t)
	d := inspect(t, h, "floppy")
	if len(d.Disks) != 1 || len(d.Skipped) != 2 {
		t.Errorf("disks %+v, skipped %+v", d.Disks, d.Skipped)
	}
	s := spec(t, d, "vda")
	begin(t, h, s)
	if got := exports(t, s.Socket); len(got) != 1 {
		t.Errorf("the exports are %v", got)
	}
	endBackup(t, h, s)
	noneLeft(t, vm, s)
}

func testStopped(t *testing.T, l *lab.Libvirt, h *Hypervisor) {
	path := lab.Image(t, filepath.Join(lab.Dir(t), "a.qcow2"), "qcow2", 8)
	vm := l.DefineVM(t, lab.VMOptions{Name: "stopped", Disks: []lab.Disk{{Path: path}}, Stopped: true})
	d := inspect(t, h, "stopped")
	want := Disk{Target: "vda", Kind: KindFile, Path: path, Format: "qcow2", SizeBytes: 8 * lab.MiB}
	if d.State != Stopped || !reflect.DeepEqual(d.Disks, []Disk{want}) {
		t.Errorf("got %v %+v", d.State, d.Disks)
	}
	if err := d.Disks[0].CheckOpen(); err != nil {
		t.Error(err)
	}
	_, err := h.BeginBackup(t.Context(), BackupSpec{Domain: "stopped"})
	wantCode(t, err, messages.CodeVMStateChanged)
	if err := h.EndBackup(t.Context(), "stopped", "/none"); err != nil {
		t.Error(err)
	}
	if job, err := h.BackupJob(t.Context(), "stopped"); err != nil || job.Running {
		t.Errorf("%+v, %v", job, err)
	}
	// A disk that is missing is described all the same.
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if d = inspect(t, h, "stopped"); len(d.Disks) != 1 || d.Disks[0].SizeBytes != 0 {
		t.Errorf("got %+v", d.Disks)
	}
	vm.Undefine(t)
	_, err = h.State(t.Context(), "stopped")
	wantCode(t, err, messages.CodeVMNotFound)
}

func testVolume(t *testing.T, l *lab.Libvirt, h *Hypervisor) {
	dir := lab.Dir(t)
	path := lab.Image(t, filepath.Join(dir, "vol.qcow2"), "qcow2", 8)
	l.Virsh(t, "pool-create-as", "pool", "dir", "--target", dir)
	defer l.Virsh(t, "pool-destroy", "pool")
	l.DefineVM(t, lab.VMOptions{Name: "volume", Stopped: true, DevicesXML: `<disk type='volume' device='disk'>
		<driver name='qemu' type='qcow2'/><source pool='pool' volume='vol.qcow2'/><target dev='vda' bus='virtio'/></disk>
		<disk type='volume' device='disk'><source pool='nopool' volume='x'/><target dev='vdb' bus='virtio'/></disk>`})
	d := inspect(t, h, "volume")
	if len(d.Disks) != 2 || d.Disks[0].Kind != KindFile || d.Disks[0].Path != path || d.Disks[0].CheckOpen() != nil {
		t.Fatalf("got %+v", d.Disks)
	}
	wantCode(t, d.Disks[1].CheckOpen(), messages.CodeDiskUnsupported)
}

func testUnknown(t *testing.T, _ *lab.Libvirt, h *Hypervisor) {
	_, err := h.Domain(t.Context(), "nobody")
	wantCode(t, err, messages.CodeVMNotFound)
	_, err = h.BeginBackup(t.Context(), BackupSpec{Domain: "nobody"})
	wantCode(t, err, messages.CodeVMNotFound)
	_, err = h.BackupJob(t.Context(), "nobody")
	wantCode(t, err, messages.CodeVMNotFound)
	if err := h.EndBackup(t.Context(), "nobody", "/none"); err != nil {
		t.Errorf("the end of a backup of no VM: %v", err)
	}
}

func TestLibvirtdThatHangsAndRestarts(t *testing.T) {
	l := lab.Libvirtd(t)
	h := connect(t, l.URI)
	vm, d := guest(t, l, h, "guest")
	s := spec(t, d, "vda")
	begin(t, h, s)

	l.Signal(t, syscall.SIGSTOP)
	ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
	defer cancel()
	// More calls than there are slots: none of them is held up by those before.
	errs := make(chan error)
	for range 2 * maxCalls {
		go func() {
			_, err := h.State(ctx, "guest")
			errs <- err
		}()
	}
	for range 2 * maxCalls {
		if err := <-errs; !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("%v is not the context's cause", err)
		}
	}
	l.Signal(t, syscall.SIGCONT)
	lab.Eventually(t, "the calls end", func() bool { return len(h.slots) == 0 })

	l.Restart(t)
	if state, err := h.State(t.Context(), "guest"); err != nil || state != Running {
		t.Errorf("after libvirtd's restart: %v, %v", state, err)
	}
	job, err := h.BackupJob(t.Context(), "guest")
	if err != nil || job.Running && job.Socket != s.Socket {
		t.Errorf("after libvirtd's restart: %+v, %v", job, err)
	}
	t.Logf("after libvirtd's restart the job is %+v", job)
	endBackup(t, h, s)
	noneLeft(t, vm, s)
}
