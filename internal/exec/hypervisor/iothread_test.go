package hypervisor

import (
	"testing"

	"libvirt.org/go/libvirtxml"
)

func TestThreadedDisk(t *testing.T) {
	const controllers = `<controller type='scsi' index='0' model='virtio-scsi'/>` +
		`<controller type='scsi' index='1' model='virtio-scsi'><driver iothread='1'/></controller>`
	for name, c := range map[string]struct{ devices, want string }{
		"none":                 {`<disk><driver name='qemu'/><target dev='vda' bus='virtio'/></disk>`, ""},
		"its own":              {`<disk><driver name='qemu' iothread='1'/><target dev='vda' bus='virtio'/></disk>`, "vda"},
		"several":              {`<disk><driver name='qemu'><iothreads><iothread id='1'/></iothreads></driver><target dev='vda' bus='virtio'/></disk>`, "vda"},
		"not served":           {`<disk><driver name='qemu' iothread='1'/><target dev='vdz' bus='virtio'/></disk>`, ""},
		"its controller's":     {controllers + `<disk><target dev='sda' bus='scsi'/><address type='drive' controller='1' bus='0' target='0' unit='0'/></disk>`, "sda"},
		"another controller's": {controllers + `<disk><target dev='sda' bus='scsi'/><address type='drive' controller='0' bus='0' target='0' unit='0'/></disk>`, ""},
		"a SATA controller's":  {controllers + `<disk><target dev='sda' bus='sata'/><address type='drive' controller='1' bus='0' target='0' unit='0'/></disk>`, ""},
	} {
		t.Run(name, func(t *testing.T) {
			var def libvirtxml.Domain
			if err := def.Unmarshal(`<domain type='qemu'><name>x</name><devices>` + c.devices + `</devices></domain>`); err != nil {
				t.Fatal(err)
			}
			spec := BackupSpec{Domain: "x", Disks: []BackupDisk{{Target: "vda"}, {Target: "sda"}}}
			if got := threadedDisk(def, spec); got != c.want {
				t.Errorf("got %q, want %q", got, c.want)
			}
		})
	}
}
