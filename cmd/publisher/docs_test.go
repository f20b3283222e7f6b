package main

import (
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/alecthomas/kong"
)

const pages = "../../docs/commands"

// TestPages compares docs/commands with the command line, both ways: each flag of a command is on
// the command's page, and each row of a page's tables of flags is a flag of the command.
func TestPages(t *testing.T) {
	parser, err := newParser(&cli{}, io.Discard, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	index := readPage(t, "README.md")
	known := []string{"README.md", "run.md", "doctor.md", "key.md"} // the last three are hostworker's
	for _, command := range parser.Model.Children {
		name := command.Name + ".md"
		known = append(known, name)
		if !strings.Contains(index, "["+command.Name+"]("+name+")") {
			t.Errorf("README.md does not link to %s", name)
		}
		page := readPage(t, name)
		if !strings.HasPrefix(page, "# publisher "+command.Name+"\n") {
			t.Errorf("%s has another title", name)
		}
		comparePage(t, name, page, append(slices.Clone(parser.Model.Flags), flagsBelow(command)...))
		for _, below := range command.Children {
			if !strings.Contains(page, "publisher "+command.Name+" "+below.Name) {
				t.Errorf("%s does not explain %s", name, below.Name)
			}
		}
	}
	comparePage(t, "README.md", index, parser.Model.Flags)
	files, err := filepath.Glob(filepath.Join(pages, "*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if !slices.Contains(known, filepath.Base(f)) {
			t.Errorf("%s is the page of no command", f)
		}
	}
}

var flagRow = regexp.MustCompile("(?m)^\\| `--([a-z-]+)")

func comparePage(t *testing.T, name, page string, flags []*kong.Flag) {
	t.Helper()
	var names []string
	for _, f := range flags {
		names = append(names, f.Name)
		if !regexp.MustCompile("`--" + f.Name + "[ `]").MatchString(page) {
			t.Errorf("%s does not explain --%s", name, f.Name)
		}
	}
	for _, row := range flagRow.FindAllStringSubmatch(page, -1) {
		if !slices.Contains(names, row[1]) {
			t.Errorf("%s explains --%s, which there is not", name, row[1])
		}
	}
}

// flagsBelow returns the flags of a command and of those below it, each name once.
func flagsBelow(command *kong.Node) []*kong.Flag {
	flags := slices.Clone(command.Flags)
	for _, below := range command.Children {
		for _, f := range flagsBelow(below) {
			if !slices.ContainsFunc(flags, func(g *kong.Flag) bool { return g.Name == f.Name }) {
				flags = append(flags, f)
			}
		}
	}
	return flags
}

func readPage(t *testing.T, name string) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(pages, name))
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}
