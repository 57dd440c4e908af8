// Package secret takes recovery keys and passphrases from a person or a file. What
// it returns is the caller's, who wipes it.
package secret

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// Max is the longest secret, in bytes: what cryptsetup takes from a terminal.
const Max = 512

var (
	// ErrTerminal: a secret is asked for where no person sits.
	ErrTerminal = errors.New("there is no terminal to ask at")
	// ErrForm: what was given cannot be a secret.
	ErrForm = errors.New("not a usable secret")
)

// FromFile reads a secret from a file, or with "-" from stdin, up to its end; one
// newline behind it does not count. Errors: ErrForm.
func FromFile(path string, stdin io.Reader) ([]byte, error) {
	from := stdin
	if f, ok := stdin.(*os.File); ok && path == "-" {
		if _, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS); err == nil {
			return nil, fmt.Errorf("standard input is a terminal, which would show what is typed; without the option it is asked for: %w", ErrForm)
		}
	}
	if path != "-" {
		f, err := os.Open(path)
		if err != nil {
			return nil, fmt.Errorf("cannot read the secret: %w", err)
		}
		defer f.Close()
		from = f
	}
	b := make([]byte, Max+2)
	n, err := io.ReadFull(from, b)
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		clear(b)
		return nil, fmt.Errorf("cannot read the secret from %s: %w", name(path), err)
	}
	text := bytes.TrimSuffix(b[:n], []byte("\n"))
	if len(text) == 0 || len(text) > Max {
		clear(b)
		return nil, fmt.Errorf("%s has none, or more than %d bytes: %w", name(path), Max, ErrForm)
	}
	return text, nil
}

func name(path string) string {
	if path == "-" {
		return "standard input"
	}
	return path
}

// askTime is how long a person may take: an open prompt is no state to leave a
// machine in.
const askTime = 2 * time.Minute

// Ask asks the person at the terminal tty for one line that is not shown, for two
// minutes at most. Errors: ErrForm, and that of ctx.
func Ask(ctx context.Context, tty *os.File, prompt string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, askTime)
	defer cancel()
	fd := int(tty.Fd())
	old, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrTerminal, err)
	}
	silent := *old
	silent.Lflag &^= unix.ECHO | unix.ECHONL
	silent.Lflag |= unix.ICANON
	// What was typed ahead was shown.
	if err := unix.IoctlSetTermios(fd, unix.TCSETSF, &silent); err != nil {
		return nil, fmt.Errorf("cannot turn the terminal's echo off: %w", err)
	}
	defer unix.IoctlSetTermios(fd, unix.TCSETSF, old)
	fmt.Fprint(tty, prompt)
	defer fmt.Fprintln(tty)
	type answer struct {
		text []byte
		err  error
	}
	done := make(chan answer, 1)
	go func() { // ends with the line, or with the program
		text, err := readLine(tty)
		done <- answer{text, err}
	}()
	select {
	case <-ctx.Done():
		return nil, fmt.Errorf("nothing was typed: %w", ctx.Err())
	case a := <-done:
		return a.text, a.err
	}
}

func readLine(r io.Reader) ([]byte, error) {
	line := make([]byte, 0, Max)
	var one [1]byte
	defer clear(one[:])
	for {
		n, err := r.Read(one[:])
		switch {
		case n == 1 && one[0] == '\n':
			if len(line) == 0 {
				return nil, fmt.Errorf("nothing was typed: %w", ErrForm)
			}
			return line, nil
		case n == 1 && len(line) == Max:
			clear(line)
			return nil, fmt.Errorf("more than %d bytes were typed: %w", Max, ErrForm)
		case n == 1:
			line = append(line, one[0])
		}
		if err != nil {
			clear(line)
			return nil, fmt.Errorf("cannot read from the terminal: %w", err)
		}
	}
}
