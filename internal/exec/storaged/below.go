package storaged

import (
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"

	"github.com/nasfleet/nasfleet/messages"
)

// Facts of the header of a qcow2 image (QEMU's docs/interop/qcow2).
const (
	qcow2ClusterBits   = 20 // offset of the field
	qcow2HeaderLength  = 100
	qcow2FormatName    = 0xE2792ACA // the header extension with the format of the backing file
	minClusterBits     = 9
	maxClusterBits     = 21
	maxBackingName     = 1023 // bytes
	extensionHead      = 8
	extensionAlignment = 8
)

// errNoFormat is for a backing file that QEMU would look into to guess its format: a guest can write the
// header of a qcow2 into a disk that is raw.
var errNoFormat = errors.New("its header does not say which format its backing file has")

// Below returns what the header of a qcow2 image says lies below it: the path as it stands there, which may be
// relative to the folder of the image; the zero Image where nothing does. It is not to be believed before
// somebody has looked where it leads. It reads a file that may be on storage that hangs.
func Below(path string) (Image, error) {
	header, err := readHeader(path)
	if err != nil {
		return Image{}, err
	}
	err = checkQcow2(header)
	switch {
	case err == nil:
		return Image{}, nil
	case errors.Is(err, errBacking):
		bits := binary.BigEndian.Uint32(header[qcow2ClusterBits:])
		if bits < minClusterBits || bits > maxClusterBits {
			return Image{}, messages.Errorf(messages.CodeDiskUnsupported, "%q: clusters of 2^%d bytes", path, bits)
		}
		var cluster []byte
		if cluster, err = readStart(path, 1<<bits); err == nil {
			var image Image
			if image, err = parseBelow(cluster); err == nil {
				return image, nil
			}
		}
	}
	if errors.Is(err, errNoFormat) {
		return Image{}, messages.Errorf(messages.CodeDiskUnsupported, "%q: %w", path, err).
			WithHint("State it: qemu-img rebase -u -f qcow2 -F FORMAT -b BACKING-FILE IMAGE.")
	}
	return Image{}, messages.EnsureCode(messages.CodeDiskUnsupported, fmt.Errorf("%q: %w", path, unsupported(err)))
}

// parseBelow reads the name and the format of the backing file from the first cluster of an image that has one.
func parseBelow(cluster []byte) (Image, error) {
	offset, size := binary.BigEndian.Uint64(cluster[8:]), binary.BigEndian.Uint32(cluster[16:])
	if size == 0 || size > maxBackingName || offset < qcow2MinHeaderSize || offset > uint64(len(cluster)) || uint64(size) > uint64(len(cluster))-offset {
		return Image{}, fmt.Errorf("%w: the name of its backing file is not in its header", errNotQcow2)
	}
	image := Image{Path: string(cluster[offset:][:size])}
	if !utf8.ValidString(image.Path) || strings.ContainsRune(image.Path, 0) {
		return Image{}, fmt.Errorf("%w: the name of its backing file is not UTF-8", errNotQcow2)
	}
	at := uint64(qcow2MinHeaderSize)
	if binary.BigEndian.Uint32(cluster[4:]) >= 3 {
		if len(cluster) < qcow2HeaderLength+4 {
			return Image{}, fmt.Errorf("%w: its header is cut off", errNotQcow2)
		}
		at = uint64(binary.BigEndian.Uint32(cluster[qcow2HeaderLength:]))
	}
	for at+extensionHead <= offset {
		kind, length := binary.BigEndian.Uint32(cluster[at:]), uint64(binary.BigEndian.Uint32(cluster[at+4:]))
		at += extensionHead
		if kind == 0 {
			break
		}
		if length > offset-at {
			return Image{}, fmt.Errorf("%w: an extension of its header is cut off", errNotQcow2)
		}
		if kind == qcow2FormatName {
			image.Format = string(cluster[at : at+length])
		}
		at += (length + extensionAlignment - 1) / extensionAlignment * extensionAlignment
	}
	switch image.Format {
	case FormatRaw, FormatQcow2:
		return image, nil
	case "":
		return Image{}, errNoFormat
	}
	return Image{}, errFormat(image.Format)
}
