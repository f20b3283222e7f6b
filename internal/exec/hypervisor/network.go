package hypervisor

import (
	"context"
	"errors"
	"net"
	"net/url"
	"slices"
	"strings"

	"libvirt.org/go/libvirt"
	"libvirt.org/go/libvirtxml"

	"github.com/nasfleet/nasfleet/messages"
)

// The protocols of network disks that can be opened without the VM's QEMU.
const (
	ProtocolRBD = "rbd"
	ProtocolNBD = "nbd"
	ProtocolSSH = "ssh"
)

// Network says where a disk lies that is on another machine, in the words of the definition.
type Network struct {
	// Protocol is rbd, nbd, ssh, or another one of libvirt's.
	Protocol string
	// Name is pool/image of rbd, the export of nbd, the path of ssh.
	Name string
	// Hosts are Ceph's monitors, or the one server of the other protocols.
	Hosts []NetworkHost
	// Snapshot of the image, which is read-only; "" for the image itself. Rbd alone has it.
	Snapshot string
	// Config is a file on this host with the cluster's settings; "" for Ceph's usual one. Rbd alone has it.
	Config string
	// User is Ceph's, or whom to log in as over ssh; "" where the definition does not say.
	User string

	// The key of User: by one of the two; both "" without one.
	secretUUID, secretUsage string
	// other is something else of the definition that nobody but the VM's QEMU follows.
	other string
}

// NetworkHost is a server, by its name and port or by its unix socket.
type NetworkHost struct{ Name, Port, Socket string }

func networkOf(x libvirtxml.DomainDisk) *Network {
	s := x.Source.Network
	n := &Network{Protocol: s.Protocol, Name: s.Name}
	for _, h := range s.Hosts {
		n.Hosts = append(n.Hosts, NetworkHost{Name: h.Name, Port: h.Port, Socket: h.Socket})
		if h.Transport != "" && h.Transport != "tcp" && h.Transport != "unix" {
			n.other = "the transport " + h.Transport
		}
	}
	if s.Snapshot != nil {
		n.Snapshot = s.Snapshot.Name
	}
	if s.Config != nil {
		n.Config = s.Config.File
	}
	if s.Identity != nil {
		n.User = s.Identity.UserName
		if s.Identity.Keyfile != "" || s.Identity.AgentSock != "" {
			n.other = "a key of its own for SSH"
		}
	}
	switch {
	case s.TLS == "yes":
		n.other = "TLS"
	case s.KnownHosts != nil:
		n.other = "known hosts of its own"
	}
	auth := s.Auth
	if auth == nil {
		auth = x.Auth // where definitions had it once
	}
	if auth != nil {
		n.User = auth.Username
		if auth.Secret != nil {
			n.secretUUID, n.secretUsage = auth.Secret.UUID, auth.Secret.Usage
		}
	}
	return n
}

// String is a URL for people: it says which disk it is, and holds no secret.
func (n Network) String() string {
	u := url.URL{Scheme: n.Protocol, Path: "/" + n.Name}
	var hosts []string
	for _, h := range n.Hosts {
		switch {
		case h.Socket != "":
			u.Scheme, u.RawQuery = n.Protocol+"+unix", url.Values{"socket": {h.Socket}}.Encode()
		case h.Port != "" && h.Port != "0":
			hosts = append(hosts, net.JoinHostPort(h.Name, h.Port))
		default:
			hosts = append(hosts, h.Name)
		}
	}
	u.Host = strings.Join(hosts, ",")
	if n.User != "" {
		u.User = url.User(n.User)
	}
	if n.Snapshot != "" {
		u.Fragment = n.Snapshot
	}
	return u.String()
}

// same says whether two definitions name one disk, whoever opens it. Ceph's cluster can be named in many ways: images of
// one name are taken for one.
func (n Network) same(other Network) bool {
	return n.Protocol == other.Protocol && n.Name == other.Name && (n.Protocol == ProtocolRBD || slices.Equal(n.Hosts, other.Hosts))
}

// check refuses what cannot be opened without the VM's QEMU.
func (n Network) check(target string) error {
	refuse := func(format string, args ...any) error {
		return messages.Errorf(messages.CodeDiskUnsupported, "disk %s (%s): "+format, append([]any{target, n}, args...)...).
			WithHint("Back the VM up while it runs, or move the disk to a file, a block device, RBD, or plain NBD or SSH.")
	}
	switch n.Protocol {
	case ProtocolRBD, ProtocolNBD, ProtocolSSH:
	default:
		return refuse("its protocol is %s", n.Protocol)
	}
	if n.other != "" {
		return refuse("it has %s, which only the VM's own QEMU can use", n.other)
	}
	if n.Protocol != ProtocolRBD && (n.secretUUID != "" || n.secretUsage != "" || n.Snapshot != "") {
		return refuse("it has a secret or a snapshot, which is for RBD alone")
	}
	if n.Protocol != ProtocolRBD && len(n.Hosts) != 1 {
		return refuse("it has %d hosts", len(n.Hosts))
	}
	return nil
}

// NetworkKey asks libvirt for the secret that a network disk is opened with; nil where it needs none. The
// caller wipes it. The error has the code CodeDiskUnsupported where libvirt has no such secret or
// gives it to nobody.
func (h *Hypervisor) NetworkKey(ctx context.Context, n Network) ([]byte, error) {
	if n.secretUUID == "" && n.secretUsage == "" {
		return nil, nil
	}
	return call(ctx, h, func(conn *libvirt.Connect) ([]byte, error) {
		key, err := secretValue(conn, n)
		var refused libvirt.Error
		if errors.As(err, &refused) && refused.Domain == libvirt.FROM_SECRET || is(err, libvirt.ERR_NO_SECRET, libvirt.ERR_INVALID_SECRET) {
			return nil, messages.Errorf(messages.CodeDiskUnsupported, "the secret of %s: %w", n, plain(err)).
				WithHint("Give this host's libvirt the secret (virsh secret-define, secret-set-value), not private, or back the VM up while it runs.")
		}
		return key, err
	}, func(_ *libvirt.Connect, key []byte) { clear(key) })
}

func secretValue(conn *libvirt.Connect, n Network) ([]byte, error) {
	var s *libvirt.Secret
	var err error
	if n.secretUUID != "" {
		s, err = conn.LookupSecretByUUIDString(n.secretUUID)
	} else {
		s, err = conn.LookupSecretByUsage(libvirt.SECRET_USAGE_TYPE_CEPH, n.secretUsage)
	}
	if err != nil {
		return nil, err
	}
	defer func() { _ = s.Free() }()
	return s.GetValue(0)
}

// NetworkUser returns the name of an active VM with a disk that its definition names in the same way; "" for none. Of VMs on other hosts, and of other programs, nobody here knows.
func (h *Hypervisor) NetworkUser(ctx context.Context, n Network) (string, error) {
	return call(ctx, h, func(conn *libvirt.Connect) (string, error) {
		doms, err := conn.ListAllDomains(libvirt.CONNECT_LIST_DOMAINS_ACTIVE)
		if err != nil {
			return "", err
		}
		user := ""
		for i := range doms {
			if user == "" && usesNetwork(&doms[i], n) {
				user, err = doms[i].GetName()
			}
			free(&doms[i])
		}
		return user, err
	}, nil)
}

// usesNetwork says whether an active VM has a disk; one that has just ended has none.
func usesNetwork(dom *libvirt.Domain, n Network) bool {
	text, err := dom.GetXMLDesc(0)
	if err != nil {
		return false
	}
	var def libvirtxml.Domain
	if def.Unmarshal(text) != nil || def.Devices == nil {
		return false
	}
	for _, x := range def.Devices.Disks {
		if x.Source != nil && x.Source.Network != nil && networkOf(x).same(n) {
			return true
		}
	}
	return false
}
