package main

import (
	"bytes"
	"fmt"
	"io"
	"os"

	"golang.org/x/term"
)

// prompted returns stdin, and where that is a terminal, one that asks for the passphrase and does
// not show it. Nothing but passphrases is read from standard input.
func prompted(stdin io.Reader, stderr io.Writer) io.Reader {
	f, ok := stdin.(*os.File)
	if !ok || !term.IsTerminal(int(f.Fd())) {
		return stdin
	}
	return &prompt{terminal: f, stderr: stderr}
}

type prompt struct {
	terminal *os.File
	stderr   io.Writer
	line     *bytes.Reader
}

func (p *prompt) Read(b []byte) (int, error) {
	if p.line == nil {
		_, _ = fmt.Fprint(p.stderr, "Passphrase: ")
		line, err := term.ReadPassword(int(p.terminal.Fd()))
		_, _ = fmt.Fprintln(p.stderr)
		if err != nil {
			return 0, err
		}
		p.line = bytes.NewReader(line)
	}
	return p.line.Read(b)
}
