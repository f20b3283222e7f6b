package main

import (
	"fmt"
	"io"
	"reflect"

	"github.com/alecthomas/kong"

	"github.com/nasfleet/nasfleet/internal/bus"
	"github.com/nasfleet/nasfleet/internal/flagfile"
	"github.com/nasfleet/nasfleet/internal/secret"
	"github.com/nasfleet/nasfleet/messages"
)

func newParser(c *cli, stdout, stderr io.Writer) (*kong.Kong, error) {
	return kong.New(c,
		kong.Name("publisher"), kong.Description(description), kong.Writers(stdout, stderr),
		flagfile.Option(), kong.DefaultEnvars("NASFLEET"),
		kong.Vars{"default_nats": bus.DefaultURL, "default_keys": secret.DefaultFolder(), "version": version},
		kong.NamedMapper("quiesce", kong.MapperFunc(decodeQuiesce)),
		kong.ConfigureHelp(kong.HelpOptions{Compact: true}),
	)
}

// decodeQuiesce reads the value of --quiesce, which may be left out: best_effort. A word that
// follows belongs to it, because the command has no other arguments.
func decodeQuiesce(ctx *kong.DecodeContext, target reflect.Value) error {
	if !ctx.Scan.Peek().IsValue() {
		target.SetString(string(messages.QuiesceBestEffort))
		return nil
	}
	target.SetString(fmt.Sprint(ctx.Scan.Pop().Value)) // a bool where it comes from a file
	return nil
}
