// Command schema writes docs/schema: the JSON Schema of each message, made from the Go types of
// package messages and their comments, so that the two cannot drift apart. It stands here, and not
// in messages, to keep that package free of what only the making needs.
//
// go generate ./messages runs it.
package main

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
)

func main() {
	source := flag.String("source", "messages", "the folder of package messages")
	out := flag.String("out", "docs/schema", "the folder to write <message>.schema.json to")
	flag.Parse()
	if err := write(*source, *out); err != nil {
		fmt.Fprintln(os.Stderr, "schema:", err)
		os.Exit(1)
	}
}

func write(source, out string) error {
	files, err := generate(source)
	if err != nil {
		return err
	}
	for name, data := range files {
		if err := os.WriteFile(filepath.Join(out, name), data, 0o644); err != nil {
			return err
		}
	}
	return nil
}
