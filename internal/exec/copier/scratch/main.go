package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"runtime/pprof"
	"time"

	"github.com/nasfleet/nasfleet/internal/exec/copier"
	"github.com/nasfleet/nasfleet/internal/exec/digest"
	"github.com/nasfleet/nasfleet/internal/exec/nbd"
)

func main() {
	depth := flag.Int("depth", 0, "")
	hash := flag.Bool("hash", false, "")
	verify := flag.Bool("verify", false, "")
	prog := flag.Bool("prog", false, "")
	prof := flag.String("prof", "", "")
	limit := flag.Int("limit", 0, "")
	flag.Parse()
	if *prof != "" {
		f, _ := os.Create(*prof)
		pprof.StartCPUProfile(f)
		defer pprof.StopCPUProfile()
	}
	ctx := context.Background()
	s, err := nbd.Dial(ctx, flag.Arg(0), nbd.Options{Export: "disk", MetaContexts: []string{nbd.BaseAllocation}})
	if err != nil {
		panic(err)
	}
	d, err := nbd.Dial(ctx, flag.Arg(1), nbd.Options{Export: "disk", MetaContexts: []string{nbd.BaseAllocation}})
	if err != nil {
		panic(err)
	}
	t := time.Now()
	o := copier.Options{Depth: *depth}
	if *limit > 0 {
		o.Limiter = copier.NewLimiter(*limit)
	}
	if *hash {
		os.Remove("/tmp/x.digests")
		w, err := digest.Create("/tmp/x.digests", s.Size(), make([]byte, 32))
		if err != nil {
			panic(err)
		}
		o.Digests = w
	}
	if *prog {
		o.Progress = func(done, total int64) {}
	}
	st, err := copier.Copy(ctx, s, d, o)
	if err != nil {
		panic(err)
	}
	el := time.Since(t)
	fmt.Printf("%v %+v %.1f MiB/s\n", el.Round(time.Millisecond), st, float64(st.DataBytes>>20)/el.Seconds())
	if *verify {
		r, err := digest.Open("/tmp/x.digests", make([]byte, 32))
		if err != nil {
			panic(err)
		}
		t := time.Now()
		st, err := copier.Verify(ctx, d, r, o)
		if err != nil {
			panic(err)
		}
		el := time.Since(t)
		fmt.Printf("verify %v %+v %.1f MiB/s\n", el.Round(time.Millisecond), st, float64(st.DataBytes>>20)/el.Seconds())
	}
	s.Close()
	d.Close()
}
