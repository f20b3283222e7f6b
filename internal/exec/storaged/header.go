package storaged

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// Facts of the formats: QEMU's docs/interop/qcow2, and the LUKS on-disk format specification 1.2.
const (
	qcow2Magic         = "QFI\xfb"
	qcow2DataFile      = 1 << 2 // incompatible feature: external data file
	luksMagic          = "LUKS\xba\xbe"
	luksDigestRounds   = 164
	luksSlots          = 208
	luksSlotSize       = 48
	luksSlotCount      = 8
	luksSlotActive     = 0x00AC71F3
	headerSize         = 592 // of LUKS; qcow2's first fields are shorter
	qcow2MinHeaderSize = 72
)

// maxRounds is the number of PBKDF2 rounds above which a container is refused (about 80 s on a
// fast machine): a made-up number would keep the daemon busy for hours.
const maxRounds = 1 << 28

var (
	errNotQcow2   = errors.New("the file is not in qcow2 format")
	errNotLUKS    = errors.New("the file is not in LUKS format")
	errReferences = errors.New("the image refers to another file, which it must not")
	errBacking    = fmt.Errorf("%w: a backing file", errReferences)
	errDataFile   = fmt.Errorf("%w: an external data file", errReferences)
	errManyRounds = errors.New("the LUKS header asks for an absurd number of key derivation rounds")
)

// readHeader returns the first bytes of a regular file, as many as there are up to headerSize.
func readHeader(path string) ([]byte, error) { return readStart(path, headerSize) }

// readStart returns the first bytes of a file, as many as there are up to size.
func readStart(path string, size int) ([]byte, error) {
	// Something else may have come into its place: to open a pipe can take forever.
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	start := make([]byte, size)
	n, err := io.ReadFull(f, start)
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		return nil, fmt.Errorf("read %s: %w", path, err)
	}
	return start[:n], nil
}

// checkQcow2 says whether header begins a qcow2 image that needs no other file: errDataFile where its data
// are in another, errBacking where it has no more than a backing file.
func checkQcow2(header []byte) error {
	switch {
	case !bytes.HasPrefix(header, []byte(qcow2Magic)):
		return errNotQcow2
	case len(header) < qcow2MinHeaderSize:
		return fmt.Errorf("%w: its header is cut off", errNotQcow2)
	}
	version, backing := binary.BigEndian.Uint32(header[4:]), binary.BigEndian.Uint64(header[8:])
	if version >= 3 {
		if len(header) < qcow2MinHeaderSize+8 {
			return fmt.Errorf("%w: its header is cut off", errNotQcow2)
		}
		if binary.BigEndian.Uint64(header[qcow2MinHeaderSize:])&qcow2DataFile != 0 {
			return errDataFile
		}
	}
	if backing != 0 {
		return errBacking
	}
	return nil
}

// checkLUKS says whether header begins a LUKS1 container that can be opened in reasonable time.
func checkLUKS(header []byte) error {
	switch {
	case !bytes.HasPrefix(header, []byte(luksMagic)):
		return errNotLUKS
	case len(header) < headerSize:
		return fmt.Errorf("%w: its header is cut off", errNotLUKS)
	}
	rounds := []uint32{binary.BigEndian.Uint32(header[luksDigestRounds:])}
	for _, i := range activeSlots(header) {
		rounds = append(rounds, binary.BigEndian.Uint32(header[luksSlots+i*luksSlotSize+4:]))
	}
	for _, n := range rounds {
		if n > maxRounds {
			return errManyRounds
		}
	}
	return nil
}

// activeSlots lists the key slots of a LUKS1 header that hold a passphrase's key, from 0 on.
func activeSlots(header []byte) []int {
	var active []int
	for i := range luksSlotCount {
		if binary.BigEndian.Uint32(header[luksSlots+i*luksSlotSize:]) == luksSlotActive {
			active = append(active, i)
		}
	}
	return active
}
