package storaged

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"regexp"
	"strings"
	"unicode/utf8"

	"github.com/nasfleet/nasfleet/messages"
)

// RemoteDisk is a disk that exists on another machine. A qcow2 image there must name no other file.
//
// Its server can accept and never answer, and the daemon does nothing else meanwhile: whoever opens it bounds the time.
type RemoteDisk struct {
	// Name is for people.
	Name string
	// Format is FormatRaw or FormatQcow2; it is never guessed.
	Format string
	Remote Remote
	// Bitmaps is Disk.Bitmaps.
	Bitmaps string
}

// Remote is where it lies: an RBD, an NBD or an SSH. Each of its strings is one string of JSON to the daemon, and what
// QEMU or a library of its would read more into is refused (CodeDiskUnsupported).
type Remote interface {
	// options are those of the node (BlockdevOptions in QEMU's qapi/block-core.json).
	options() (object, error)
	// key opens it; nil for none.
	key() []byte
}

// Host is a server: its name or address, and its port.
type Host struct{ Name, Port string }

// RBD is an image of a Ceph cluster.
type RBD struct {
	Pool, Image string
	// Snapshot of the image, which can only be read; "" for the image itself.
	Snapshot string
	// Monitors of the cluster; without any, Conf says where they are.
	Monitors []Host
	// Conf is a file with the cluster's settings; "" for /etc/ceph/ceph.conf, where there is one.
	Conf string
	// User is a user of Ceph, such as admin; "" for the settings' own.
	User string
	// Key is the user's, in bytes, not base64; nil leaves it to the settings. It is not kept.
	Key []byte
}

// NBD is an export of an NBD server, without TLS.
type NBD struct {
	// Socket is the path of the server's unix socket; "" for one at Host.
	Socket string
	Host   Host
	// Export may be "".
	Export string
}

// SSH is a file on an SSH server that speaks SFTP and is known to the worker's user, who has a key that it takes.
type SSH struct {
	Host Host
	// User to log in as; "" for the worker's own.
	User string
	// Path is absolute.
	Path string
}

// hostPattern is a name or an address of IPv4 or IPv6. Ceph splits lists of monitors at much else.
var hostPattern = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9._:-]*$|^::[A-Za-z0-9.:]*$`)

func (r RBD) key() []byte { return r.Key }
func (NBD) key() []byte   { return nil }
func (SSH) key() []byte   { return nil }

func (r RBD) options() (object, error) {
	if r.Pool == "" || r.Image == "" || strings.Contains(r.Image, "/") {
		return nil, messages.Errorf(messages.CodeDiskUnsupported, "its name is not pool/image").
			WithHint("Back the VM up while it runs: images in a namespace of their pool are not opened.")
	}
	options := object{"driver": "rbd", "pool": r.Pool, "image": r.Image}
	for name, value := range map[string]string{"snapshot": r.Snapshot, "user": r.User} {
		if value != "" {
			options[name] = value
		}
	}
	if r.Conf != "" {
		// Ceph takes it for a list, and fills in variables.
		if !filepath.IsAbs(r.Conf) || strings.ContainsAny(r.Conf, "$,;= \t\r\n") {
			return nil, messages.Errorf(messages.CodeDiskUnsupported, "its file of settings, %q, is not one that Ceph takes for one absolute path", r.Conf)
		}
		options["conf"] = r.Conf
	}
	var monitors []object
	for _, h := range r.Monitors {
		if h.Port == "" {
			h.Port = "0" // both of Ceph's own
		}
		m, err := h.options()
		if err != nil {
			return nil, err
		}
		monitors = append(monitors, m)
	}
	if monitors != nil {
		options["server"] = monitors
	}
	if r.Key != nil {
		options["auth-client-required"] = []string{"cephx", "none"}
	}
	return options, nil
}

func (n NBD) options() (object, error) {
	options := object{"driver": "nbd"}
	if n.Export != "" {
		options["export"] = n.Export
	}
	if n.Socket != "" {
		options["server"] = object{"type": "unix", "path": n.Socket}
		return options, checkPath(n.Socket)
	}
	server, err := n.Host.options()
	if err != nil {
		return nil, err
	}
	server["type"] = "inet"
	options["server"] = server
	return options, nil
}

func (s SSH) options() (object, error) {
	server, err := s.Host.options()
	if err != nil {
		return nil, err
	}
	if !strings.HasPrefix(s.Path, "/") {
		return nil, messages.Errorf(messages.CodeDiskUnsupported, "its path on the server must be absolute")
	}
	options := object{"driver": "ssh", "server": server, "path": s.Path, "host-key-check": object{"mode": "known_hosts"}}
	if s.User != "" {
		options["user"] = s.User
	}
	return options, nil
}

func (h Host) options() (object, error) {
	if !hostPattern.MatchString(h.Name) {
		return nil, messages.Errorf(messages.CodeDiskUnsupported, "%q is not the name or address of a host", h.Name)
	}
	if h.Port == "" || strings.Trim(h.Port, "0123456789") != "" {
		return nil, messages.Errorf(messages.CodeDiskUnsupported, "%q is not the number of a port", h.Port)
	}
	return object{"host": h.Name, "port": h.Port}, nil
}

// OpenRemote exports a disk on another machine for reading. Others may write to it meanwhile: what is read is then torn.
func (d *Daemon) OpenRemote(ctx context.Context, export string, disk RemoteDisk) error {
	err := d.build(ctx, export, func(ctx context.Context, g *graph) error {
		shared := object{"read-only": true, "force-share": true}
		file, err := g.remoteNode(ctx, disk, shared)
		if err != nil {
			return err
		}
		top, err := g.node(ctx, disk.onNode(file, shared))
		if err != nil {
			return err
		}
		if err := g.checkRemote(ctx, disk, top); err != nil {
			return err
		}
		return g.exportBitmaps(ctx, export, top, disk.Bitmaps)
	})
	return classify(ctx, reading, "open disk "+disk.Name, reading.atServer(err))
}

// OpenRemoteForWrite exports a disk on another machine for writing over it. No lock keeps others from doing the same.
func (d *Daemon) OpenRemoteForWrite(ctx context.Context, export string, disk RemoteDisk) error {
	err := d.build(ctx, export, func(ctx context.Context, g *graph) error {
		discard := object{"discard": "unmap"}
		file, err := g.remoteNode(ctx, disk, discard)
		if err != nil {
			return err
		}
		top, err := g.writeNode(ctx, disk.onNode(file, discard), nil)
		if err != nil {
			return err
		}
		if err := g.checkRemote(ctx, disk, top); err != nil {
			return err
		}
		return g.export(ctx, export, top, true)
	})
	return classify(ctx, overwriting, fmt.Sprintf("open disk %s for writing", disk.Name), overwriting.atServer(err))
}

// remoteNode adds the node at the bottom of a disk on another machine.
func (g *graph) remoteNode(ctx context.Context, disk RemoteDisk, more object) (node string, err error) {
	if disk.Format != FormatRaw && disk.Format != FormatQcow2 {
		return "", errFormat(disk.Format)
	}
	options, err := disk.Remote.options()
	if err != nil {
		return "", err
	}
	for name, value := range options {
		if s, ok := value.(string); ok && (!utf8.ValidString(s) || strings.Contains(s, "\x00")) {
			return "", messages.Errorf(messages.CodeDiskUnsupported, "its %s cannot be passed on unchanged", name)
		}
	}
	maps.Copy(options, more)
	key := disk.Remote.key()
	if key == nil {
		return g.node(ctx, options)
	}
	err = g.withSecret(ctx, key, func(secret string) error {
		options["key-secret"] = secret
		node, err = g.node(ctx, options)
		return err
	})
	return node, err
}

// onNode describes the node of the disk's format on that of its bytes. Nobody has looked at the header yet: QEMU
// must not follow what it names.
func (r RemoteDisk) onNode(file string, more object) object {
	options := object{"driver": r.Format, "file": file}
	if r.Format == FormatQcow2 {
		options["backing"] = nil
	}
	maps.Copy(options, more)
	return options
}

func (g *graph) checkRemote(ctx context.Context, disk RemoteDisk, node string) error {
	if disk.Format != FormatQcow2 {
		return nil
	}
	err := g.standsAlone(ctx, node)
	if errors.Is(err, errReferences) {
		return messages.Errorf(messages.CodeDiskUnsupported, "%w", err).
			WithHint("Back the VM up while it runs, or convert the image into one that stands alone (qemu-img convert).")
	}
	return err
}

// atServer gives an error its code that says what a server lacks, or that it is not there: in the words of an error of the
// system that means something else of a file.
func (p purpose) atServer(err error) error {
	switch {
	case err == nil || messages.CodeOf(err) != messages.CodeInternal:
		return err
	case says(err, sayNoDriver):
		return messages.Errorf(messages.CodeDiskUnsupported, "%w", err).
			WithHint("Install QEMU's block drivers on the host (Debian: qemu-block-extra).")
	case says(err, sayNoServer):
		return messages.Errorf(p.failed(), "%w", err).
			WithHint("Check the server of the disk, and the network from this host to it.")
	case says(err, sayNoExport):
		return messages.Errorf(p.missing(), "%w", err).
			WithHint("Check the name in the VM's definition: its server has no such export.")
	case p.code(err).Code == p.failed():
		return messages.Errorf(p.failed(), "%w", err).
			WithHint("Check the server of the disk, and what it lets this host do; the message has its answer.")
	}
	return err
}
