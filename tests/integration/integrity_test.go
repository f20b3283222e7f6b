package integration

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/nasfleet/nasfleet/messages"
	"github.com/nasfleet/nasfleet/tests/lab"
)

// flip changes one byte of a file in the middle of a region that holds data.
func flip(t *testing.T, path string, offset int64) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	b := make([]byte, 1)
	if _, err := f.ReadAt(b, offset); err != nil {
		t.Fatal(err)
	}
	b[0] ^= 0x40
	if _, err := f.WriteAt(b, offset); err != nil {
		t.Fatal(err)
	}
}

// TestVerifyFindsAFlippedByte damages the data of a stored backup, where qemu-img check sees
// nothing, and expects verify and restore to name the disk and the place.
func TestVerifyFindsAFlippedByte(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "none")
	image := dataImage(t, w, "disk.img", 64)
	for _, f := range []features{{}, {encrypt: true}} {
		t.Run(f.String(), func(t *testing.T) {
			ev := w.take(t, append(f.flags(w, t), "--image", image)...)
			args := []string{"--backup", ev.BackupID}
			if f.encrypt {
				args = append(args, "--passphrase-file", w.passphraseFile(t, passphrase))
			}
			w.mustJob(t, append([]string{"verify"}, args...)...)

			file := filepath.Join(w.nas, ev.VM, ev.BackupID, ev.Backup.Disks[0].File)
			guest := dataOffset(t, file, f.encrypt, w.keyFile(t))
			flip(t, file, guest.file)
			if out := qemuImg(t, f.encrypt, w.keyFile(t), file, "check"); !strings.Contains(out, "No errors") {
				t.Fatalf("qemu-img check was to see nothing: %s", out)
			}
			failed := w.mustFail(t, messages.CodeVerifyFailed, append([]string{"verify"}, args...)...)
			block := guest.disk &^ (1<<20 - 1)
			for _, want := range []string{"disk0", fmt.Sprint(block)} {
				if !strings.Contains(failed.Error.Message, want) {
					t.Errorf("the message does not name %s: %s", want, failed.Error.Message)
				}
			}
			to := filepath.Join(w.dir, "r-"+ev.BackupID)
			w.mustFail(t, messages.CodeBackupCorrupt, append([]string{"restore", "--to", to}, args...)...)
			if left, _ := filepath.Glob(filepath.Join(to, "*")); left != nil {
				t.Errorf("a restore of damaged data left %v", left)
			}
			w.nothingLeft(t)
		})
	}
}

// place is where a byte of the guest's lies in the backup's file.
type place struct{ disk, file int64 }

// dataOffset finds a byte of data with qemu-img map. In a LUKS container the qcow2 begins after
// the header, whose length cryptsetup tells.
func dataOffset(t *testing.T, file string, encrypted bool, keyFile string) place {
	t.Helper()
	var header int64
	if encrypted {
		for _, line := range strings.Split(lab.Run(t, "cryptsetup", "luksDump", file), "\n") {
			var sectors int64
			if _, err := fmt.Sscanf(line, "Payload offset: %d", &sectors); err == nil {
				header = sectors * 512
			}
		}
		if header == 0 {
			t.Fatal("cryptsetup does not tell the payload's offset")
		}
	}
	var best place
	for _, line := range strings.Split(qemuImg(t, encrypted, keyFile, file, "map"), "\n")[1:] {
		var start, length, mapped int64
		if _, err := fmt.Sscanf(line, "0x%x 0x%x 0x%x", &start, &length, &mapped); err != nil {
			continue
		}
		// The middle of the largest run, so that it is far from any metadata.
		if length/2 > best.disk-start || best == (place{}) {
			best = place{start + length/2, header + mapped + length/2}
		}
	}
	if best == (place{}) {
		t.Fatal("the backup has no data")
	}
	return best
}

// TestTakeWithVerifyFailsOnDamage damages the file between the copy and the end of the read-back:
// the job fails and there is no backup.
func TestTakeWithVerifyFailsOnDamage(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "none")
	image := dataImage(t, w, "disk.img", 96)
	job := newJobID()
	// Slow enough that the verify phase can be seen and disturbed.
	args := append(w.takeArgs("--image", image, "--verify", "--bandwidth", "16", "--job-id", job, "--attempts", "1"), "--wait", "--json")
	partial := filepath.Join(w.nas, "disk", job+".partial", "disk0.qcow2")
	result := make(chan messages.Event, 1)
	go func() {
		out, _, _ := w.try(args...)
		ev, _ := messages.DecodeEvent([]byte(out))
		result <- ev
	}()
	w.awaitPhase(t, job, messages.PhaseVerifying)
	// The end of the disk is read last; dirty the last data block of the file behind QEMU's back.
	place := lastData(t, partial)
	flip(t, partial, place)
	ev := <-result
	if ev.Kind != messages.KindFailed || ev.Error == nil || ev.Error.Code != messages.CodeVerifyFailed {
		t.Errorf("want %s, got %s", messages.CodeVerifyFailed, asJSON(ev))
	}
	w.nothingLeft(t)
	if out, _, _ := w.try("ls", "--json"); strings.Contains(out, job) {
		t.Errorf("the catalog has the failed backup: %s", out)
	}
}

// lastData is the file offset of the middle of the last run of data.
func lastData(t *testing.T, file string) int64 {
	t.Helper()
	var at int64
	for _, line := range strings.Split(lab.Run(t, "qemu-img", "map", "-U", "-f", "qcow2", file), "\n")[1:] {
		var start, length, mapped int64
		if _, err := fmt.Sscanf(line, "0x%x 0x%x 0x%x", &start, &length, &mapped); err == nil {
			at = mapped + length/2
		}
	}
	if at == 0 {
		t.Fatal("no data yet")
	}
	return at
}

// TestVerifyFindsDamagedCompression flips bits in compressed clusters, some of which then
// decompress to other bytes and some to none at all: either way it is the backup that is damaged,
// not the storage that fails.
func TestVerifyFindsDamagedCompression(t *testing.T) {
	t.Parallel()
	w := newWorld(t, "none")
	image := dataImage(t, w, "disk.img", 64)
	for _, kind := range []string{messages.Zstd, messages.Zlib} {
		for _, at := range []int64{4, 5, 6, 7} {
			t.Run(fmt.Sprintf("%s-%d", kind, at), func(t *testing.T) {
				ev := w.take(t, "--image", image, "--compress", "--compression-type", kind)
				file := filepath.Join(w.nas, ev.VM, ev.BackupID, ev.Backup.Disks[0].File)
				damage(t, file, at)
				failed := w.mustFail(t, messages.CodeVerifyFailed, "verify", "--backup", ev.BackupID)
				if !strings.Contains(failed.Error.Message, "disk0") {
					t.Errorf("the message does not name the disk: %s", failed.Error.Message)
				}
				w.mustFail(t, messages.CodeBackupCorrupt, "restore", "--backup", ev.BackupID, "--to", filepath.Join(w.dir, "r-"+ev.BackupID))
				w.nothingLeft(t)
			})
		}
	}
}

// damage flips a bit in each of 64 bytes about so many eighths into a compressed qcow2, at the
// first place from there on that is not metadata: qemu-img check sees nothing of it.
func damage(t *testing.T, file string, eighths int64) {
	t.Helper()
	info, err := os.Stat(file)
	if err != nil {
		t.Fatal(err)
	}
	flipAll := func(at int64) {
		for i := range int64(64) {
			flip(t, file, at+i)
		}
	}
	for at := info.Size() * eighths / 8; at < info.Size()-4096; at += 4096 {
		if !allSet(t, file, at, 64) {
			continue // clusters do not follow each other without a gap
		}
		flipAll(at)
		if out, err := lab.Try(t, "qemu-img", "check", "-f", "qcow2", file); err == nil && strings.Contains(out, "No errors") {
			return
		}
		flipAll(at) // back as it was
	}
	t.Fatal("there is nothing but metadata")
}

// allSet says whether a region of a file looks like compressed data: hardly a zero in it.
func allSet(t *testing.T, file string, at int64, n int) bool {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	b := make([]byte, n)
	if _, err := f.ReadAt(b, at); err != nil {
		t.Fatal(err)
	}
	return bytes.Count(b, []byte{0}) < n/16
}
