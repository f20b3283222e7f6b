package storaged

import (
	"context"
	"encoding/json"
	"errors"
	"net"
	"path/filepath"
	"testing"
	"time"

	"github.com/nasfleet/nasfleet/messages"
)

// TestRemoteOptions: names are strings of JSON and nothing else, and what Ceph would split is refused.
func TestRemoteOptions(t *testing.T) {
	host := Host{"h", "1"}
	const odd = "a,b=c ;\"d\"\n../e"
	for name, c := range map[string]struct {
		remote Remote
		want   string // "" where it is refused
	}{
		"rbd":         {RBD{Pool: odd, Image: "i@s:x", Key: []byte("k"), User: odd}, `{"auth-client-required":["cephx","none"],"driver":"rbd","image":"i@s:x","pool":"a,b=c ;\"d\"\n../e","user":"a,b=c ;\"d\"\n../e"}`},
		"monitors":    {RBD{Pool: "p", Image: "i", Monitors: []Host{{"m", ""}, {"2001:db8::1", "99"}}, Conf: "/c"}, `{"conf":"/c","driver":"rbd","image":"i","pool":"p","server":[{"host":"m","port":"0"},{"host":"2001:db8::1","port":"99"}]}`},
		"nbd":         {NBD{Host: host, Export: odd}, `{"driver":"nbd","export":"a,b=c ;\"d\"\n../e","server":{"host":"h","port":"1","type":"inet"}}`},
		"nbd unix":    {NBD{Socket: "/s,k"}, `{"driver":"nbd","server":{"path":"/s,k","type":"unix"}}`},
		"ssh":         {SSH{Host: host, User: "u", Path: "/" + odd}, `{"driver":"ssh","host-key-check":{"mode":"known_hosts"},"path":"/a,b=c ;\"d\"\n../e","server":{"host":"h","port":"1"},"user":"u"}`},
		"no image":    {RBD{Pool: "p"}, ""},
		"namespace":   {RBD{Pool: "p", Image: "n/i"}, ""},
		"two hosts":   {RBD{Pool: "p", Image: "i", Monitors: []Host{{"a;b", "1"}}}, ""},
		"a list":      {RBD{Pool: "p", Image: "i", Monitors: []Host{{"a,b", "1"}}}, ""},
		"a vector":    {RBD{Pool: "p", Image: "i", Monitors: []Host{{"[v2:a]", "1"}}}, ""},
		"no port":     {NBD{Host: Host{"h", ""}}, ""},
		"port and":    {RBD{Pool: "p", Image: "i", Monitors: []Host{{"a", "1;b"}}}, ""},
		"line":        {NBD{Host: Host{"h\n", "1"}}, ""},
		"confs":       {RBD{Pool: "p", Image: "i", Conf: "/a,/b"}, ""},
		"variable":    {RBD{Pool: "p", Image: "i", Conf: "/$cluster"}, ""},
		"no conf":     {RBD{Pool: "p", Image: "i", Conf: "c"}, ""},
		"no socket":   {NBD{Socket: "s"}, ""},
		"ssh at home": {SSH{Host: host, Path: "x"}, ""},
	} {
		options, err := c.remote.options()
		if c.want == "" {
			wantCode(t, err, messages.CodeDiskUnsupported)
			continue
		}
		got, _ := json.Marshal(options)
		if err != nil || string(got) != c.want {
			t.Errorf("%s: %s, %v", name, got, err)
		}
	}
}

// TestRemote reads and writes disks on an NBD server, which is another daemon.
func TestRemote(t *testing.T) {
	server, _ := startDaemon(t, quick)
	d, _ := startDaemon(t, quick)
	dir, want, other := t.TempDir(), content(2<<20), content(2<<20 + 512)[:2<<20]
	raw := writeFile(t, filepath.Join(dir, "raw"), want)
	qcow2, over := filepath.Join(dir, "qcow2"), filepath.Join(dir, "over")
	run(t, "", "qemu-img", "convert", "-f", "raw", "-O", "qcow2", raw, qcow2)
	run(t, "", "truncate", "-s", "8M", qcow2) // an export does not grow
	run(t, "", "qemu-img", "create", "-q", "-f", "qcow2", "-b", "/etc/passwd", "-F", "raw", over, "2M")
	for name, path := range map[string]string{"raw": raw, "a,b\n": qcow2, "over": over} {
		mustDo(t, server.OpenForWrite(t.Context(), name, Disk{Path: path, Format: FormatRaw}))
	}
	at := func(name, format string) RemoteDisk {
		return RemoteDisk{Name: "vda (far)", Format: format, Remote: NBD{Socket: server.Socket(), Export: name}}
	}
	for _, disk := range []RemoteDisk{at("raw", FormatRaw), at("a,b\n", FormatQcow2)} {
		mustDo(t, d.OpenRemote(t.Context(), "vda", disk))
		requireSame(t, copyOut(t, d, "vda"), want)
		mustDo(t, d.CloseExport(t.Context(), "vda"))
		mustDo(t, d.OpenRemoteForWrite(t.Context(), "vda", disk))
		copyIn(t, d, writeFile(t, filepath.Join(dir, "other"), other), "vda")
		mustDo(t, d.CloseExport(t.Context(), "vda"))
		mustDo(t, d.OpenRemote(t.Context(), "vda", disk))
		requireSame(t, copyOut(t, d, "vda"), other)
		mustDo(t, d.CloseExport(t.Context(), "vda"))
		requireEmpty(t, d)
	}
	for _, c := range []struct {
		disk        RemoteDisk
		read, write messages.Code
	}{
		{at("over", FormatQcow2), messages.CodeDiskUnsupported, messages.CodeDiskUnsupported},
		{at("raw", "vmdk"), messages.CodeDiskUnsupported, messages.CodeDiskUnsupported},
		{at("raw", FormatQcow2), messages.CodeDiskUnsupported, messages.CodeDiskUnsupported},
		{at("none", FormatRaw), messages.CodeDiskNotFound, messages.CodeDiskNotFound},
		{RemoteDisk{Format: FormatRaw, Remote: NBD{Socket: "/nowhere"}}, messages.CodeSourceReadFailed, messages.CodeTargetWriteFailed},
		{RemoteDisk{Format: FormatRaw, Remote: NBD{Host: Host{"127.0.0.1", "1"}}}, messages.CodeSourceReadFailed, messages.CodeTargetWriteFailed},
		{RemoteDisk{Format: FormatRaw, Remote: NBD{Socket: server.Socket(), Export: "\xff"}}, messages.CodeDiskUnsupported, messages.CodeDiskUnsupported},
	} {
		wantCode(t, d.OpenRemote(t.Context(), "vda", c.disk), c.read)
		wantCode(t, d.OpenRemoteForWrite(t.Context(), "vda", c.disk), c.write)
		requireEmpty(t, d)
	}
}

// cephKey is a key as Ceph writes one: its type, when it was made, its length, and 16 bytes.
func cephKey() []byte {
	return append([]byte{1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 16, 0}, "0123456789abcdef"...)
}

// TestARemoteThatHangs ends with its context, and the daemon, which does nothing else any more, with it. Ceph, whose
// monitors are away, waits for minutes; its key goes too.
func TestARemoteThatHangs(t *testing.T) {
	// The kernel takes the connections, and nobody reads them.
	silent, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = silent.Close() }()
	_, port, _ := net.SplitHostPort(silent.Addr().String())
	for name, remote := range map[string]Remote{
		"nbd": NBD{Host: Host{"127.0.0.1", port}},
		"ssh": SSH{Host: Host{"127.0.0.1", port}, Path: "/disk"},
		"rbd": RBD{Pool: "p", Image: "i", Monitors: []Host{{"127.0.0.1", "1"}}, User: "u", Key: cephKey()},
	} {
		t.Run(name, func(t *testing.T) {
			d, _ := startDaemon(t, quick)
			cause := errors.New("waited enough")
			ctx, cancel := context.WithTimeoutCause(t.Context(), time.Second, cause)
			defer cancel()
			if err := d.OpenRemote(ctx, "vda", RemoteDisk{Format: FormatRaw, Remote: remote}); !errors.Is(err, cause) {
				t.Fatal(err)
			}
			<-d.Done()
		})
	}
}

func wantCode(t *testing.T, err error, want messages.Code) {
	t.Helper()
	if got := messages.CodeOf(err); got != want {
		t.Errorf("code %q, want %q: %v", got, want, err)
	}
}
