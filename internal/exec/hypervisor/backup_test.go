package hypervisor

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"libvirt.org/go/libvirt"

	"github.com/nasfleet/nasfleet/messages"
	"github.com/nasfleet/nasfleet/tests/lab"
)

func testNoScratchFolder(t *testing.T, l *lab.Libvirt, h *Hypervisor) {
	vm, d := guest(t, l, h, "noscratch")
	s := spec(t, d, "vda")
	s.Disks[0].ScratchFile = filepath.Join(filepath.Dir(s.Socket), "none", "vda.scratch")
	_, err := h.BeginBackup(t.Context(), s)
	wantCode(t, err, messages.CodeBackupBeginFailed)
	noneLeft(t, vm, s)
	vm.Write(t, "vda", 0, lab.MiB, 1)
	// The VM can still be backed up.
	s = spec(t, d, "vda")
	begin(t, h, s)
	endBackup(t, h, s)
	noneLeft(t, vm, s)
}

func testScratchPermissions(t *testing.T, l *lab.Libvirt, h *Hypervisor) {
	vm, d := guest(t, l, h, "permissions")
	s := spec(t, d, "vda")
	begin(t, h, s)
	info, err := os.Stat(s.Disks[0].ScratchFile)
	if err != nil {
		t.Fatal(err)
	}
	if owner := info.Sys().(*syscall.Stat_t).Uid; int(owner) != d.UID {
		t.Errorf("the scratch file belongs to %d, not to QEMU's user %d", owner, d.UID)
	}
	if info.Mode().Perm()&0o077 != 0 {
		t.Errorf("the scratch file's mode is %v: others may read the guest's data", info.Mode())
	}
	endBackup(t, h, s)
	noneLeft(t, vm, s)

	// A folder that QEMU cannot write to is refused, and the VM goes on.
	s = spec(t, d, "vda")
	if err := os.Chown(filepath.Dir(s.Socket), 0, 0); err != nil {
		t.Fatal(err)
	}
	_, err = h.BeginBackup(t.Context(), s)
	wantCode(t, err, messages.CodeBackupBeginFailed)
	noneLeft(t, vm, s)
}

func testSecondBegin(t *testing.T, l *lab.Libvirt, h *Hypervisor) {
	vm, d := guest(t, l, h, "second")
	first, second := spec(t, d, "vda"), spec(t, d, "vda")
	begin(t, h, first)
	_, err := h.BeginBackup(t.Context(), second)
	wantCode(t, err, messages.CodeBackupBeginFailed)
	if err == nil || !strings.Contains(err.Error(), "another backup") {
		t.Errorf("the error does not name the cause: %v", err)
	}
	// The first is not harmed, neither by that nor by ending the second.
	endBackup(t, h, second)
	if len(exports(t, first.Socket)) != 1 {
		t.Error("the first backup does not serve any more")
	}
	endBackup(t, h, first)
	noneLeft(t, vm, first)
}

func testForeignJob(t *testing.T, l *lab.Libvirt, h *Hypervisor) {
	vm, d := guest(t, l, h, "foreign")
	dir := filepath.Join(lab.Dir(t), "theirs")
	if err := d.PrepareDir(dir); err != nil {
		t.Fatal(err)
	}
	document := filepath.Join(dir, "backup.xml")
	content := "<domainbackup mode='pull'><server transport='unix' socket='" + dir + "/theirs.sock'/></domainbackup>"
	if err := os.WriteFile(document, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	l.Virsh(t, "backup-begin", "foreign", document)
	endBackup(t, h, spec(t, d))
	if !vm.HasBackupJob(t) {
		t.Error("somebody else's backup was ended")
	}
	job, err := h.BackupJob(t.Context(), "foreign")
	if err != nil || !job.Running || job.Socket != dir+"/theirs.sock" {
		t.Errorf("%+v, %v", job, err)
	}
	l.Virsh(t, "domjobabort", "foreign")
	lab.Eventually(t, "the job ends", func() bool { return !vm.HasBackupJob(t) })
}

func testDestroyed(t *testing.T, l *lab.Libvirt, h *Hypervisor) {
	vm, d := guest(t, l, h, "destroyed")
	s := spec(t, d, "vda")
	begin(t, h, s)
	vm.Destroy(t)
	if state, err := h.State(t.Context(), "destroyed"); err != nil || state != Stopped {
		t.Errorf("%v, %v", state, err)
	}
	if job, err := h.BackupJob(t.Context(), "destroyed"); err != nil || job.Running {
		t.Errorf("%+v, %v", job, err)
	}
	endBackup(t, h, s)
	lab.NoSocketsBelow(t, filepath.Dir(s.Socket))
	vm.Start(t)
	noneLeft(t, vm, s)
}

func testQuiesceWithoutAgent(t *testing.T, l *lab.Libvirt, h *Hypervisor) {
	// The guest has a channel for an agent, and none that listens to it.
	vm, d := guest(t, l, h, "quiesce", "<channel type='unix'><target type='virtio' name='org.qemu.guest_agent.0'/></channel>")
	s := spec(t, d, "vda")
	s.Quiesce = messages.QuiesceRequired
	_, err := h.BeginBackup(t.Context(), s)
	wantCode(t, err, messages.CodeFreezeFailed)
	noneLeft(t, vm, s)

	s.Quiesce = messages.QuiesceBestEffort
	begun, err := h.BeginBackup(t.Context(), s)
	if err != nil || begun.Quiesced || !strings.Contains(begun.Note, "agent") {
		t.Errorf("%+v, %v", begun, err)
	}
	endBackup(t, h, s)
	noneLeft(t, vm, s)

	vm.Pause(t)
	if state, err := h.State(t.Context(), "quiesce"); err != nil || state != Paused {
		t.Errorf("%v, %v", state, err)
	}
	begun, err = h.BeginBackup(t.Context(), s)
	if err != nil || begun.Quiesced || !strings.Contains(begun.Note, "paused") {
		t.Errorf("%+v, %v", begun, err)
	}
	endBackup(t, h, s)
	if got := vm.State(t); got != "paused" {
		t.Errorf("a backup of a paused VM leaves it %s", got)
	}
}

func testEncrypted(t *testing.T, l *lab.Libvirt, h *Hypervisor) {
	dir := lab.Dir(t)
	key := filepath.Join(dir, "key")
	secret := filepath.Join(dir, "secret.xml")
	const uuid = "7f5b6a0e-3c9d-4b52-8e0a-9c1d2e3f4a5b"
	for path, content := range map[string]string{
		key:    "the passphrase",
		secret: "<secret ephemeral='yes' private='no'><uuid>" + uuid + "</uuid><usage type='volume'><volume>x</volume></usage></secret>",
	} {
		if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	l.Virsh(t, "secret-define", secret)
	l.Virsh(t, "secret-set-value", uuid, "--file", key, "--plain")
	create := func(name string, args ...string) string {
		path := filepath.Join(dir, name)
		lab.Run(t, "qemu-img", append(append([]string{"create", "-q", "--object", "secret,id=k,file=" + key}, args...), path, "8M")...)
		return path
	}
	luks := create("luks.raw", "-f", "luks", "-o", "key-secret=k,iter-time=10")
	qcow := create("luks.qcow2", "-f", "qcow2", "-o", "encrypt.format=luks,encrypt.key-secret=k,encrypt.iter-time=10")
	encryption := "<encryption format='luks'><secret type='passphrase' uuid='" + uuid + "'/></encryption>"
	vm := l.DefineVM(t, lab.VMOptions{Name: "encrypted", Disks: []lab.Disk{{Path: luks, Format: "raw", ExtraXML: encryption}},
		DevicesXML: `<disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='` + qcow + `'>` + encryption +
			`</source><target dev='vdb' bus='virtio'/></disk>`})
	defer vm.Destroy(t)
	d := inspect(t, h, "encrypted")
	if len(d.Disks) != 2 {
		t.Fatalf("the disks are %+v", d.Disks)
	}
	s := spec(t, d)
	for _, disk := range d.Disks {
		if !disk.Encrypted {
			t.Errorf("%s is not told to be encrypted", disk.Target)
		}
		wantCode(t, disk.CheckOpen(), messages.CodeSourceEncrypted)
		vm.Write(t, disk.Target, 0, lab.MiB, 0x77)
		s.Disks = append(s.Disks, BackupDisk{Target: disk.Target, ScratchFile: filepath.Join(filepath.Dir(s.Socket), disk.Target+".scratch")})
	}
	begin(t, h, s)
	for _, disk := range d.Disks {
		// What was never written to a raw disk is noise, decrypted.
		data := served(t, s.Socket, disk.Target)
		if len(data) != 8*lab.MiB || !allAre(data[:lab.MiB], 0x77) || disk.Format == "qcow2" && !allAre(data[lab.MiB:], 0) {
			t.Errorf("%s is not served decrypted (%d bytes)", disk.Target, len(data))
		}
	}
	endBackup(t, h, s)
	noneLeft(t, vm, s)
	if strings.Contains(d.XML, "the passphrase") {
		t.Error("the XML holds the passphrase")
	}
}

var errGiveUp = errors.New("given up")

func testEndedContext(t *testing.T, l *lab.Libvirt, h *Hypervisor) {
	vm, d := guest(t, l, h, "ended")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(errGiveUp)
	if _, err := h.Domain(ctx, "ended"); !errors.Is(err, errGiveUp) {
		t.Errorf("%v is not the context's cause", err)
	}
	// The caller gives up while the job begins: it is taken back.
	ctx, cancel = context.WithCancelCause(t.Context())
	s := spec(t, d, "vda")
	gaveUp, began := make(chan struct{}), make(chan bool, 1)
	_, err := call(ctx, h, func(conn *libvirt.Connect) (Begun, error) {
		b, err := h.begin(ctx, conn, s)
		began <- err == nil && vm.HasBackupJob(t)
		cancel(errGiveUp)
		<-gaveUp
		return b, err
	}, h.takeBack(s))
	close(gaveUp)
	if !errors.Is(err, errGiveUp) || !<-began {
		t.Errorf("the job did not begin before the caller gave up: %v", err)
	}
	lab.Eventually(t, "the call ends", func() bool { return len(h.slots) == 0 })
	noneLeft(t, vm, s)

	// libvirtd hangs; the caller gives up; libvirtd goes on: no job begins.
	ctx, cancel = context.WithCancelCause(t.Context())
	l.Signal(t, syscall.SIGSTOP)
	done := make(chan error)
	go func() {
		_, err := h.BeginBackup(ctx, s)
		done <- err
	}()
	lab.Eventually(t, "the call is under way", func() bool { return len(h.slots) == 1 })
	cancel(errGiveUp)
	if err := <-done; !errors.Is(err, errGiveUp) {
		t.Errorf("%v is not the context's cause", err)
	}
	l.Signal(t, syscall.SIGCONT)
	lab.Eventually(t, "the call ends", func() bool { return len(h.slots) == 0 })
	noneLeft(t, vm, s)
}
