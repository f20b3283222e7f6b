package bench

import (
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/nasfleet/nasfleet/tests/lab"
)

// passphrase is what everybody encrypts with.
const passphrase = "correct horse battery staple"

// dataFolder is where the file-system data comes from: the distribution's own programs and texts.
const dataFolder = "/usr"

// scene is the stage: a running VM, a hostworker beside it, and a folder for the backups.
type scene struct {
	dir      string
	libvirt  *lab.Libvirt
	vm       *lab.VM
	worker   *worker
	passFile string
	// disk is the guest's, original the raw image it was made of.
	disk, original string
	// dataMiB is how much of it is allocated.
	dataMiB int64
}

const vmName = "guest"

// newScene fills a disk with so many MiB of files and starts a VM on it. The guest has no system:
// what is measured is the backup, and nothing else shall run.
func newScene(b *testing.B, programs string, dataMiB int64) *scene {
	b.Helper()
	s := &scene{dir: lab.Dir(b)}
	s.passFile = filepath.Join(s.dir, "passphrase")
	if err := os.WriteFile(s.passFile, []byte(passphrase), 0o600); err != nil {
		b.Fatal(err)
	}
	files := filepath.Join(s.dir, "files")
	stage(b, dataFolder, files, dataMiB*mib)
	s.original = lab.FSImage(b, filepath.Join(s.dir, "disk.raw"), diskMiB, files)
	if err := os.RemoveAll(files); err != nil {
		b.Fatal(err)
	}
	s.disk = filepath.Join(s.dir, "disk.qcow2")
	lab.Run(b, "qemu-img", "convert", "-f", "raw", "-O", "qcow2", s.original, s.disk)
	s.dataMiB = blocks(b, s.disk) / mib
	s.libvirt = lab.Libvirtd(b)
	s.vm = s.libvirt.DefineVM(b, lab.VMOptions{Name: vmName, Disks: []lab.Disk{{Path: s.disk}}})
	s.vm.Running(b)
	s.worker = startWorker(b, programs, s.libvirt.URI)
	return s
}

// stage links the first files of a folder, in the order of their names, into another until they
// hold so many bytes. Where links do not reach it copies.
func stage(b *testing.B, from, to string, most int64) {
	b.Helper()
	var sum int64
	err := filepath.WalkDir(from, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if path == filepath.Join(from, "local") {
			return fs.SkipDir // not the distribution's
		}
		target := filepath.Join(to, strings.TrimPrefix(path, from))
		if e.IsDir() {
			return os.MkdirAll(target, 0o755)
		}
		if !e.Type().IsRegular() {
			return nil
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		if sum += (info.Size() + 4095) / 4096 * 4096; sum > most {
			return fs.SkipAll
		}
		if os.Link(path, target) == nil {
			return nil
		}
		lab.Run(b, "cp", "--reflink=auto", path, target)
		return nil
	})
	if err != nil {
		b.Fatal(err)
	}
}

// blocks returns what a file, or all files of a folder, take on the file system, in bytes.
func blocks(b *testing.B, path string) int64 {
	b.Helper()
	var sum int64
	err := filepath.WalkDir(path, func(_ string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return err
		}
		info, err := e.Info()
		if err != nil {
			return err
		}
		sum += info.Sys().(*syscall.Stat_t).Blocks * 512
		return nil
	})
	if err != nil {
		b.Fatal(err)
	}
	return sum
}

// lookAtMachine describes the machine without saying which it is.
func lookAtMachine(b *testing.B, s *scene) machine {
	b.Helper()
	var m machine
	m.CPU, m.Cores = cpu(b)
	for line := range strings.Lines(read(b, "/proc/meminfo")) {
		if rest, ok := strings.CutPrefix(line, "MemTotal:"); ok {
			kib, err := strconv.ParseInt(strings.Fields(rest)[0], 10, 64)
			if err != nil {
				b.Fatal(err)
			}
			m.MemoryMiB = kib >> 10
		}
	}
	m.FileSystem = strings.TrimSpace(lab.Run(b, "findmnt", "--noheadings", "--output", "FSTYPE", "--target", s.dir))
	m.Kernel, _, _ = strings.Cut(strings.TrimSpace(lab.Run(b, "uname", "-r")), "-")
	m.QEMU = lastWord(firstLine(lab.Run(b, "qemu-img", "--version")), "(")
	m.Libvirt = lastWord(firstLine(lab.Run(b, "libvirtd", "--version")), "")
	m.LibNBD = lastWord(firstLine(lab.Run(b, "nbdcopy", "--version")), "")
	m.VirtNBD = lastWord(firstLine(lab.Run(b, "virtnbdbackup", "--version")), "")
	return m
}

func cpu(b *testing.B) (model string, cores int) {
	for line := range strings.Lines(read(b, "/proc/cpuinfo")) {
		if key, value, _ := strings.Cut(line, ":"); strings.TrimSpace(key) == "model name" {
			model = strings.TrimSpace(value)
			cores++
		}
	}
	return model, cores
}

// lastWord returns the last word of a text before a mark.
func lastWord(text, mark string) string {
	if mark != "" {
		text, _, _ = strings.Cut(text, mark)
	}
	words := strings.Fields(text)
	if len(words) == 0 {
		return "unknown"
	}
	return words[len(words)-1]
}

func firstLine(text string) string {
	line, _, _ := strings.Cut(text, "\n")
	return line
}

func read(b *testing.B, path string) string {
	b.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		b.Fatal(err)
	}
	return string(data)
}
