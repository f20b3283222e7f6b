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
	asked bool
	// line is what was typed and is not read yet.
	line []byte
}

// askTwice has a passphrase that is new asked for twice, where it is typed at all.
func askTwice(stdin io.Reader) {
	if p, ok := stdin.(*prompt); ok {
		p.twice = true
	}
}

func (p *prompt) Read(b []byte) (int, error) {
	if !p.asked {
		line, err := p.typed()
		if err != nil {
			return 0, err
		}
		p.line, p.asked = line, true
	}
	if len(p.line) == 0 {
		return 0, io.EOF
	}
	n := copy(b, p.line)
	clear(p.line[:n]) // whoever reads it wipes his copy
	p.line = p.line[n:]
	return n, nil
}

func (p *prompt) typed() ([]byte, error) {
	line, err := p.ask("Passphrase: ")
	if err != nil || !p.twice {
		return line, err
	}
	again, err := p.ask("Once more: ")
	defer clear(again)
	if err == nil && !bytes.Equal(line, again) {
		err = errors.New("the two that were typed are not the same")
	}
	if err != nil {
		clear(line)
		return nil, err
	}
	return line, nil
}

func (p *prompt) ask(what string) ([]byte, error) {
	_, _ = fmt.Fprint(p.stderr, what)
	line, err := term.ReadPassword(int(p.terminal.Fd()))
	_, _ = fmt.Fprintln(p.stderr)
	return line, err
}
