package bench

import (
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/nasfleet/nasfleet/tests/lab"
)

// bigDiskMiB is the size of the disk that must not make the worker any bigger: 4 TiB.
const bigDiskMiB = 4 << 20

// bigDataMiB is how much data is on it.
const bigDataMiB = 256

// bigDisk backs up a big disk, compressed and verified, with a worker of its own, and reads what
// the worker needed.
func bigDisk(b *testing.B, programs string) memoryCheck {
	b.Helper()
	image := sparseImage(b)
	w := startWorker(b, programs, "none")
	repo := lab.Dir(b)
	started := time.Now()
	w.take(b, repo, "--image", image, "--compress", "--verify")
	return memoryCheck{DiskMiB: bigDiskMiB, DataMiB: bigDataMiB, Worker: w.peak(b), Took: time.Since(started)}
}

// sparseImage makes a raw image with data all over it.
func sparseImage(b *testing.B) string {
	b.Helper()
	path := filepath.Join(lab.Dir(b), "big.raw")
	f, err := os.Create(path)
	if err != nil {
		b.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	if err := f.Truncate(bigDiskMiB * mib); err != nil {
		b.Fatal(err)
	}
	noise := make([]byte, mib)
	random := rand.NewChaCha8([32]byte{})
	for i := range int64(bigDataMiB) {
		_, _ = random.Read(noise)
		if _, err := f.WriteAt(noise, i*(bigDiskMiB/bigDataMiB)*mib); err != nil {
			b.Fatal(err)
		}
	}
	return path
}

// peakOf returns a process's name and the most memory it has had resident, in bytes; 0 when it
// has ended. (The rusage of a child is no use: it counts what the parent had when it forked.)
func peakOf(pid int) (name string, bytes int64) {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return "", 0
	}
	for line := range strings.Lines(string(status)) {
		key, value, _ := strings.Cut(line, ":")
		switch key {
		case "Name":
			name = strings.TrimSpace(value)
		case "VmHWM":
			kib, err := strconv.ParseInt(strings.Fields(value)[0], 10, 64)
			if err != nil {
				return name, 0
			}
			return name, kib << 10
		}
	}
	return name, 0
}

// sampleEvery is how often the peaks of processes are read. A process keeps its own peak; only
// its last moments can be missed.
const sampleEvery = 50 * time.Millisecond

// watchMemory reads the peaks of a process and all below it until the returned function is
// called, which gives the most of each program, by name.
func watchMemory(root int) (stop func() map[string]int64) {
	quit, result := make(chan struct{}), make(chan map[string]int64)
	go func() {
		most := map[string]int64{}
		tick := time.NewTicker(sampleEvery)
		defer tick.Stop()
		for {
			for _, pid := range append(descendants(root), root) {
				if name, bytes := peakOf(pid); bytes > 0 {
					most[name] = max(most[name], bytes)
				}
			}
			select {
			case <-tick.C:
			case <-quit:
				result <- most
				return
			}
		}
	}()
	return func() map[string]int64 { close(quit); return <-result }
}

// descendants lists the processes below one.
func descendants(pid int) []int {
	lists, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", pid))
	var all []int
	for _, list := range lists {
		children, _ := os.ReadFile(list) // the thread may have ended
		for _, text := range strings.Fields(string(children)) {
			if child, err := strconv.Atoi(text); err == nil {
				all = append(append(all, child), descendants(child)...)
			}
		}
	}
	return all
}
