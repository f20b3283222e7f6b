package lab

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"strconv"
)

// Framing reads one message of a protocol, whole.
type Framing func(*bufio.Reader) ([]byte, error)

// NATSFrames reads the lines of the NATS client protocol, with their payload where they have one
// (docs.nats.io, "Client Protocol"): it is the last number of PUB, HPUB, MSG and HMSG.
func NATSFrames(r *bufio.Reader) ([]byte, error) {
	frame, err := r.ReadBytes('\n')
	if err != nil {
		return nil, err
	}
	words := bytes.Fields(frame)
	if len(words) < 3 {
		return frame, nil
	}
	switch string(bytes.ToUpper(words[0])) {
	case "PUB", "HPUB", "MSG", "HMSG":
		size, err := strconv.Atoi(string(words[len(words)-1]))
		if err != nil {
			return nil, fmt.Errorf("not a frame of NATS: %q", frame)
		}
		return more(r, frame, size+len("\r\n"))
	}
	return frame, nil
}

// maxRPC bounds a message of libvirt (VIR_NET_MESSAGE_MAX), in bytes.
const maxRPC = 32 << 20

// LibvirtFrames reads the packets of libvirt's RPC, which begin with their length, four bytes, big
// endian (libvirt.org, "RPC infrastructure").
func LibvirtFrames(r *bufio.Reader) ([]byte, error) {
	head := make([]byte, 4)
	if _, err := io.ReadFull(r, head); err != nil {
		return nil, err
	}
	size := binary.BigEndian.Uint32(head)
	if size < 4 || size > maxRPC {
		return nil, fmt.Errorf("not a packet of libvirt: %d bytes", size)
	}
	return more(r, head, int(size)-len(head))
}

func more(r *bufio.Reader, frame []byte, n int) ([]byte, error) {
	start := len(frame)
	frame = append(frame, make([]byte, n)...)
	_, err := io.ReadFull(r, frame[start:])
	return frame, err
}
