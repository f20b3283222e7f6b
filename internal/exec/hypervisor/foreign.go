package hypervisor

import (
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"

	"libvirt.org/go/libvirtxml"

	"github.com/nasfleet/nasfleet/messages"
)

// maxReasons bounds what a refusal lists.
const maxReasons = 5

// checkForeign refuses a definition that asks for more of the host than a VM with these disks: it
// lies on the repository, and who can write there must not get at the host's files, devices or
// programs by way of a restore. The error has the code CodeDefinitionRefused and says all of it.
func checkForeign(def *libvirtxml.Domain, rewritten string, disks map[string]Source) error {
	reasons := asksFor(def)
	paths, err := foreignPaths(rewritten, def.Name, disks)
	if err != nil {
		return messages.Errorf(messages.CodeBackupCorrupt, "the VM's definition cannot be read: %w", err)
	}
	for _, p := range paths {
		reasons = append(reasons, fmt.Sprintf("it names %q", p))
	}
	if len(reasons) == 0 {
		return nil
	}
	text := strings.Join(reasons[:min(len(reasons), maxReasons)], ", ")
	if n := len(reasons) - maxReasons; n > 0 {
		text += fmt.Sprintf(" and %d more", n)
	}
	return messages.Errorf(messages.CodeDefinitionRefused, "the backup's definition of the VM asks for more than its disks: %s", text)
}

// asksFor lists what reaches out of the VM without naming a path.
func asksFor(def *libvirtxml.Domain) []string {
	var reasons []string
	refuse := func(is bool, what string) {
		if is {
			reasons = append(reasons, what)
		}
	}
	refuse(def.Type != "kvm" && def.Type != "qemu", fmt.Sprintf("it is of type %q", def.Type))
	refuse(def.QEMUCommandline != nil || def.QEMUOverride != nil || def.QEMUCapabilities != nil, "it has arguments for QEMU")
	refuse(def.LXCNamespace != nil || def.BHyveCommandline != nil || def.XenCommandline != nil, "it has arguments for another hypervisor")
	refuse(def.Bootloader != "", "it has a boot loader on the host")
	if d := def.Devices; d != nil {
		refuse(len(d.Hostdevs) > 0, "it has devices of the host")
		refuse(len(d.Filesystems) > 0, "it has folders of the host")
		refuse(len(d.Leases) > 0, "it takes leases")
		refuse(len(d.Shmems) > 0, "it has memory of the host")
		for _, nic := range d.Interfaces {
			refuse(nic.Script != nil || nic.DownScript != nil, "it runs a script for its network")
			refuse(nic.Source != nil && (nic.Source.Hostdev != nil || nic.Source.VDPA != nil || nic.Source.VHostUser != nil),
				"it has a network device of the host")
		}
		for _, c := range d.Smartcards {
			refuse(c.Host != nil, "it has the host's smart card")
		}
		for _, c := range terminals(d) {
			refuse(c.Dev != nil || c.File != nil || c.Pipe != nil || c.NMDM != nil, "it has a terminal on a file or device of the host")
		}
	}
	return reasons
}

// terminals are what a VM's serial ports and the like are connected to.
func terminals(d *libvirtxml.DomainDeviceList) []libvirtxml.DomainChardevSource {
	var all []libvirtxml.DomainChardevSource
	add := func(c *libvirtxml.DomainChardevSource) {
		if c != nil {
			all = append(all, *c)
		}
	}
	for _, c := range d.Serials {
		add(c.Source)
	}
	for _, c := range d.Parallels {
		add(c.Source)
	}
	for _, c := range d.Consoles {
		add(c.Source)
	}
	for _, c := range d.Channels {
		add(c.Source)
	}
	for _, c := range d.RedirDevs {
		add(c.Source)
	}
	for _, c := range d.Smartcards {
		add(c.Passthrough)
	}
	return all
}

// ownSockets has libvirt choose the sockets of the VM's channels, such as the guest agent's: those in
// the definition may by now be another VM's.
func ownSockets(def *libvirtxml.Domain) {
	if def.Devices == nil {
		return
	}
	for _, c := range def.Devices.Channels {
		if c.Source != nil && c.Source.UNIX != nil && c.Source.UNIX.Mode != "connect" {
			c.Source.UNIX.Path = ""
		}
	}
}

// foreignPaths lists the absolute paths of a definition that are neither restored disks nor what
// every VM has in that place, whatever element they are in: also one that nobody has thought of.
func foreignPaths(definition, vm string, disks map[string]Source) ([]string, error) {
	var found, open []string
	look := func(s string) {
		s = strings.TrimSpace(s)
		if strings.HasPrefix(s, "/") && !known(open[len(open)-1], s, vm, disks) && !slices.Contains(found, s) {
			found = append(found, s)
		}
	}
	d := xml.NewDecoder(strings.NewReader(definition))
	for {
		t, err := d.Token()
		if errors.Is(err, io.EOF) {
			return found, nil
		}
		if err != nil {
			return nil, err
		}
		switch t := t.(type) {
		case xml.StartElement:
			if slices.Contains([]string{"title", "description", "metadata", "name"}, t.Name.Local) { // read by people alone
				if err := d.Skip(); err != nil {
					return nil, err
				}
				continue
			}
			open = append(open, t.Name.Local)
			for _, a := range t.Attr {
				look(a.Value)
			}
		case xml.EndElement:
			open = open[:len(open)-1]
		case xml.CharData:
			if len(open) > 0 {
				look(string(t))
			}
		}
	}
}

// known says whether a path is one that every VM may have in an element: a restored disk, QEMU's own
// program and firmware, the VM's own variables, a source of random numbers, a terminal.
func known(element, p, vm string, disks map[string]Source) bool {
	if path.Clean(p) != p {
		return false
	}
	below := func(prefixes ...string) bool {
		return slices.ContainsFunc(prefixes, func(prefix string) bool { return strings.HasPrefix(p, prefix) })
	}
	switch element {
	case "source", "console": // of terminals, those on files and devices are refused by their kind
		for _, s := range disks {
			if p == s.Path {
				return true
			}
		}
		return below("/dev/pts/")
	case "emulator":
		return below("/usr/bin/qemu-system-", "/usr/bin/qemu-kvm", "/usr/libexec/qemu-kvm")
	case "loader":
		return below("/usr/share/")
	case "nvram":
		return p == "/var/lib/libvirt/qemu/nvram/"+vm+"_VARS.fd" || below("/usr/share/")
	case "backend":
		return slices.Contains([]string{"/dev/urandom", "/dev/random", "/dev/hwrng", "/dev/net/tun", "/dev/vhost-net"}, p)
	case "partition":
		return p == "/machine"
	}
	return false
}
