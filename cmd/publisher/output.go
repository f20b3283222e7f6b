package main

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/dustin/go-humanize"

	"github.com/nasfleet/nasfleet/messages"
)

// printJSON prints v for programs, over several lines.
func printJSON(w io.Writer, v any) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "  ")
	return e.Encode(v)
}

// printJSONLine prints v for programs that read a stream: one line an object.
func printJSONLine(w io.Writer, v any) error { return json.NewEncoder(w).Encode(v) }

// table prints rows for people.
type table struct {
	w   *tabwriter.Writer
	err error
}

func newTable(w io.Writer, header ...string) *table {
	t := &table{w: tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)}
	if len(header) > 0 {
		t.row(header...)
	}
	return t
}

func (t *table) row(cells ...string) {
	for i, c := range cells {
		cells[i] = printable(c)
	}
	if _, err := fmt.Fprintln(t.w, strings.Join(cells, "\t")); t.err == nil {
		t.err = err
	}
}

func (t *table) flush() error {
	if err := t.w.Flush(); err != nil {
		return err
	}
	return t.err
}

// size is a number of bytes for people.
func size(n int64) string { return humanize.IBytes(uint64(max(n, 0))) }

// stamp is a time for people, in their own zone.
func stamp(t time.Time) string { return t.Local().Format("2006-01-02 15:04:05") }

// features names what a backup is besides plain.
func features(e messages.CatalogEntry) string {
	var list []string
	if e.Compressed {
		list = append(list, "compressed")
	}
	if e.Encrypted {
		list = append(list, "encrypted")
	}
	if e.Quiesced {
		list = append(list, "quiesced")
	}
	if len(list) == 0 {
		return "-"
	}
	return strings.Join(list, ",")
}
