package messages_test

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	m "github.com/nasfleet/nasfleet/messages"
)

// TestEveryCodeIsExplained compares the paragraphs of docs/operations.md with the codes, both ways.
func TestEveryCodeIsExplained(t *testing.T) {
	var explained []m.Code
	for _, p := range regexp.MustCompile("(?m)^### `(.+)`\n(.*)$").FindAllStringSubmatch(read(t, "../docs/operations.md"), -1) {
		code := m.Code(p[1])
		explained = append(explained, code)
		if !slices.Contains(m.Codes(), code) {
			t.Errorf("%s is explained and is no code", code)
		}
		if len(p[2]) < 40 {
			t.Errorf("%s: %q is no explanation", code, p[2])
		}
	}
	for _, code := range m.Codes() {
		if !slices.Contains(explained, code) {
			t.Errorf("docs/operations.md has no heading for %s", code)
		}
	}
	if !slices.IsSorted(explained) {
		t.Errorf("the codes are not in order: %v", explained)
	}
}

// TestLinks follows the links between the pages, and from them into the repository.
func TestLinks(t *testing.T) {
	pages := []string{"../README.md"}
	err := filepath.WalkDir("../docs", func(path string, _ fs.DirEntry, err error) error {
		if filepath.Ext(path) == ".md" {
			pages = append(pages, path)
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	link := regexp.MustCompile(`\]\(([^)\s]+)\)`)
	followed := 0
	for _, page := range pages {
		for _, l := range link.FindAllStringSubmatch(read(t, page), -1) {
			path, anchor, _ := strings.Cut(l[1], "#")
			target := page
			if path != "" {
				target = filepath.Join(filepath.Dir(page), path)
			}
			if _, err := os.Stat(target); err != nil {
				t.Errorf("%s: %v", page, err)
				continue
			}
			if anchor != "" && !slices.Contains(anchors(read(t, target)), anchor) {
				t.Errorf("%s: %s has no heading #%s", page, target, anchor)
			}
			followed++
		}
	}
	if followed < 20 {
		t.Errorf("only %d links were found", followed)
	}
}

// anchors lists the anchors of a page's headings, as forges make them.
func anchors(page string) []string {
	var list []string
	for _, h := range regexp.MustCompile(`(?m)^#+ (.+)$`).FindAllStringSubmatch(page, -1) {
		kept := regexp.MustCompile(`[^a-z0-9 _-]`).ReplaceAllString(strings.ToLower(h[1]), "")
		list = append(list, strings.ReplaceAll(kept, " ", "-"))
	}
	return list
}

func read(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}
