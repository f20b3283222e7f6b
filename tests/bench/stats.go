package bench

import (
	"fmt"
	"slices"
	"time"
)

// sample is one run of one contestant.
type sample struct {
	// took is the whole time as whoever started the backup sees it.
	took time.Duration
	// job and copying are parts of it that two contestants have in common; zero for the others.
	job, copying time.Duration
	// sync is what syncing the file system took afterwards.
	sync time.Duration
	// stored is what lies on the target, in bytes as the file system counts its blocks.
	stored int64
	// memory is the peak of each program, in bytes, by the program's name.
	memory map[string]int64
}

// summary describes the values of all rounds.
type summary struct{ median, least, most float64 }

// summarize returns the zero value for no values at all.
func summarize(values []float64) summary {
	if len(values) == 0 {
		return summary{}
	}
	sorted := slices.Sorted(slices.Values(values))
	n := len(sorted)
	return summary{(sorted[(n-1)/2] + sorted[n/2]) / 2, sorted[0], sorted[n-1]}
}

// format writes the median and the range with a verb such as %.2f.
func (s summary) format(verb string) string {
	return fmt.Sprintf(verb+" ("+verb+"–"+verb+")", s.median, s.least, s.most)
}

// of takes one value from each sample.
func of(samples []sample, value func(sample) float64) []float64 {
	var values []float64
	for _, s := range samples {
		values = append(values, value(s))
	}
	return values
}

// ratios divides a value round by round, so that what slowed a whole round down cancels out.
func ratios(ours, theirs []sample, value func(sample) float64) []float64 {
	var values []float64
	for i := range min(len(ours), len(theirs)) {
		values = append(values, value(ours[i])/value(theirs[i]))
	}
	return values
}

// The values of a sample: seconds and MiB.
func took(s sample) float64    { return s.took.Seconds() }
func job(s sample) float64     { return s.job.Seconds() }
func copying(s sample) float64 { return s.copying.Seconds() }
func syncing(s sample) float64 { return s.sync.Seconds() }
func stored(s sample) float64  { return float64(s.stored) / mib }

// total is a sample's time with its data safely on the disk.
func total(s sample) float64 { return took(s) + syncing(s) }

const mib = 1 << 20
