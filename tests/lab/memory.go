package lab

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"fmt"
	"os"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// Secret is a text that is looked for in the memory of the process. It is kept in a form that is not found itself.
type Secret struct{ masks [][]byte }

// hidden is what each byte of a Secret is hidden by.
const hidden = 0xA5

// maxMapping is what no heap of ours reaches, and the race detector's shadow of it exceeds (bytes).
const maxMapping = 4 << 30

// HideSecret returns text as a Secret, and as base64 of it beginning at the same byte, and wipes text.
func HideSecret(text []byte) Secret {
	encoded := make([]byte, base64.RawStdEncoding.EncodedLen(len(text)))
	base64.RawStdEncoding.Encode(encoded, text)
	s := Secret{[][]byte{make([]byte, len(text)), make([]byte, len(encoded)-1)}}
	for i, b := range text {
		s.masks[0][i] = b ^ hidden
	}
	for i := range s.masks[1] { // the last character depends on the padding
		s.masks[1][i] = encoded[i] ^ hidden
	}
	clear(text)
	clear(encoded)
	return s
}

// Reveal returns the text. The caller wipes it.
func (s Secret) Reveal() []byte {
	text := make([]byte, len(s.masks[0]))
	for i, b := range s.masks[0] {
		text[i] = b ^ hidden
	}
	return text
}

// InMemory counts how often the secret, in the clear or as base64, is in memory that the process can write to.
func (s Secret) InMemory(t testing.TB) int {
	t.Helper()
	runtime.GC() // what is free already may be used for something else
	mem, err := os.Open("/proc/self/mem")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = mem.Close() }()
	maps, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		t.Fatal(err)
	}
	// Outside Go's heap, and left out: what is read is not to be found in turn.
	const chunk, overlap = 1 << 20, 4 << 10
	buffer, err := unix.Mmap(-1, 0, chunk+overlap, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = unix.Munmap(buffer) }()
	own := addressOf(buffer)
	found := 0
	for lines := bufio.NewScanner(bytes.NewReader(maps)); lines.Scan(); {
		var from, to uint64
		var rights string
		if _, err := fmt.Sscanf(lines.Text(), "%x-%x %s", &from, &to, &rights); err != nil || !strings.HasPrefix(rights, "rw") || to-from > maxMapping {
			continue
		}
		for at := from; at < to; at += chunk {
			n, _ := mem.ReadAt(buffer[:min(uint64(len(buffer)), to-at)], int64(at)) // some cannot be read
			found += s.count(buffer[:n], chunk, at, own)
		}
	}
	return found
}

// count counts the secret where it begins in the first limit bytes of data, which lie at an address, outside of
// those that are our own.
func (s Secret) count(data []byte, limit int, at, own uint64) (found int) {
	for _, mask := range s.masks {
		for i := 0; i+len(mask) <= len(data) && i < limit; i++ {
			if a := at + uint64(i); a >= own && a < own+uint64(limit)*2 {
				continue
			}
			j := 0
			for j < len(mask) && data[i+j]^hidden == mask[j] {
				j++
			}
			if j == len(mask) {
				found++
			}
		}
	}
	return found
}

func addressOf(b []byte) uint64 {
	var address uint64
	_, _ = fmt.Sscanf(fmt.Sprintf("%p", b), "0x%x", &address)
	return address
}
