package main

import (
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// pause lies between two writes: the guest is busy, and its processor not all the time.
const pause = 2 * time.Millisecond

// writer writes without end and notes what it feels. A write that fails ends it.
type writer struct {
	quit chan struct{}
	done chan struct{}

	mu      sync.Mutex
	written int64
	failed  error
	longest time.Duration
	// laps are how long each write took since they were asked for last.
	laps []time.Duration
}

// begin writes number after number with put, and tells of each that is on the disk: "synced N", or
// "failed …".
func begin(put func(int64) error, tell func(string, ...any), closeFiles func()) *writer {
	w := &writer{quit: make(chan struct{}), done: make(chan struct{})}
	go func() {
		defer close(w.done)
		defer closeFiles()
		for n := int64(1); ; n++ {
			started := time.Now()
			err := put(n)
			w.note(n, err, time.Since(started))
			if err != nil {
				tell("failed %d %v", n, err)
				return
			}
			tell("synced %d", n)
			select {
			case <-w.quit:
				return
			case <-time.After(pause):
			}
		}
	}()
	return w
}

func (w *writer) note(n int64, err error, took time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.longest = max(w.longest, took)
	w.laps = append(w.laps, took)
	if w.failed = err; err == nil {
		w.written = n
	}
}

func (w *writer) end() {
	close(w.quit)
	<-w.done
}

// report is: writes that succeeded, writes that failed, the longest in microseconds.
func (w *writer) report() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	failed := 0
	if w.failed != nil {
		failed = 1
	}
	return fmt.Sprintf("%d %d %d", w.written, failed, w.longest.Microseconds())
}

// takeLaps is: writes since the last call, then the median, the 99th percentile and the longest of
// them in microseconds.
func (w *writer) takeLaps() string {
	w.mu.Lock()
	laps := w.laps
	w.laps = nil
	w.mu.Unlock()
	if len(laps) == 0 {
		return "0 0 0 0"
	}
	slices.Sort(laps)
	at := func(percent int) int64 { return laps[(len(laps)-1)*percent/100].Microseconds() }
	return fmt.Sprintf("%d %d %d %d", len(laps), at(50), at(99), at(100))
}

// writeRecords appends records to a file of the disk's file system, each synced before it is told.
func writeRecords(disk string, tell func(string, ...any)) (*writer, error) {
	f, err := os.OpenFile(filepath.Join(fsMount, disk, "records"), os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o644)
	if err != nil {
		return nil, err
	}
	put := func(n int64) error {
		number := fmt.Sprintf("%016d", n)
		if _, err := fmt.Fprintf(f, "%s %08x\n", number, crc32.ChecksumIEEE([]byte(number))); err != nil {
			return err
		}
		return f.Sync()
	}
	return begin(put, tell, func() { _ = f.Close() }), nil
}

// writeCounter writes each number to the first block of one disk, and when it is there to that of
// the next, past every cache.
func writeCounter(disks []string, tell func(string, ...any)) (*writer, error) {
	block, files, closeAll, err := openRaw(disks)
	if err != nil {
		return nil, err
	}
	put := func(n int64) error {
		binary.BigEndian.PutUint64(block, uint64(n))
		for _, f := range files {
			if _, err := f.WriteAt(block, 0); err != nil {
				return err
			}
		}
		return nil
	}
	return begin(put, tell, closeAll), nil
}

// writeRandom writes a block to random places of a disk, past every cache.
func writeRandom(disk string, tell func(string, ...any)) (*writer, error) {
	block, files, closeAll, err := openRaw([]string{disk})
	if err != nil {
		return nil, err
	}
	size, err := files[0].Seek(0, io.SeekEnd)
	if err != nil || size < blockSize {
		closeAll()
		return nil, fmt.Errorf("the size of %s: %d, %w", disk, size, err)
	}
	put := func(n int64) error {
		binary.BigEndian.PutUint64(block, uint64(n))
		_, err := files[0].WriteAt(block, rand.Int64N(size/blockSize)*blockSize)
		return err
	}
	return begin(put, tell, closeAll), nil
}

// blockSize is what writers past the caches write at a time, in bytes.
const blockSize = 4096

// openRaw opens disks to be written past every cache, and makes a block to write.
func openRaw(disks []string) (block []byte, files []*os.File, closeAll func(), err error) {
	block, err = unix.Mmap(-1, 0, blockSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		return nil, nil, nil, err
	}
	closeAll = func() {
		for _, f := range files {
			_ = f.Close()
		}
		_ = unix.Munmap(block)
	}
	for _, d := range disks {
		f, err := os.OpenFile("/dev/"+d, os.O_WRONLY|unix.O_DIRECT|unix.O_SYNC, 0)
		if err != nil {
			closeAll()
			return nil, nil, nil, err
		}
		files = append(files, f)
	}
	return block, files, closeAll, nil
}
