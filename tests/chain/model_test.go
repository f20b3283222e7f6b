package chain

import (
	"bytes"
	"fmt"
	"os"
	"slices"
)

// clusterSize is that of the disks under test: libvirt's bitmaps have a bit for as much.
const clusterSize = 64 << 10

// content is the bytes of a disk. Its clusters are never changed in place, so that a copy of it costs no
// more than their list; one that is nil is zeroes.
type content struct {
	size     int64
	clusters [][]byte
}

func newContent(size int64) content {
	return content{size, make([][]byte, (size+clusterSize-1)/clusterSize)}
}

func (c content) clone() content { return content{c.size, slices.Clone(c.clusters)} }

// fill writes a pattern.
func (c content) fill(offset, length int64, pattern byte) {
	for end := offset + length; offset < end; {
		i, within := offset/clusterSize, offset%clusterSize
		n := min(clusterSize-within, end-offset)
		cluster := make([]byte, clusterSize)
		copy(cluster, c.clusters[i])
		for j := range cluster[within : within+n] {
			cluster[within+int64(j)] = pattern
		}
		c.clusters[i] = cluster
		offset += n
	}
}

// resize returns the content with another size. What is new is zeroes, and what is cut is gone: the size
// that a disk shrinks to has to be a multiple of clusterSize.
func (c content) resize(size int64) content {
	resized := newContent(size)
	copy(resized.clusters, c.clusters)
	return resized
}

// compare says where a raw file differs.
func (c content) compare(path string) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if int64(len(data)) != c.size {
		return fmt.Errorf("%s has %d bytes, want %d", path, len(data), c.size)
	}
	zeroes := make([]byte, clusterSize)
	for i, want := range c.clusters {
		if want == nil {
			want = zeroes
		}
		start := i * clusterSize
		got := data[start:min(start+clusterSize, len(data))]
		if !bytes.Equal(got, want[:len(got)]) {
			return fmt.Errorf("%s differs in the cluster at %d: it begins with %x, want %x", path, start, got[:16], want[:16])
		}
	}
	return nil
}

// backup is one that exists, and what it has to restore to.
type backup struct {
	id, parent string
	encrypted  bool
	// links is how many backups its chain has, itself included; 0 for one that no incremental can continue.
	links int
	disks map[string]content
	// holds is the backup that its checkpoint was made for, of is the one that was taken at its moment: others
	// than itself for one that was consolidated.
	holds, of string
}

// model is what there has to be. Its backups are in the order in which they were taken.
type model struct {
	disks   map[string]content
	backups []backup
	// tip is the id of the backup that the next incremental continues; "" when there is none. It holds the
	// checkpoint.
	tip, checkpoint string
	// strays are names of checkpoints that may be there until the next backup of the chain: those of
	// backups that failed with their VM.
	strays []string
}

// moment is what the disks hold now.
func (m *model) moment() map[string]content {
	at := map[string]content{}
	for name, c := range m.disks {
		at[name] = c.clone()
	}
	return at
}

// add notes a backup.
func (m *model) add(b backup) {
	b.of = b.id
	if b.links > 0 {
		b.holds, m.checkpoint, m.strays = b.id, b.id, nil
	}
	m.backups = append(m.backups, b)
	m.settle()
}

func (m *model) find(id string) *backup {
	for i := range m.backups {
		if m.backups[i].id == id {
			return &m.backups[i]
		}
	}
	return nil
}

// withChildren returns the ids of a backup and of all that need it.
func (m *model) withChildren(id string) []string {
	ids := []string{id}
	for _, b := range m.backups { // children come after their parents
		if b.parent != "" && slices.Contains(ids, b.parent) {
			ids = append(ids, b.id)
		}
	}
	return ids
}

// remove forgets backups.
func (m *model) remove(ids ...string) {
	m.backups = slices.DeleteFunc(m.backups, func(b backup) bool { return slices.Contains(ids, b.id) })
	m.settle()
}

// unkept returns the backups that keeping the last n moments, and what they need, does not keep.
func (m *model) unkept(n int) []string {
	var kept, rest []string
	last := ""
	for _, b := range slices.Backward(m.backups) { // parents come after their children
		rule := b.of != last && n > 0
		if rule {
			last = b.of
			n--
		}
		if rule || slices.Contains(kept, b.id) {
			kept = append(kept, b.id, b.parent)
		} else {
			rest = append(rest, b.id)
		}
	}
	return rest
}

// continues says whether the next backup can be an incremental.
func (m *model) continues(encrypted bool) bool {
	tip := m.find(m.tip)
	if tip == nil || tip.encrypted != encrypted {
		return false
	}
	for name, c := range m.disks {
		if tip.disks[name].size != c.size {
			return false
		}
	}
	return true
}
