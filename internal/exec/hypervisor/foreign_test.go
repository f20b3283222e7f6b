package hypervisor

import (
	"strings"
	"testing"

	"libvirt.org/go/libvirtxml"

	"github.com/nasfleet/nasfleet/messages"
)

// usual is a VM as libvirt writes one down.
const usual = `<domain type='kvm' id='7'>
  <name>web</name><uuid>6a4b2c0e-6f0a-4b53-9d0f-0d8f8f1f2a3b</uuid>
  <title>/etc is mentioned here</title>
  <memory unit='KiB'>1048576</memory><vcpu>1</vcpu>
  <resource><partition>/machine</partition></resource>
  <os firmware='efi'><type arch='x86_64' machine='q35'>hvm</type>
    <loader readonly='yes' type='pflash'>/usr/share/OVMF/OVMF_CODE_4M.ms.fd</loader>
    <nvram template='/usr/share/OVMF/OVMF_VARS_4M.ms.fd'>/var/lib/libvirt/qemu/nvram/web_VARS.fd</nvram></os>
  <devices>
    <emulator>/usr/bin/qemu-system-x86_64</emulator>
    <disk type='file' device='disk'><driver name='qemu' type='qcow2'/><source file='/var/lib/libvirt/images/web.qcow2'/><target dev='vda' bus='virtio'/></disk>
    <disk type='file' device='cdrom'><source file='/srv/iso/install.iso'/><target dev='sda' bus='sata'/></disk>
    <interface type='network'><source network='default'/><backend tap='/dev/net/tun'/></interface>
    <serial type='pty'><source path='/dev/pts/3'/></serial>
    <console type='pty' tty='/dev/pts/3'><source path='/dev/pts/3'/></console>
    <channel type='unix'><source mode='bind' path='/var/lib/libvirt/qemu/channel/target/domain-7-web/org.qemu.guest_agent.0'/><target type='virtio' name='org.qemu.guest_agent.0'/></channel>
    <rng model='virtio'><backend model='random'>/dev/urandom</backend></rng>
    EXTRA
  </devices>
  <seclabel type='dynamic' model='apparmor' relabel='yes'/>
TOP</domain>`

func rewrite(extra, top string) (string, []string, error) {
	xml := strings.NewReplacer("EXTRA", extra, "TOP", top).Replace(usual)
	return RewriteDisks(xml, map[string]Source{"vda": {Path: "/srv/restored/vda.qcow2", Format: "qcow2"}})
}

func TestUsualDefinition(t *testing.T) {
	out, notes, err := rewrite("", "")
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(out, "seclabel") || strings.Contains(out, "domain-7-web") || !strings.Contains(out, "/srv/restored/vda.qcow2") {
		t.Errorf("%s", out)
	}
	if len(notes) != 2 {
		t.Errorf("%q", notes)
	}
}

// What a definition on the repository may not ask of the host it is restored to.
func TestHostileDefinition(t *testing.T) {
	for name, tt := range map[string]struct{ extra, top, says string }{
		"arguments for QEMU":     {"", `<qemu:commandline xmlns:qemu='http://libvirt.org/schemas/domain/qemu/1.0'><qemu:arg value='-drive'/></qemu:commandline>`, "arguments for QEMU"},
		"a PCI device":           {`<hostdev mode='subsystem' type='pci'><source><address domain='0' bus='0' slot='2' function='0'/></source></hostdev>`, "", "devices of the host"},
		"a folder":               {`<filesystem type='mount'><source dir='/etc'/><target dir='x'/></filesystem>`, "", "folders of the host"},
		"a log file":             {`<serial type='pty'><log file='/etc/cron.d/x' append='on'/></serial>`, "", "/etc/cron.d/x"},
		"a log in a known place": {`<serial type='pty'><log file='/usr/share/OVMF/OVMF_CODE_4M.ms.fd'/></serial>`, "", "OVMF_CODE"},
		"a file as a port":       {`<serial type='file'><source path='/root/.ssh/authorized_keys'/></serial>`, "", "terminal on a file"},
		"a device as a port":     {`<parallel type='dev'><source path='/dev/pts/0'/></parallel>`, "", "terminal on a file"},
		"a socket":               {`<channel type='unix'><source mode='connect' path='/run/libvirt/libvirt-sock'/><target type='virtio' name='x'/></channel>`, "", "/run/libvirt/libvirt-sock"},
		"another program":        {`<emulator>/tmp/evil</emulator>`, "", "/tmp/evil"},
		"a way out of a place":   {`<emulator>/usr/bin/qemu-system-x/../../../tmp/evil</emulator>`, "", "/tmp/evil"},
		"a TPM":                  {`<tpm model='tpm-tis'><backend type='passthrough'><device path='/dev/tpm0'/></backend></tpm>`, "", "/dev/tpm0"},
		"a keyboard":             {`<input type='evdev'><source dev='/dev/input/event0'/></input>`, "", "/dev/input/event0"},
		"memory on a file":       {`<memory model='nvdimm'><source><path>/etc/shadow</path></source><target><size unit='MiB'>1</size><node>0</node></target></memory>`, "", "/etc/shadow"},
		"shared memory":          {`<shmem name='x'><model type='ivshmem-plain'/></shmem>`, "", "memory of the host"},
		"a network script":       {`<interface type='ethernet'><script path='run-me'/></interface>`, "", "script"},
		"a second disk":          {`<disk type='block' device='disk'><source dev='/dev/sda'/><target dev='vda' bus='virtio'/><mirror type='file' file='/x'/></disk>`, "", ""},
	} {
		out, _, err := rewrite(tt.extra, tt.top)
		if tt.says == "" {
			if err == nil && strings.Contains(out, "/dev/sda") {
				t.Errorf("%s: %s", name, out)
			}
			continue
		}
		if messages.CodeOf(err) != messages.CodeDefinitionRefused || !strings.Contains(err.Error(), tt.says) {
			t.Errorf("%s: %v", name, err)
		}
	}
	// A kernel on the host, another VM's variables, another hypervisor.
	for name, change := range map[string][2]string{
		"a kernel":              {"<loader readonly", "<kernel>/etc/shadow</kernel><loader readonly"},
		"another VM's nvram":    {"nvram/web_VARS", "nvram/db_VARS"},
		"another kind of guest": {"type='kvm'", "type='lxc'"},
	} {
		xml := strings.NewReplacer("EXTRA", "", "TOP", "", change[0], change[1]).Replace(usual)
		_, _, err := RewriteDisks(xml, map[string]Source{"vda": {Path: "/srv/restored/vda.qcow2", Format: "qcow2"}})
		if messages.CodeOf(err) != messages.CodeDefinitionRefused {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Whatever lies on the repository is refused, or names nothing of the host but the restored disks.
func FuzzForeign(f *testing.F) {
	f.Add(strings.NewReplacer("EXTRA", "", "TOP", "").Replace(usual))
	f.Add(`<domain type='qemu'><devices><emulator>/bin/sh</emulator></devices></domain>`)
	f.Add(`<domain type='kvm'><name>a</name><devices><disk><source file='/etc/shadow'/><target dev='vda'/></disk></devices></domain>`)
	f.Fuzz(func(t *testing.T, xml string) {
		disks := map[string]Source{"vda": {Path: "/srv/restored/vda.qcow2", Format: "qcow2"}}
		out, _, err := RewriteDisks(xml, disks)
		if err != nil {
			if code := messages.CodeOf(err); code != messages.CodeBackupCorrupt && code != messages.CodeDefinitionRefused {
				t.Errorf("%v", err)
			}
			return
		}
		// What was let through is let through as it now stands.
		var def libvirtxml.Domain
		if err := def.Unmarshal(out); err != nil {
			t.Fatalf("%v\n%s", err, out)
		}
		if err := checkForeign(&def, out, disks); err != nil {
			t.Errorf("%v\n%s", err, out)
		}
	})
}
