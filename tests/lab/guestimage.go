package lab

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// modules are the drivers that Debian's cloud kernel has as modules and the guest needs, in the
// order in which they have to be loaded.
func modules() []string {
	return []string{"virtio_ring", "virtio", "virtio_pci_legacy_dev", "virtio_pci_modern_dev", "virtio_pci", "virtio_blk", "virtio_console"}
}

// agentBinary is the guest agent, on the host and in the guest.
const agentBinary = "/usr/sbin/qemu-ga"

// hostFiles are the files that a guest is made of; `make deps` has unpacked them from Debian's packages.
type hostFiles struct {
	kernel  string
	modules []string
	agent   string
}

func guestFiles(t testing.TB) hostFiles {
	t.Helper()
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	root := filepath.Join(cache, "nasfleet-lab", "guest")
	kernels, err := filepath.Glob(filepath.Join(root, "boot", "vmlinuz-*"))
	if err != nil || len(kernels) != 1 {
		t.Fatalf("%s holds %d kernels: run `make deps` (%v)", root, len(kernels), err)
	}
	f := hostFiles{kernel: kernels[0], agent: filepath.Join(root, agentBinary)}
	found := map[string]string{}
	err = filepath.WalkDir(filepath.Join(root, "lib", "modules"), func(path string, e os.DirEntry, err error) error {
		if name, ok := strings.CutSuffix(filepath.Base(path), ".ko"); ok && err == nil {
			found[name] = path
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range modules() {
		if path := found[name]; path != "" { // else it is built in
			f.modules = append(f.modules, path)
		}
	}
	return f
}

// buildInitrd writes the guest's first file system: its process 1, the modules, the agent with its libraries.
func buildInitrd(t testing.TB, files hostFiles, path string) {
	t.Helper()
	program := filepath.Join(t.TempDir(), "init")
	build := exec.CommandContext(t.Context(), Tool(t, "go"), "build", "-ldflags=-s -w", "-o", program,
		"github.com/nasfleet/nasfleet/tests/lab/guestinit")
	build.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build the guest's init: %v\n%s", err, out)
	}
	out, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = out.Close() }()
	a := &archive{out: out, dirs: map[string]bool{}}
	a.file("init", program)
	a.link("hook", "init")
	for i, m := range files.modules {
		a.file(fmt.Sprintf("modules/%02d-%s", i, filepath.Base(m)), m)
	}
	a.file(agentBinary, files.agent)
	for _, library := range libraries(t, files.agent) {
		a.file(library, library)
	}
	a.dir("dev")
	a.node("dev/console", 5, 1)
	if err := a.close(); err != nil {
		t.Fatalf("write the guest's initrd: %v", err)
	}
}

var libraryPattern = regexp.MustCompile(`(?m)(?:=> )?(/\S+) \(0x`)

// libraries lists the paths of what a program is linked with, and of its loader.
func libraries(t testing.TB, program string) []string {
	t.Helper()
	var paths []string
	for _, match := range libraryPattern.FindAllStringSubmatch(Run(t, "ldd", program), -1) {
		paths = append(paths, match[1])
	}
	return paths
}

// archive writes a cpio archive in the format that the kernel unpacks ("newc", see cpio(5)).
type archive struct {
	out   io.Writer
	dirs  map[string]bool
	inode uint32
	err   error
}

// Modes of the entries (see inode(7)).
const (
	modeFile = 0o100755
	modeDir  = 0o040755
	modeLink = 0o120777
	modeChar = 0o020600
)

func (a *archive) file(name, path string) {
	if a.err != nil {
		return
	}
	data, err := os.ReadFile(path)
	if err != nil {
		a.err = err
		return
	}
	a.entry(name, modeFile, data, 0, 0)
}

func (a *archive) link(name, to string) { a.entry(name, modeLink, []byte(to), 0, 0) }

func (a *archive) node(name string, major, minor uint32) { a.entry(name, modeChar, nil, major, minor) }

func (a *archive) dir(name string) {
	if name != "." && !a.dirs[name] {
		a.dirs[name] = true
		a.entry(name, modeDir, nil, 0, 0)
	}
}

func (a *archive) entry(name string, mode uint32, data []byte, major, minor uint32) {
	name = strings.TrimPrefix(name, "/")
	a.dir(filepath.Dir(name))
	if a.err != nil {
		return
	}
	a.inode++
	fields := []uint32{a.inode, mode, 0, 0, 1, 0, uint32(len(data)), 0, 0, major, minor, uint32(len(name) + 1), 0}
	header := "070701"
	for _, f := range fields {
		header += fmt.Sprintf("%08X", f)
	}
	a.padded([]byte(header + name + "\x00"))
	a.padded(data)
}

// padded writes data and fills it up to a multiple of four bytes.
func (a *archive) padded(data []byte) {
	if a.err == nil {
		_, a.err = a.out.Write(append(data[:len(data):len(data)], make([]byte, -len(data)&3)...))
	}
}

func (a *archive) close() error {
	a.entry("TRAILER!!!", 0, nil, 0, 0)
	return a.err
}

func copyFile(t testing.TB, from, to string) {
	t.Helper()
	data, err := os.ReadFile(from)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(to, data, 0o644); err != nil {
		t.Fatal(err)
	}
}

// record is a record of the guest's writer, as tests/lab/guestinit writes it.
func record(n int64) string {
	number := fmt.Sprintf("%016d", n)
	return fmt.Sprintf("%s %08x\n", number, crc32.ChecksumIEEE([]byte(number)))
}

// readCounter reads the guest's counter.
func readCounter(from io.ReaderAt) (int64, error) {
	var block [8]byte
	if _, err := from.ReadAt(block[:], 0); err != nil {
		return 0, err
	}
	return int64(binary.BigEndian.Uint64(block[:])), nil
}
