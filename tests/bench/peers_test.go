package bench

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"github.com/nasfleet/nasfleet/internal/exec/hypervisor"
	"github.com/nasfleet/nasfleet/internal/exec/storaged"
	"github.com/nasfleet/nasfleet/tests/lab"
)

// way backs the guest up into an empty folder. It returns what that took and the backup's name
// for qemu-img, "" if qemu-img cannot read it.
type way func(b *testing.B, out string) (sample, string)

func (s *scene) ways() map[string]way {
	encrypt := []string{"--compress", "--encrypt", "--passphrase-file", s.passFile}
	return map[string]way{
		idPlain:       s.ours(),
		idZstd:        s.ours("--compress"),
		idLUKS:        s.ours(encrypt...),
		idFull:        s.ours(append(encrypt, "--verify")...),
		idScript:      s.script,
		idVirt:        s.virtnbdbackup(),
		idVirtLZ4:     s.virtnbdbackup("-z"),
		idNBDCopy:     s.nbdcopy(""),
		idNBDCopyZstd: s.nbdcopy("zstd"),
	}
}

// maxTries is how often a LUKS container is begun: QEMU's timing of PBKDF2 fails now and then,
// within milliseconds.
const maxTries = 20

// script is what people write: libvirt pushes the disk to the target, qemu-img compresses it,
// encrypts the result and checks it.
func (s *scene) script(b *testing.B, out string) (sample, string) {
	b.Helper()
	pushed, compressed, final := filepath.Join(out, "pushed.qcow2"), filepath.Join(out, "compressed.qcow2"), filepath.Join(out, "vda.qcow2")
	document := filepath.Join(s.dir, "push.xml")
	xml := fmt.Sprintf("<domainbackup mode='push'><disks><disk name='vda' type='file'><target file='%s'/><driver type='qcow2'/></disk></disks></domainbackup>", pushed)
	if err := os.WriteFile(document, []byte(xml), 0o600); err != nil {
		b.Fatal(err)
	}
	secret := "secret,id=pass,file=" + s.passFile
	image := "driver=qcow2,encrypt.format=luks,encrypt.key-secret=pass,file.driver=file,file.filename=" + final
	memory := map[string]int64{}
	started := time.Now()
	s.libvirt.Virsh(b, "backup-begin", vmName, document)
	for s.jobRuns(b) {
		time.Sleep(100 * time.Millisecond)
	}
	measured(b, memory, "qemu-img", "convert", "-c", "-f", "qcow2", "-O", "qcow2", pushed, compressed)
	args := []string{"convert", "--object", secret, "-f", "qcow2", "-O", "qcow2",
		"-o", "encrypt.format=luks,encrypt.key-secret=pass", compressed, final}
	err := try(b, memory, "qemu-img", args...)
	for range maxTries {
		if err == nil || !strings.Contains(err.Error(), "accurate CPU usage") {
			break
		}
		err = try(b, memory, "qemu-img", args...)
	}
	must(b, err)
	measured(b, memory, "qemu-img", "check", "--object", secret, "--image-opts", image)
	took := time.Since(started)
	return sample{took: took, stored: blocks(b, final), memory: memory}, image
}

func (s *scene) jobRuns(b *testing.B) bool {
	b.Helper()
	return !strings.Contains(s.libvirt.Virsh(b, "domjobinfo", vmName), "None")
}

// virtnbdbackup takes a copy, which leaves no checkpoint in the guest.
func (s *scene) virtnbdbackup(flags ...string) way {
	return func(b *testing.B, out string) (sample, string) {
		b.Helper()
		open := s.openDir(b)
		args := append([]string{
			"--uri", s.libvirt.URI, "--domain", vmName, "--level", "copy", "--noprogress", "--output", out,
			"--scratchdir", open, "--socketfile", filepath.Join(open, "nbd.sock"),
		}, flags...)
		memory := map[string]int64{}
		started := time.Now()
		measured(b, memory, "virtnbdbackup", args...)
		return sample{took: time.Since(started), stored: blocks(b, out), memory: memory}, ""
	}
}

// openDir is a folder for virtnbdbackup's socket and scratch files, open to QEMU.
func (s *scene) openDir(b *testing.B) string {
	b.Helper()
	dir := filepath.Join(s.dir, "virtnbdbackup")
	must(b, os.MkdirAll(dir, 0o777))
	must(b, os.Chmod(dir, 0o777))
	return dir
}

// nbdcopy makes the same graphs as ours and lets nbdcopy do the copying between them.
func (s *scene) nbdcopy(compression string) way {
	file := storaged.NewBackup{Compression: compression}
	return func(b *testing.B, out string) (sample, string) {
		b.Helper()
		ctx := context.Background()
		h, err := hypervisor.Connect(ctx, s.libvirt.URI, zerolog.Nop())
		must(b, err)
		defer func() { must(b, h.Close()) }()
		dom, err := h.Domain(ctx, vmName)
		must(b, err)
		target := filepath.Join(out, "vda.qcow2")
		file.Path, file.Size = target, dom.Disks[0].SizeBytes
		src, dst := filepath.Join(s.dir, "src"), filepath.Join(s.dir, "dst")
		defer func() { must(b, os.RemoveAll(src)); must(b, os.RemoveAll(dst)) }()
		spec := hypervisor.BackupSpec{
			Domain: vmName, Socket: filepath.Join(src, "nbd.sock"),
			Disks: []hypervisor.BackupDisk{{Target: "vda", ScratchFile: filepath.Join(src, "vda.scratch")}},
		}
		memory := map[string]int64{}

		started := time.Now()
		must(b, dom.PrepareDir(src))
		must(b, os.Mkdir(dst, 0o700))
		d, err := storaged.Start(ctx, storaged.Config{Dir: dst, Log: zerolog.Nop()})
		must(b, err)
		defer func() { must(b, d.Stop()) }()
		must(b, d.CreateBackup(ctx, "vda", file))
		_, err = h.BeginBackup(ctx, spec)
		must(b, err)
		begun := time.Now()
		// Compressed clusters must be written whole: zeroes are looked for in units of them.
		measured(b, memory, "nbdcopy", "--target-is-zero", "--flush", fmt.Sprintf("--sparse=%d", file.ClusterSize()), "--request-size=1048576",
			"--requests=16", "nbd+unix:///vda?socket="+spec.Socket, "nbd+unix:///vda?socket="+d.Socket())
		must(b, h.EndBackup(ctx, vmName, spec.Socket))
		must(b, d.CloseExport(ctx, "vda"))
		closed := time.Now()
		name, peak := peakOf(d.PID())
		memory[name] = peak
		must(b, d.Stop())
		must(b, syncFile(target))
		took := time.Since(started)
		return sample{
			took: took, job: took, copying: closed.Sub(begun), stored: blocks(b, target), memory: memory,
		}, imageOptions(target, false)
	}
}

func syncFile(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	return f.Sync()
}

// measured runs a program to its end, which must be a good one; see try.
func measured(b *testing.B, memory map[string]int64, name string, args ...string) {
	b.Helper()
	must(b, try(b, memory, name, args...))
}

// try runs a program to its end and adds its peak of memory, and its children's, to those of its
// name. The error holds what it printed.
func try(b *testing.B, memory map[string]int64, name string, args ...string) error {
	b.Helper()
	cmd := exec.Command(lab.Tool(b, name), args...)
	output := &lab.Output{}
	cmd.Stdout, cmd.Stderr = output, output
	if err := cmd.Start(); err != nil {
		return err
	}
	stop := watchMemory(cmd.Process.Pid)
	err := cmd.Wait()
	for program, peak := range stop() {
		memory[program] = max(memory[program], peak)
	}
	if err != nil {
		return fmt.Errorf("%s: %w\n%s", name, err, output.String())
	}
	return nil
}

func must(b *testing.B, err error) {
	b.Helper()
	if err != nil {
		b.Fatal(err)
	}
}
