package lab

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// Ceph is a cluster of one monitor and one OSD on loopback, with one pool and a user who may use it.
type Ceph struct {
	// Pool is the pool's name.
	Pool string
	// ClientConf is a configuration for clients; it names no key.
	ClientConf string
	// User is the user of the pool, and Key the user's, in base64.
	User, Key string
	dir, conf string
	port      int
}

// cephConf keeps everything in one folder (%[1]s) and one copy of each object. The monitor's port
// is %[2]d. The OSD's device is a sparse file of 4 GiB.
const cephConf = `[global]
fsid = 6b9c2a52-5c3c-4c55-9c0e-1f1d6a9c7a10
mon host = v2:127.0.0.1:%[2]d
public addr = 127.0.0.1
auth cluster required = cephx
auth service required = cephx
auth client required = cephx
keyring = %[1]s/keyring
osd pool default size = 1
osd pool default min size = 1
osd pool default pg num = 8
osd crush chooseleaf type = 0
mon allow pool size one = true
mon data avail crit = 1
mon data = %[1]s/mon
osd data = %[1]s/osd
run dir = %[1]s/run
admin socket = %[1]s/run/$name.asok
log file = %[1]s/$name.log
bluestore block size = 4294967296
bluestore block create = true
osd memory target = 939524096
`

const cephClientConf = `[global]
mon host = v2:127.0.0.1:%d
`

// cephKeys are the keys of the monitor and of who sets the cluster up.
const cephKeys = `[mon.]
key = %[1]s
caps mon = "allow *"
[client.admin]
key = %[1]s
caps mon = "allow *"
caps osd = "allow *"
caps mgr = "allow *"
`

// cephPatience bounds each step; a client that finds no cluster would wait for ever.
const cephPatience = time.Minute

// CephCluster starts a cluster. It ends with the test.
func CephCluster(t testing.TB) *Ceph {
	t.Helper()
	c := &Ceph{Pool: "vms", User: "vms", dir: Dir(t), port: FreePort(t)}
	c.conf, c.ClientConf = filepath.Join(c.dir, "ceph.conf"), filepath.Join(c.dir, "client.conf")
	for _, dir := range []string{"mon", "osd", "run"} {
		if err := os.Mkdir(filepath.Join(c.dir, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	keyring := filepath.Join(c.dir, "keyring")
	key := strings.TrimSpace(Run(t, Tool(t, "ceph-authtool"), "--gen-print-key"))
	for path, text := range map[string]string{
		c.conf: fmt.Sprintf(cephConf, c.dir, c.port), c.ClientConf: fmt.Sprintf(cephClientConf, c.port),
		keyring: fmt.Sprintf(cephKeys, key),
	} {
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	monmap := filepath.Join(c.dir, "monmap")
	Run(t, "monmaptool", "--create", "--fsid", "6b9c2a52-5c3c-4c55-9c0e-1f1d6a9c7a10", "--addv", "a", fmt.Sprintf("[v2:127.0.0.1:%d]", c.port), monmap)
	c.bounded(t, "ceph-mon", "--id", "a", "--mkfs", "--monmap", monmap, "--keyring", keyring)
	c.start(t, "ceph-mon", "--id", "a", "--foreground")
	Eventually(t, "the monitor answers", func() bool {
		_, err := Try(t, "timeout", "5", "ceph", "--conf", c.conf, "osd", "stat")
		return err == nil
	})
	uuid := strings.TrimSpace(read(t, "/proc/sys/kernel/random/uuid"))
	c.bounded(t, "ceph", "osd", "new", uuid)
	osdKeys := filepath.Join(c.dir, "osd.keyring")
	c.bounded(t, "ceph", "auth", "get-or-create", "osd.0", "mon", "allow profile osd", "osd", "allow *", "--out-file", osdKeys)
	c.bounded(t, "ceph-osd", "--id", "0", "--mkfs", "--osd-uuid", uuid, "--keyring", osdKeys)
	c.start(t, "ceph-osd", "--id", "0", "--foreground", "--keyring", osdKeys)
	Eventually(t, "the OSD is up", func() bool {
		out, err := Try(t, "timeout", "5", "ceph", "--conf", c.conf, "osd", "stat")
		return err == nil && strings.Contains(out, "1 up")
	})
	c.bounded(t, "ceph", "osd", "pool", "create", c.Pool, "8")
	c.Key = strings.TrimSpace(c.bounded(t, "ceph", "auth", "get-or-create-key", "client."+c.User, "mon", "profile rbd", "osd", "profile rbd pool="+c.Pool))
	return c
}

// OwnConf is a configuration like ClientConf that names a keyring with the user's key.
func (c *Ceph) OwnConf(t testing.TB) string {
	t.Helper()
	keyring := writeTemp(t, fmt.Sprintf("[client.%s]\nkey = %s\n", c.User, c.Key))
	return writeTemp(t, fmt.Sprintf(cephClientConf+"keyring = %s\n", c.port, keyring))
}

// cephSecret is the UUID of libvirt's secret with the user's key, and its usage.
const cephSecret = "2c9a7f36-0d84-4f1e-9b53-7a1c5e8d4b60"

// Trust gives the user's key to a libvirtd, as the value of a secret.
func (c *Ceph) Trust(t testing.TB, l *Libvirt) {
	t.Helper()
	l.DefineSecret(t, cephSecret, "client of vms", "no", c.Key)
}

// Import makes an RBD image of a raw one.
func (c *Ceph) Import(t testing.TB, raw, image string) {
	t.Helper()
	c.bounded(t, "rbd", "import", "--no-progress", "--dest-pool", c.Pool, "--dest", image, raw)
}

// Export writes an RBD image to a raw file.
func (c *Ceph) Export(t testing.TB, image, raw string) {
	t.Helper()
	c.bounded(t, "rbd", "export", "--no-progress", "--pool", c.Pool, "--image", image, raw)
}

// Create makes an empty RBD image.
func (c *Ceph) Create(t testing.TB, image string, mib int) {
	t.Helper()
	c.bounded(t, "rbd", "create", "--size", strconv.Itoa(mib), "--pool", c.Pool, "--image", image)
}

// DiskXML is the disk of a VM that lies in an image. The cluster is found by a file of settings and the key by its UUID.
func (c *Ceph) DiskXML(image, target string) string {
	return c.diskXML(image, target, fmt.Sprintf(`<config file='%s'/>`, c.ClientConf), `uuid='`+cephSecret+`'`)
}

// DiskXMLByHost is DiskXML with the monitor's address, and the key by its usage.
func (c *Ceph) DiskXMLByHost(image, target string) string {
	return c.diskXML(image, target, fmt.Sprintf(`<host name='127.0.0.1' port='%d'/>`, c.port), `usage='client of vms'`)
}

func (c *Ceph) diskXML(image, target, cluster, secret string) string {
	return fmt.Sprintf(`<disk type='network' device='disk'><driver name='qemu' type='raw'/><source protocol='rbd' name='%s'>%s<auth username='%s'><secret type='ceph' %s/></auth></source><target dev='%s' bus='virtio'/></disk>`,
		escape(c.Pool+"/"+image), cluster, c.User, secret, target)
}

func (c *Ceph) bounded(t testing.TB, program string, args ...string) string {
	t.Helper()
	Tool(t, program)
	return Run(t, "timeout", append([]string{strconv.Itoa(int(cephPatience.Seconds())), program, "--conf", c.conf}, args...)...)
}

func (c *Ceph) start(t testing.TB, program string, args ...string) {
	t.Helper()
	var output bytes.Buffer
	cmd := exec.Command(Tool(t, program), append([]string{"--conf", c.conf}, args...)...) //nolint:noctx // the test ends it
	cmd.Stdout, cmd.Stderr = &output, &output
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // it was killed, and says so
		if t.Failed() {
			t.Logf("%s: %s", program, output.Bytes())
		}
	})
}

func read(t testing.TB, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}
