package lab

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// MiB is 1,048,576 bytes.
const MiB = 1 << 20

// Image creates a disk image of the format (qcow2, raw) with the size in MiB at the path.
func Image(t testing.TB, path, format string, sizeMiB int) string {
	t.Helper()
	Run(t, "qemu-img", "create", "-q", "-f", format, path, strconv.Itoa(sizeMiB)+"M")
	return path
}

// Overlay creates a qcow2 image at the path with a backing file of the format.
func Overlay(t testing.TB, path, backing, format string) string {
	t.Helper()
	Run(t, "qemu-img", "create", "-q", "-f", "qcow2", "-b", backing, "-F", format, path)
	return path
}

// FSImage creates a raw image at the path with an ext4 file system that holds a copy of the
// folder; "" leaves it empty.
func FSImage(t testing.TB, path string, sizeMiB int, folder string) string {
	t.Helper()
	Image(t, path, "raw", sizeMiB)
	args := []string{"-q", "-F", "-E", "nodiscard,lazy_itable_init=0"}
	if folder != "" {
		args = append(args, "-d", folder)
	}
	Run(t, "mkfs.ext4", append(args, path)...)
	return path
}

// LoopDevice returns a block device of the size, on a file in a folder of its own. It is detached
// with the test.
func LoopDevice(t testing.TB, sizeMiB int) string {
	t.Helper()
	return attach(t, Image(t, filepath.Join(Dir(t), "loop"), "raw", sizeMiB))
}

func attach(t testing.TB, image string) string {
	t.Helper()
	device := strings.TrimSpace(Run(t, "losetup", "--find", "--show", image))
	t.Cleanup(func() {
		if out, err := Try(t, "losetup", "--detach", device); err != nil {
			t.Errorf("detach %s: %v\n%s", device, err, out)
		}
	})
	return device
}

// LoopImage returns the path of a file with an ext4 file system, for a test that mounts it itself
// (mount type ext4, option loop).
func LoopImage(t testing.TB, sizeMiB int) string {
	t.Helper()
	return FSImage(t, filepath.Join(Dir(t), "fs.img"), sizeMiB, "")
}

// LoopFS returns a folder on which an ext4 file system of the size is mounted. It is unmounted
// with the test.
func LoopFS(t testing.TB, sizeMiB int) string {
	t.Helper()
	image := LoopImage(t, sizeMiB)
	point := filepath.Join(filepath.Dir(image), "mnt")
	if err := os.Mkdir(point, 0o755); err != nil {
		t.Fatal(err)
	}
	Run(t, "mount", "-t", "ext4", "-o", "loop", image, point)
	t.Cleanup(func() {
		if out, err := Try(t, "umount", point); err != nil {
			t.Errorf("unmount %s: %v\n%s", point, err, out)
			_, _ = Try(t, "umount", "--lazy", point)
		}
	})
	return point
}
