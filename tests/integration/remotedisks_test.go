package integration

import (
	"cmp"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/nasfleet/nasfleet/messages"
	"github.com/nasfleet/nasfleet/tests/lab"
)

// remoteXML is a network disk of a VM. The source is XML.
func remoteXML(target, format, source string) string {
	return fmt.Sprintf(`<disk type='network' device='disk'><driver name='qemu' type='%s'/>%s<target dev='%s' bus='virtio'/></disk>`,
		format, source, target)
}

// defineRemote defines a VM with network disks, and leaves it stopped.
func defineRemote(t *testing.T, l *lab.Libvirt, name string, disks ...string) *lab.VM {
	t.Helper()
	return l.DefineVM(t, lab.VMOptions{Name: name, DevicesXML: strings.Join(disks, ""), Stopped: true})
}

// newWorldAt is newWorld whose worker has a home folder of its own.
func newWorldAt(t *testing.T, uri string, home func(dir string), args ...string) *world {
	t.Helper()
	w := &world{dir: lab.Dir(t), libvirt: uri, args: args}
	w.home = w.mkdir(t, "home")
	home(w.home)
	w.begin(t)
	return w
}

// TestRemoteDisksOfAStoppedVM backs up disks on NBD servers, over TCP and over a unix socket, and on an SSH server,
// raw and qcow2, with names that mean only themselves; and restores over them.
func TestRemoteDisksOfAStoppedVM(t *testing.T) {
	t.Parallel()
	l := lab.Libvirtd(t)
	server := lab.Sshd(t)
	w := newWorldAt(t, l.URI, func(home string) { server.Trust(t, filepath.Join(home, ".ssh"), "root") })
	const name = "a,b=\"c\"\n../'d' node-name=x"
	tcp := dataImage(t, w, "tcp.raw", 24)
	unix := filepath.Join(w.dir, "unix.qcow2")
	lab.Run(t, "qemu-img", "convert", "-f", "raw", "-O", "qcow2", dataImage(t, w, "unix.raw", 24), unix)
	lab.Run(t, "truncate", "-s", "48M", unix) // an export does not grow
	ssh := lab.FSImage(t, filepath.Join(server.Export, "s, h.raw"), 24, "/usr/share/perl5")
	socket := filepath.Join(w.dir, "s,k")
	serveUnix(t, unix, "raw", name, socket)
	vm := defineRemote(t, l, "remote",
		remoteXML("vda", "raw", fmt.Sprintf(`<source protocol='nbd' name='disk'><host name='127.0.0.1' port='%d'/></source>`, serveNBD(t, tcp, "raw"))),
		remoteXML("vdb", "qcow2", `<source protocol='nbd' name='`+xmlEscape(name)+`'><host transport='unix' socket='`+socket+`'/></source>`),
		remoteXML("vdc", "raw", fmt.Sprintf(`<source protocol='ssh' name='%s'><host name='127.0.0.1' port='%d'/></source>`, ssh, server.Port)),
	)
	through := map[string]string{ // where a server has the image locked
		"vdb": "driver=qcow2,file.driver=nbd,file.server.type=unix,file.server.path=" + strings.ReplaceAll(socket, ",", ",,") +
			",file.export=" + strings.ReplaceAll(name, ",", ",,"),
	}
	disks := map[string]original{"vda": {"raw", tcp}, "vdb": {"qcow2", unix}, "vdc": {"raw", ssh}}
	for _, f := range []features{{}, {compress: true, encrypt: true, verify: true}} {
		t.Run(f.String(), func(t *testing.T) {
			ev := w.take(t, append(f.flags(w, t), "--vm", vm.Name)...)
			w.checkFeatures(t, f, ev)
			w.restoreAndCompare(t, f, ev, disks)
			w.nothingLeft(t)

			reference := map[string]original{}
			for disk, o := range disks {
				copied := filepath.Join(w.dir, "was-"+disk)
				lab.Run(t, "cp", o.path, copied)
				reference[disk] = original{o.format, copied}
				lab.Run(t, "qemu-io", "-c", "write -P 0x77 0 16M", "--image-opts", cmp.Or(through[disk], "driver=raw,file.locking=off,file.filename="+strings.ReplaceAll(o.path, ",", ",,")))
			}
			args := []string{"restore", "--backup", ev.BackupID, "--to-vm", vm.Name}
			if f.encrypt {
				args = append(args, "--passphrase-file", w.passphraseFile(t, passphrase))
			}
			back := w.mustJob(t, args...)
			for disk, o := range disks {
				compare(t, reference[disk].format, reference[disk].path, o.format, o.path)
			}
			if to := back.Restored["vdc"]; !strings.HasPrefix(to, "ssh://127.0.0.1:") {
				t.Errorf("vdc was restored to %q", to)
			}
			w.nothingLeft(t)
		})
	}
}

// TestAServerThatHangs: an NBD server accepts and never answers, Ceph's monitors are away. Backup and restore end in the
// stall timeout, with a code and a hint, and leave nothing.
func TestAServerThatHangs(t *testing.T) {
	t.Parallel()
	l := lab.Libvirtd(t)
	const stall = 3 * time.Second
	w := newWorld(t, l.URI, "--stall-timeout", stall.String())
	image := dataImage(t, w, "disk.raw", 24)
	// The kernel takes the connections, and nobody reads them.
	silent, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = silent.Close() }()
	port := silent.Addr().(*net.TCPAddr).Port
	good := defineRemote(t, l, "good", fmt.Sprintf(networkDisk, serveNBD(t, image, "raw")))
	defineRemote(t, l, "silent", fmt.Sprintf(networkDisk, port))
	defineRemote(t, l, "away", remoteXML("vdb", "raw", fmt.Sprintf(`<source protocol='rbd' name='p/i'><host name='127.0.0.1' port='%d'/></source>`, lab.FreePort(t))))
	ev := w.take(t, "--vm", good.Name)
	for _, name := range []string{"silent", "away"} {
		for code, args := range map[messages.Code][]string{
			messages.CodeSourceReadFailed:  w.takeArgs("--vm", name, "--attempts", "1"),
			messages.CodeTargetWriteFailed: {"restore", "--backup", ev.BackupID, "--to-vm", name},
		} {
			failed := w.mustFail(t, code, args...)
			if !strings.Contains(failed.Error.Message, "vdb") || !strings.Contains(failed.Error.Message, "not answered within 3s") {
				t.Errorf("%s, %s: %s", name, code, failed.Error.Message)
			}
			if !strings.Contains(failed.Error.Hint, "server of the disk") {
				t.Errorf("%s, %s: the hint is %q", name, code, failed.Error.Hint)
			}
			w.nothingLeft(t)
		}
	}
}

// TestAServerThatDies in the middle of a backup, or hangs, ends it; in the middle of a restore too, which says that the
// disk is half old.
func TestAServerThatDies(t *testing.T) {
	t.Parallel()
	l := lab.Libvirtd(t)
	w := newWorld(t, l.URI, "--stall-timeout", "3s")
	image, socket := noise(t, filepath.Join(w.dir, "disk.raw"), 64, 64), filepath.Join(w.dir, "nbd")
	vm := defineRemote(t, l, "far", remoteXML("vda", "raw", `<source protocol='nbd' name='disk'><host transport='unix' socket='`+socket+`'/></source>`))
	server := serveUnix(t, image, "raw", "disk", socket)
	ev := w.take(t, "--vm", vm.Name)
	for _, sig := range []syscall.Signal{syscall.SIGKILL, syscall.SIGSTOP} {
		for code, args := range map[messages.Code][]string{
			messages.CodeSourceReadFailed:  w.takeArgs("--vm", vm.Name, "--attempts", "1"),
			messages.CodeTargetWriteFailed: {"restore", "--backup", ev.BackupID, "--to-vm", vm.Name},
		} {
			job := newJobID()
			w.publisher(t, append(args, "--bandwidth", "4", "--job-id", job)...)
			w.awaitCopied(t, job, messages.PhaseCopying)
			if err := server.Signal(sig); err != nil {
				t.Fatal(err)
			}
			failed := w.awaitFinal(t, job)
			if failed.Kind != messages.KindFailed || failed.Error.Code != code || !strings.Contains(failed.Error.Message, "vda") {
				t.Errorf("%s: ended with %s", sig, asJSON(failed))
			}
			// Said by the attempt that has written; those after it find no server.
			half := slices.ContainsFunc(w.events(t, job), func(e messages.Event) bool { return e.Error != nil && strings.Contains(e.Error.Message, "half old") })
			if half != (code == messages.CodeTargetWriteFailed) {
				t.Errorf("%s: that the disk is half old: %t: %s", sig, half, failed.Error.Message)
			}
			w.acknowledged(t)
			w.nothingLeft(t)
			_ = server.Kill() // it may be dead already
			lab.Eventually(t, "the server has let go", func() bool {
				_, err := lab.Try(t, "qemu-io", "-f", "raw", "-c", "length", image)
				return err == nil
			})
			server = serveUnix(t, image, "raw", "disk", socket)
		}
	}
	w.mustJob(t, "restore", "--backup", ev.BackupID, "--to-vm", vm.Name)
}

// TestAVMThatIsStarted over disks that no lock protects ends their restore, and one that runs keeps its disk.
func TestAVMThatIsStarted(t *testing.T) {
	t.Parallel()
	l := lab.Libvirtd(t)
	w := newWorld(t, l.URI)
	image := noise(t, filepath.Join(w.dir, "disk.raw"), 64, 64)
	disk := fmt.Sprintf(networkDisk, serveNBD(t, image, "raw"))
	vm := defineRemote(t, l, "far", disk)
	twin := defineRemote(t, l, "twin", disk)
	ev := w.take(t, "--vm", vm.Name)
	job := newJobID()
	w.publisher(t, "restore", "--backup", ev.BackupID, "--to-vm", vm.Name, "--bandwidth", "4", "--job-id", job)
	w.awaitCopied(t, job, messages.PhaseCopying)
	vm.Start(t)
	failed := w.awaitFinal(t, job)
	if failed.Kind != messages.KindFailed || failed.Error.Code != messages.CodeVMRunning || !strings.Contains(failed.Error.Message, "half old") {
		t.Errorf("ended with %s", asJSON(failed))
	}
	w.nothingLeft(t)
	vm.Running(t)

	failed = w.mustFail(t, messages.CodeVMRunning, "restore", "--backup", ev.BackupID, "--to-vm", twin.Name)
	if !strings.Contains(failed.Error.Message, "in use by vm far") {
		t.Errorf("the twin's disk: %s", failed.Error.Message)
	}
	vm.Destroy(t)
	w.mustJob(t, "restore", "--backup", ev.BackupID, "--to-vm", twin.Name)
}

// TestOtherProtocols are refused by name, before anything is written.
func TestOtherProtocols(t *testing.T) {
	t.Parallel()
	l := lab.Libvirtd(t)
	w := newWorld(t, l.URI)
	image := dataImage(t, w, "disk.raw", 24)
	good := defineRemote(t, l, "good", fmt.Sprintf(networkDisk, serveNBD(t, image, "raw")))
	ev := w.take(t, "--vm", good.Name)
	for name, c := range map[string]struct{ source, says string }{
		"iscsi":     {`<source protocol='iscsi' name='iqn.2013-07.com.example:iscsi/1'><host name='127.0.0.1'/></source>`, "iscsi"},
		"http":      {`<source protocol='http' name='disk.raw'><host name='127.0.0.1' port='80'/></source>`, "http"},
		"gluster":   {`<source protocol='gluster' name='vol/disk.raw'><host name='127.0.0.1'/></source>`, "gluster"},
		"tls":       {`<source protocol='nbd' name='disk' tls='yes'><host name='127.0.0.1'/></source>`, "TLS"},
		"no-host":   {`<source protocol='nbd' name='disk'/>`, "0 hosts"},
		"monitor":   {`<source protocol='rbd' name='p/i'><host name='a;b'/></source>`, "a;b"},
		"namespace": {`<source protocol='rbd' name='p/n/i'><host name='127.0.0.1'/></source>`, "pool/image"},
		"conf":      {`<source protocol='rbd' name='p/i'><config file='/a,/etc/passwd'/></source>`, "passwd"},
		"secret":    {`<source protocol='rbd' name='p/i'><auth username='u'><secret type='ceph' usage='none such'/></auth></source>`, "secret"},
		"relative":  {`<source protocol='ssh' name='disk.raw'><host name='127.0.0.1'/></source>`, "absolute"},
	} {
		t.Run(name, func(t *testing.T) {
			vm := defineRemote(t, l, name, remoteXML("vdb", "raw", c.source))
			for what, args := range map[string][]string{
				"take": w.takeArgs("--vm", vm.Name), "restore": {"restore", "--backup", ev.BackupID, "--to-vm", vm.Name},
			} {
				failed := w.mustFail(t, messages.CodeDiskUnsupported, args...)
				if m := failed.Error.Message; !strings.Contains(m, "vdb") || !strings.Contains(m, c.says) {
					t.Errorf("%s: %s", what, m)
				}
			}
			w.nothingLeft(t)
			if _, err := os.Stat(filepath.Join(w.nas, vm.Name, ev.BackupID)); err == nil {
				t.Error("there is a backup")
			}
		})
	}
}

func xmlEscape(s string) string {
	return strings.NewReplacer("&", "&amp;", "<", "&lt;", `"`, "&quot;", "'", "&apos;", "\n", "&#10;").Replace(s)
}
