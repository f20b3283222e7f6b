package main

import (
	"io"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// TestPages compares docs/commands with the command line, both ways: each flag of a command is on
// the command's page with its default, and each row of its table of flags is a flag of the command.
func TestPages(t *testing.T) {
	parser, err := newParser(&cli{}, standardFile, io.Discard, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	row := regexp.MustCompile("(?m)^\\| `--([a-z-]+).*$")
	for _, command := range parser.Model.Children {
		if command.Hidden {
			continue // nobody types it
		}
		name := command.Name + ".md"
		data, err := os.ReadFile("../../docs/commands/" + name)
		if err != nil {
			t.Fatal(err)
		}
		page := string(data)
		if !strings.HasPrefix(page, "# hostworker "+command.Name+"\n") {
			t.Errorf("%s has another title", name)
		}
		rows := map[string]string{}
		for _, m := range row.FindAllStringSubmatch(page, -1) {
			rows[m[1]] = m[0]
		}
		var names []string
		for _, f := range append(slices.Clone(parser.Model.Flags), command.Flags...) {
			names = append(names, f.Name)
			if !regexp.MustCompile("`--" + f.Name + "[ `]").MatchString(page) {
				t.Errorf("%s does not explain --%s", name, f.Name)
			}
			if line := rows[f.Name]; line != "" && !strings.Contains(line, f.Default) {
				t.Errorf("%s does not say that --%s is %s by default: %s", name, f.Name, f.Default, line)
			}
		}
		for flag := range rows {
			if !slices.Contains(names, flag) {
				t.Errorf("%s explains --%s, which there is not", name, flag)
			}
		}
	}
}
