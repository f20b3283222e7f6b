package main

import (
	"bytes"
	"errors"
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
	// twice says that a new passphrase is typed: what nobody sees is asked for again.
	twice bool
	line  *bytes.Reader
}

// askTwice has a passphrase that is new asked for twice, where it is typed at all.
func askTwice(stdin io.Reader) {
	if p, ok := stdin.(*prompt); ok {
		p.twice = true
	}
}

func (p *prompt) Read(b []byte) (int, error) {
	if p.line == nil {
		line, err := p.ask("Passphrase: ")
		if err != nil {
			return 0, err
		}
		if p.twice {
			again, err := p.ask("Once more: ")
			if err != nil {
				return 0, err
			}
			defer clear(again)
			if !bytes.Equal(line, again) {
				clear(line)
				return 0, errors.New("the two that were typed are not the same")
			}
		}
		p.line = bytes.NewReader(line)
	}
	return p.line.Read(b)
}

func (p *prompt) ask(what string) ([]byte, error) {
	_, _ = fmt.Fprint(p.stderr, what)
	line, err := term.ReadPassword(int(p.terminal.Fd()))
	_, _ = fmt.Fprintln(p.stderr)
	return line, err
}
