package hypervisor

import (
	"reflect"
	"strings"
	"testing"

	"libvirt.org/go/libvirtxml"

	"github.com/nasfleet/nasfleet/messages"
	"github.com/nasfleet/nasfleet/tests/lab"
)

// networkDisk reads the disk that a source describes.
func networkDisk(t *testing.T, source string) Disk {
	t.Helper()
	var def libvirtxml.Domain
	if err := def.Unmarshal("<domain><devices><disk type='network' device='disk'>" + source + "<target dev='vda'/></disk></devices></domain>"); err != nil {
		t.Fatal(err)
	}
	disks, _ := disksOf(def)
	if len(disks) != 1 || disks[0].Network == nil {
		t.Fatalf("disks %+v", disks)
	}
	return disks[0]
}

func TestNetworkDisks(t *testing.T) {
	for name, c := range map[string]struct {
		source, url string
		want        Network
	}{
		"rbd": {
			`<source protocol='rbd' name='p/i'><host name='m1'/><host name='::1' port='99'/><snapshot name='s'/><config file='/c'/><auth username='u'><secret type='ceph' uuid='x'/></auth></source>`,
			"rbd://u@m1,[::1]:99/p/i#s",
			Network{Protocol: "rbd", Name: "p/i", Hosts: []NetworkHost{{Name: "m1"}, {Name: "::1", Port: "99"}}, Snapshot: "s", Config: "/c", User: "u", secretUUID: "x"},
		},
		"an old one": {
			`<auth username='u'><secret type='ceph' usage='y'/></auth><source protocol='rbd' name='p/i'/>`, "rbd://u@/p/i",
			Network{Protocol: "rbd", Name: "p/i", User: "u", secretUsage: "y"},
		},
		"nbd": {
			`<source protocol='nbd' name='a b,c'><host name='h' port='1'/><reconnect delay='3'/></source>`, "nbd://h:1/a%20b,c",
			Network{Protocol: "nbd", Name: "a b,c", Hosts: []NetworkHost{{Name: "h", Port: "1"}}},
		},
		"unix": {
			"<source protocol='nbd' name='x&#10;y'><host transport='unix' socket='/s'/></source>", "nbd+unix:///x%0Ay?socket=%2Fs",
			Network{Protocol: "nbd", Name: "x\ny", Hosts: []NetworkHost{{Socket: "/s"}}},
		},
		"ssh": {
			`<source protocol='ssh' name='/d'><host name='h' port='22'/><identity username='joe'/></source>`, "ssh://joe@h:22//d",
			Network{Protocol: "ssh", Name: "/d", Hosts: []NetworkHost{{Name: "h", Port: "22"}}, User: "joe"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			d := networkDisk(t, c.source)
			if !reflect.DeepEqual(*d.Network, c.want) || d.Path != c.url {
				t.Errorf("%+v, %s", *d.Network, d.Path)
			}
			if err := d.CheckOpen(); err != nil {
				t.Error(err)
			}
			want := messages.Code("")
			if c.want.Snapshot != "" {
				want = messages.CodeDiskUnsupported
			}
			wantCode(t, d.CheckWrite(), want)
		})
	}
}

func TestNetworkDisksThatAreRefused(t *testing.T) {
	for source, says := range map[string]string{
		`<source protocol='iscsi' name='iqn.x/1'><host name='h'/></source>`:                                                    "iscsi",
		`<source protocol='https' name='d'><host name='h'/><cookies><cookie name='c'>v</cookie></cookies></source>`:            "https",
		`<source protocol='nbd' name='d' tls='yes'><host name='h'/></source>`:                                                  "TLS",
		`<source protocol='nbd' name='d'/>`:                                                                                    "0 hosts",
		`<source protocol='nbd' name='d'><host name='a'/><host name='b'/></source>`:                                            "2 hosts",
		`<source protocol='nbd' name='d'><host name='a' transport='rdma'/></source>`:                                           "rdma",
		`<source protocol='ssh' name='/d'><host name='h'/><identity username='u' keyfile='/k'/></source>`:                      "a key of its own",
		`<source protocol='ssh' name='/d'><host name='h'/><identity username='u' agentsock='/k'/></source>`:                    "a key of its own",
		`<source protocol='ssh' name='/d'><host name='h'/><knownHosts path='/k'/></source>`:                                    "known hosts",
		`<source protocol='ssh' name='/d'><host name='h'/><auth username='u'><secret type='iscsi' usage='x'/></auth></source>`: "secret",
		`<source protocol='rbd' name='p/i'><slices><slice type='storage' offset='512' size='1024'/></slices></source>`:         "slice",
	} {
		err := networkDisk(t, source).CheckOpen()
		wantCode(t, err, messages.CodeDiskUnsupported)
		if err == nil || !strings.Contains(err.Error(), says) || !strings.Contains(err.Error(), "vda") {
			t.Errorf("%s: %v", source, err)
		}
	}
	err := networkDisk(t, `<source protocol='rbd' name='p/i'><encryption format='luks' engine='librbd'/></source>`).CheckOpen()
	wantCode(t, err, messages.CodeSourceEncrypted)
}

// A key comes from libvirt's secret by its UUID or its usage, and from no secret that libvirt gives to nobody.
func TestNetworkKey(t *testing.T) {
	l := lab.Libvirtd(t)
	h := connect(t, l.URI)
	const open, private = "2c9a7f36-0d84-4f1e-9b53-7a1c5e8d4b60", "2c9a7f36-0d84-4f1e-9b53-7a1c5e8d4b61"
	for uuid, is := range map[string]string{open: "no", private: "yes"} {
		l.DefineSecret(t, uuid, "usage of "+uuid, is, "a2V5AAEC") // "key", 0, 1, 2
	}
	for name, n := range map[string]Network{
		"uuid": {secretUUID: open}, "usage": {secretUsage: "usage of " + open}, "none": {},
	} {
		key, err := h.NetworkKey(t.Context(), n)
		want := "key\x00\x01\x02"
		if name == "none" {
			want = ""
		}
		if err != nil || string(key) != want {
			t.Errorf("%s: %q, %v", name, key, err)
		}
	}
	for _, n := range []Network{{secretUUID: private}, {secretUUID: "2c9a7f36-0d84-4f1e-9b53-7a1c5e8d4b69"}, {secretUsage: "none such"}} {
		key, err := h.NetworkKey(t.Context(), n)
		wantCode(t, err, messages.CodeDiskUnsupported)
		if key != nil {
			t.Error("there is a key")
		}
	}
}
