package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"text/tabwriter"
	"time"

	"github.com/rs/zerolog"
)

// checkTimeout bounds each question that a check asks of another program.
const checkTimeout = 5 * time.Second

type doctorCmd struct {
	settings `embed:""`
	JSON     bool `name:"json" help:"Print the findings as a JSON array of objects with check, verdict (ok, warn, fail), detail and advice."`
}

// Help is printed by --help.
func (*doctorCmd) Help() string {
	return "It takes the settings of run and changes nothing. What it warns of may be meant that way; what fails has to be mended, and makes the exit code 1."
}

// verdict of a check.
type verdict string

const (
	good    verdict = "ok"
	warning verdict = "warn"
	bad     verdict = "fail"
)

// finding is what one check found, and what to do about it.
type finding struct {
	Check   string  `json:"check"`
	Verdict verdict `json:"verdict"`
	Detail  string  `json:"detail"`
	Advice  string  `json:"advice,omitempty"`
}

func ok(check, detail string) finding { return finding{Check: check, Verdict: good, Detail: detail} }

func warn(check, detail, advice string) finding { return finding{check, warning, detail, advice} }

func fail(check, detail, advice string) finding { return finding{check, bad, detail, advice} }

// errUnhealthy is doctor's: it has said what is wrong already.
var errUnhealthy = errors.New("failed")

// Run checks everything, whatever fails, and prints it.
func (c *doctorCmd) Run(ctx context.Context, stdout io.Writer, log zerolog.Logger) error {
	var all []finding
	for _, check := range []func(context.Context) []finding{
		checkUser, checkTools, checkHelpers, c.checkFolders, c.checkLibvirt, c.checkNATS, c.checkMetrics,
	} {
		all = append(all, check(ctx)...)
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
	if err := c.print(stdout, all); err != nil {
		return err
	}
	failed := 0
	for _, f := range all {
		log.Debug().Str("check", f.Check).Str("verdict", string(f.Verdict)).Msg(f.Detail)
		if f.Verdict == bad {
			failed++
		}
	}
	if failed > 0 {
		return fmt.Errorf("%d of %d checks %w", failed, len(all), errUnhealthy)
	}
	return nil
}

func (c *doctorCmd) print(stdout io.Writer, all []finding) error {
	if c.JSON {
		enc := json.NewEncoder(stdout)
		enc.SetIndent("", "  ")
		enc.SetEscapeHTML(false)
		return enc.Encode(all)
	}
	w := tabwriter.NewWriter(stdout, 0, 0, 2, ' ', 0)
	for _, f := range all {
		_, _ = fmt.Fprintf(w, "%s\t%s\t%s\n", f.Verdict, f.Check, f.Detail)
		if f.Advice != "" {
			_, _ = fmt.Fprintf(w, "\t\t-> %s\n", f.Advice)
		}
	}
	return w.Flush()
}

// ask bounds one question.
func ask(ctx context.Context, question func(context.Context) error) error {
	ctx, cancel := context.WithTimeoutCause(ctx, checkTimeout, fmt.Errorf("no answer within %v", checkTimeout))
	defer cancel()
	return question(ctx)
}
