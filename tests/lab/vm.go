package lab

import (
	"encoding/json"
	"encoding/xml"
	"fmt"
	"strings"
	"testing"
)

// VM is a guest without a guest system: QEMU and its disks. The monitor writes to the disks as a
// guest would.
type VM struct {
	Name string
	l    *Libvirt
}

// VMOptions describes a guest.
type VMOptions struct {
	Name string
	// Machine is q35 when empty. Floppies need pc.
	Machine string
	Disks   []Disk
	// DevicesXML is put into the devices element as it is.
	DevicesXML string
	// Stopped leaves the guest defined and not started.
	Stopped bool

	// memoryMiB is 64 when 0, and osXML is put into the os element: see BootGuest.
	memoryMiB int
	osXML     string
}

// Disk is a virtio disk of a guest.
type Disk struct {
	// Path of a file, or of a block device when Block is set.
	Path string
	// Format is qcow2 when empty.
	Format string
	Block  bool
	// Target is vda, vdb, … by position when empty.
	Target string
	// ExtraXML is put into the disk element as it is.
	ExtraXML string
}

// DefineVM defines a guest and, unless told otherwise, starts it. It ends with the daemon.
func (l *Libvirt) DefineVM(t testing.TB, o VMOptions) *VM {
	t.Helper()
	if o.Machine == "" {
		o.Machine = "q35"
	}
	if o.memoryMiB == 0 {
		o.memoryMiB = 64
	}
	var disks strings.Builder
	for i, d := range o.Disks {
		disks.WriteString(d.xml(i))
	}
	l.DefineXML(t, fmt.Sprintf(`<domain type='qemu'>
  <name>%s</name><memory unit='MiB'>%d</memory><vcpu>1</vcpu>
  <os><type arch='x86_64' machine='%s'>hvm</type>%s</os>
  <devices>%s%s<controller type='usb' model='none'/><memballoon model='none'/></devices>
</domain>`, escape(o.Name), o.memoryMiB, o.Machine, o.osXML, disks.String(), o.DevicesXML))
	vm := &VM{o.Name, l}
	if !o.Stopped {
		vm.Start(t)
	}
	return vm
}

// DefineXML defines what the XML says.
func (l *Libvirt) DefineXML(t testing.TB, definition string) {
	t.Helper()
	l.Virsh(t, "define", writeTemp(t, definition))
}

// DefineSecret gives libvirt the key of a user of Ceph, in base64. A private one it gives to nobody.
func (l *Libvirt) DefineSecret(t testing.TB, uuid, usage, private, key string) {
	t.Helper()
	l.Virsh(t, "secret-define", writeTemp(t, fmt.Sprintf(`<secret ephemeral='no' private='%s'><uuid>%s</uuid><usage type='ceph'><name>%s</name></usage></secret>`,
		private, uuid, usage)))
	l.Virsh(t, "secret-set-value", uuid, "--file", writeTemp(t, key))
}

func (d Disk) xml(i int) string {
	kind, attribute := "file", "file"
	if d.Block {
		kind, attribute = "block", "dev"
	}
	if d.Format == "" {
		d.Format = "qcow2"
	}
	if d.Target == "" {
		d.Target = target(i)
	}
	return fmt.Sprintf(`<disk type='%s' device='disk'><driver name='qemu' type='%s'/><source %s='%s'/><target dev='%s' bus='virtio'/>%s</disk>`,
		kind, d.Format, attribute, escape(d.Path), d.Target, d.ExtraXML)
}

func target(i int) string { return "vd" + string(rune('a'+i)) }

// Start starts the guest.
func (v *VM) Start(t testing.TB) { t.Helper(); v.l.Virsh(t, "start", v.Name) }

// Destroy stops the guest as pulling its plug would.
func (v *VM) Destroy(t testing.TB) { t.Helper(); v.l.Virsh(t, "destroy", v.Name) }

// Undefine forgets a stopped guest.
func (v *VM) Undefine(t testing.TB) { t.Helper(); v.l.Virsh(t, "undefine", v.Name) }

// Pause stops the guest's processors.
func (v *VM) Pause(t testing.TB) { t.Helper(); v.l.Virsh(t, "suspend", v.Name) }

// State returns what virsh says: running, paused, shut off, …
func (v *VM) State(t testing.TB) string {
	t.Helper()
	return strings.TrimSpace(v.l.Virsh(t, "domstate", v.Name))
}

// Running fails the test unless the guest runs.
func (v *VM) Running(t testing.TB) {
	t.Helper()
	if s := v.State(t); s != "running" {
		t.Errorf("%s is %s, not running", v.Name, s)
	}
}

// HasBackupJob says whether libvirt runs a backup of the guest.
func (v *VM) HasBackupJob(t testing.TB) bool {
	t.Helper()
	_, err := v.l.TryVirsh(t, "backup-dumpxml", v.Name)
	return err == nil
}

// Write writes length bytes of the pattern at the offset of a disk (vda, …), as the guest would.
// The offset and the length are multiples of 512.
func (v *VM) Write(t testing.TB, disk string, offset, length int64, pattern byte) {
	t.Helper()
	if err := v.TryWrite(t, disk, offset, length, pattern); err != nil {
		t.Fatal(err)
	}
}

// TryWrite is Write for a write that may fail.
func (v *VM) TryWrite(t testing.TB, disk string, offset, length int64, pattern byte) error {
	t.Helper()
	dev := device(disk)
	before := v.writes(t, dev)
	v.aio(t, dev, fmt.Sprintf("aio_write -P %#x %d %d", pattern, offset, length))
	if v.writes(t, dev) != before+1 {
		return fmt.Errorf("%s: writing %d bytes at %d of %s failed", v.Name, length, offset, disk)
	}
	return nil
}

// Discard writes zeroes and gives the space back, as the guest's trim does.
func (v *VM) Discard(t testing.TB, disk string, offset, length int64) {
	t.Helper()
	v.aio(t, device(disk), fmt.Sprintf("aio_write -z -u %d %d", offset, length))
}

// aio runs a command of qemu-io on a device's back end and waits until it is done. The monitor
// tells nothing of the outcome.
func (v *VM) aio(t testing.TB, device, command string) {
	t.Helper()
	for _, c := range []string{command, "aio_flush", "flush"} {
		v.l.Virsh(t, "qemu-monitor-command", "--hmp", v.Name, fmt.Sprintf("qemu-io -d %s %q", device, c))
	}
}

func device(disk string) string {
	return fmt.Sprintf("/machine/peripheral/virtio-disk%d/virtio-backend", disk[len(disk)-1]-'a')
}

// writes returns how many writes to a device have succeeded since the guest was started.
func (v *VM) writes(t testing.TB, device string) int64 {
	t.Helper()
	var answer struct {
		Return []struct {
			QDev  string `json:"qdev"`
			Stats struct {
				Writes int64 `json:"wr_operations"`
			} `json:"stats"`
		} `json:"return"`
	}
	out := v.l.Virsh(t, "qemu-monitor-command", v.Name, `{"execute":"query-blockstats"}`)
	if err := json.Unmarshal([]byte(out), &answer); err != nil {
		t.Fatalf("query-blockstats: %v in %s", err, out)
	}
	for _, d := range answer.Return {
		if d.QDev == device {
			return d.Stats.Writes
		}
	}
	t.Fatalf("%s has no %s: %s", v.Name, device, out)
	return 0
}

func escape(s string) string {
	var b strings.Builder
	if err := xml.EscapeText(&b, []byte(s)); err != nil {
		return ""
	}
	return b.String()
}
