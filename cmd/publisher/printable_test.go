package main

import "testing"

func TestPrintable(t *testing.T) {
	for given, want := range map[string]string{
		"web-1 Größe 日本":  "web-1 Größe 日本",
		"a\x1b[2Jb\r\nc":  "a [2Jb  c",
		"a\u202ebew":      "a bew",
		"a\u2066b\u2028c": "a b c",
		"a\u200bb\x00":    "a b ",
	} {
		if got := printable(given); got != want {
			t.Errorf("%q: %q", given, got)
		}
	}
}
