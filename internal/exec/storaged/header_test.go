package storaged

import (
	"encoding/binary"
	"errors"
	"os"
	"path/filepath"
	"testing"
)

func FuzzCheckQcow2(f *testing.F) {
	f.Add([]byte("QFI\xfb\x00\x00\x00\x02"))
	plain := make([]byte, 104)
	copy(plain, "QFI\xfb\x00\x00\x00\x03")
	f.Add(plain)
	f.Fuzz(func(t *testing.T, header []byte) {
		if checkQcow2(header) != nil {
			return
		}
		if binary.BigEndian.Uint64(header[8:]) != 0 {
			t.Error("a backing file was overlooked")
		}
		if version := binary.BigEndian.Uint32(header[4:]); version >= 3 && header[79]&qcow2DataFile != 0 {
			t.Error("a data file was overlooked")
		}
	})
}

func FuzzCheckLUKS(f *testing.F) {
	header := make([]byte, headerSize)
	copy(header, luksMagic+"\x00\x01")
	f.Add(header)
	f.Fuzz(func(t *testing.T, header []byte) {
		if checkLUKS(header) == nil && binary.BigEndian.Uint32(header[luksDigestRounds:]) > maxRounds {
			t.Error("absurd rounds were overlooked")
		}
	})
}

func TestCheckLUKSSlots(t *testing.T) {
	header := make([]byte, headerSize)
	copy(header, luksMagic+"\x00\x01")
	slot := header[luksSlots+7*luksSlotSize:]
	binary.BigEndian.PutUint32(slot[4:], maxRounds+1)
	if err := checkLUKS(header); err != nil {
		t.Errorf("a slot that is off counts: %v", err)
	}
	binary.BigEndian.PutUint32(slot, luksSlotActive)
	if err := checkLUKS(header); !errors.Is(err, errManyRounds) {
		t.Errorf("got %v", err)
	}
}

// TestHeaderOffsets compares our reading of a header with cryptsetup's and qemu-img's making of one.
func TestHeaderOffsets(t *testing.T) {
	path := filepath.Join(t.TempDir(), "luks")
	writeFile(t, path, nil)
	mustDo(t, os.Truncate(path, 8<<20))
	run(t, testPassphrase, "cryptsetup", "luksFormat", "--batch-mode", "--type", "luks1", "--pbkdf-force-iterations", "54321",
		"--key-slot", "5", "--key-file", "-", path)
	header, err := readHeader(path)
	mustDo(t, err)
	mustDo(t, checkLUKS(header))
	slot := header[luksSlots+5*luksSlotSize:]
	if binary.BigEndian.Uint32(slot) != luksSlotActive || binary.BigEndian.Uint32(slot[4:]) != 54321 {
		t.Errorf("slot 5 is %x", slot[:8])
	}
	old := filepath.Join(t.TempDir(), "old.qcow2")
	run(t, "", "qemu-img", "create", "-q", "-f", "qcow2", "-o", "compat=0.10", old, "1M")
	header, err = readHeader(old)
	mustDo(t, err)
	mustDo(t, checkQcow2(header))
}
