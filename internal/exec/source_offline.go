package exec

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"time"

	"github.com/nasfleet/nasfleet/internal/exec/hypervisor"
	"github.com/nasfleet/nasfleet/internal/exec/nbd"
	"github.com/nasfleet/nasfleet/internal/exec/repository"
	"github.com/nasfleet/nasfleet/internal/exec/storaged"
	"github.com/nasfleet/nasfleet/messages"
)

// offlineSource reads disks that nobody writes, of a stopped VM or of none, through a storage
// daemon that opened them read-only.
type offlineSource struct {
	e *Executor
	// dom is nil for images.
	dom    *hypervisor.Domain
	opens  []storaged.Disk
	disks  []sourceDisk
	daemon *storaged.Daemon
	before []fingerprint
}

// fingerprint tells whether a disk was written meanwhile.
type fingerprint struct {
	size  int64
	mtime time.Time
}

func newStoppedSource(ctx context.Context, e *Executor, dom hypervisor.Domain) (*offlineSource, error) {
	s := &offlineSource{e: e, dom: &dom}
	for _, d := range dom.Disks {
		if err := d.CheckOpen(); err != nil {
			return nil, err
		}
		backing, err := e.backing(ctx, d)
		if err != nil {
			return nil, fmt.Errorf("disk %s of vm %s: %w", d.Target, dom.Name, err)
		}
		s.disks = append(s.disks, sourceDisk{name: d.Target, path: d.Path, format: d.Format})
		// Sharing lets the guest start at any time: the backup gives way (check), not the VM.
		s.opens = append(s.opens, storaged.Disk{Path: d.Path, Format: d.Format, ForceShare: true, Backing: backing, Bitmaps: checkpointPrefix})
	}
	return s, nil
}

func newImageSource(ctx context.Context, e *Executor, images []messages.Image) (*offlineSource, error) {
	s := &offlineSource{e: e}
	for i, img := range images {
		image := storaged.Image{Path: img.Path, Format: img.Format}
		var backing []storaged.Image
		var err error
		// A guest can write a qcow2 header into its raw disk: a format nobody stated opens no other file.
		if image.Format == "" {
			image.Format, err = onHost(ctx, messages.CodeSourceReadFailed, "look at the images", func() (string, error) { return sniff(img.Path) })
		} else {
			backing, err = e.follow(ctx, image, nil, nil)
		}
		if err != nil {
			return nil, err
		}
		s.disks = append(s.disks, sourceDisk{name: fmt.Sprintf("disk%d", i), path: image.Path, format: image.Format})
		s.opens = append(s.opens, storaged.Disk{Path: image.Path, Format: image.Format, Backing: backing})
	}
	return s, nil
}

// lookAt looks at an image before it is opened, because to open a pipe can take forever.
func lookAt(path string) (isFile bool, err error) {
	info, err := os.Stat(path)
	if err != nil {
		return false, messages.Errorf(messages.CodeDiskNotFound, "image: %w", err)
	}
	if mode := info.Mode(); !mode.IsRegular() && mode.Type() != fs.ModeDevice {
		return false, messages.Errorf(messages.CodeDiskUnsupported, "image %s is neither a regular file nor a block device", path)
	}
	return info.Mode().IsRegular(), nil
}

// sniff tells qcow2 from raw by the first four bytes (docs/interop/qcow2.txt of QEMU).
func sniff(path string) (string, error) {
	if _, err := lookAt(path); err != nil {
		return "", err
	}
	f, err := os.Open(path)
	if err != nil {
		return "", messages.Errorf(messages.CodeDiskNotFound, "image: %w", err)
	}
	defer func() { _ = f.Close() }()
	magic := make([]byte, 4)
	// A short image is raw; one that cannot be read is not known to be.
	if _, err := io.ReadFull(f, magic); err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		return "", messages.Errorf(messages.CodeSourceReadFailed, "image: %w", err)
	}
	if string(magic) == "QFI\xfb" {
		return storaged.FormatQcow2, nil
	}
	return storaged.FormatRaw, nil
}

func (s *offlineSource) prepare(ctx context.Context, ws *workspace) ([]sourceDisk, error) {
	var err error
	if s.daemon, err = ws.daemon(ctx, "src"); err != nil {
		return nil, err
	}
	if s.before, err = s.look(ctx); err != nil {
		return nil, err
	}
	for i := range s.disks {
		d := &s.disks[i]
		if err := s.open(ctx, i); err != nil {
			return nil, err
		}
		d.socket, d.export, d.daemon = s.daemon.Socket(), d.name, s.daemon
		if d.size, err = exportSize(ctx, d.socket, d.export); err != nil {
			return nil, err
		}
		if d.size == 0 {
			return nil, messages.Errorf(messages.CodeDiskUnsupported, "disk %s (%s) is empty", d.name, d.path).
				WithHint("Check that the path names the disk: there is nothing in it to back up.")
		}
	}
	return s.disks, nil
}

// open opens a disk.
func (s *offlineSource) open(ctx context.Context, i int) error {
	name := s.disks[i].name
	if !s.remote(i) {
		return s.daemon.OpenDisk(ctx, name, s.opens[i])
	}
	return s.e.openRemote(ctx, s.dom.Disks[i], messages.CodeSourceReadFailed, func(ctx context.Context, disk storaged.RemoteDisk) error {
		disk.Bitmaps = s.opens[i].Bitmaps
		return s.daemon.OpenRemote(ctx, name, disk)
	})
}

// remote says whether a disk lies on another machine.
func (s *offlineSource) remote(i int) bool { return s.dom != nil && s.dom.Disks[i].Network != nil }

func exportSize(ctx context.Context, socket, export string) (int64, error) {
	ctx, cancel := withDial(ctx)
	defer cancel()
	c, err := nbd.Dial(ctx, socket, nbd.Options{Export: export})
	if err != nil {
		return 0, messages.EnsureCode(messages.CodeSourceReadFailed, err)
	}
	return c.Size(), c.Close()
}

// begin has nothing to do: the moment is any, as long as nobody writes.
func (s *offlineSource) begin(context.Context, *workspace, point) (moment, error) {
	return moment{at: time.Now()}, nil
}

func (s *offlineSource) noIncremental() *full {
	if s.dom == nil {
		return fullBecause(messages.FullImages, "disk images of no vm have no checkpoints")
	}
	return noBitmaps(*s.dom)
}

func (s *offlineSource) domain() hypervisor.Domain {
	if s.dom == nil {
		return hypervisor.Domain{}
	}
	return *s.dom
}

// checkpoints are the bitmaps in the disks. libvirt is not asked: what it knows is nothing without them, and what it has
// forgotten is still in them.
func (s *offlineSource) checkpoints(context.Context) ([]hypervisor.Checkpoint, error) {
	var list []hypervisor.Checkpoint
	for _, d := range s.disks {
		for _, name := range s.daemon.Bitmaps(d.name) {
			i := slices.IndexFunc(list, func(c hypervisor.Checkpoint) bool { return c.Name == name })
			if i < 0 {
				i, list = len(list), append(list, hypervisor.Checkpoint{Name: name})
			}
			list[i].Disks = append(list[i].Disks, d.name)
		}
	}
	return list, nil
}

func (s *offlineSource) keep() {}

// check notices a VM that was started and a disk that was written during the copy.
func (s *offlineSource) check(ctx context.Context) error {
	if s.dom != nil {
		state, err := s.e.state(ctx, s.dom.Name)
		if err != nil {
			return err
		}
		if state != hypervisor.Stopped {
			return messages.Errorf(messages.CodeVMStateChanged, "vm %s was started during its backup", s.dom.Name)
		}
	}
	now, err := s.look(ctx)
	if err != nil {
		return err
	}
	for i, f := range now {
		if f != s.before[i] {
			return messages.Errorf(messages.CodeVMStateChanged, "disk %s was written during its backup", s.disks[i].path)
		}
	}
	return nil
}

// look is fingerprints for storage that may hang.
func (s *offlineSource) look(ctx context.Context) ([]fingerprint, error) {
	return onHost(ctx, messages.CodeSourceReadFailed, "look at the disks", s.fingerprints)
}

func (s *offlineSource) fingerprints() ([]fingerprint, error) {
	var all []fingerprint
	for i, d := range s.disks {
		if s.remote(i) {
			all = append(all, fingerprint{}) // its server tells nothing of the kind
			continue
		}
		info, err := os.Stat(d.path)
		if err != nil {
			return nil, messages.Errorf(messages.CodeDiskNotFound, "disk %s: %w", d.name, err)
		}
		all = append(all, fingerprint{info.Size(), info.ModTime()})
	}
	return all, nil
}

// end lets go of the disks. The storage daemon's own end is the workspace's.
func (s *offlineSource) end(context.Context) error {
	if s.daemon == nil {
		return nil
	}
	return s.daemon.Stop()
}

func (s *offlineSource) describe(m *repository.Manifest) {
	m.Source = repository.SourceImages
	if s.dom != nil {
		m.Source, m.UUID = repository.SourceStopped, s.dom.UUID
		m.Skipped = skippedDevices(s.dom.Skipped)
	}
}

func (s *offlineSource) domainXML() string {
	if s.dom == nil {
		return ""
	}
	return s.dom.XML
}
