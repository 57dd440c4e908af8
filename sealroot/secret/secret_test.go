package secret

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func TestFromFile(t *testing.T) {
	for _, c := range []struct {
		name, text, want string
		ok               bool
	}{
		{"line", "a secret\n", "a secret", true},
		{"no_newline", "a secret", "a secret", true},
		{"inner_newlines_count", "a\nb\n\n", "a\nb\n", true},
		{"blanks_count", " a ", " a ", true},
		{"longest", strings.Repeat("x", Max) + "\n", strings.Repeat("x", Max), true},
		{"empty", "", "", false},
		{"only_a_newline", "\n", "", false},
		{"too_long", strings.Repeat("x", Max+1), "", false},
		{"endless", strings.Repeat("x", 1<<20), "", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "f")
			if err := os.WriteFile(path, []byte(c.text), 0o600); err != nil {
				t.Fatal(err)
			}
			for _, from := range []string{path, "-"} {
				got, err := FromFile(from, strings.NewReader(c.text))
				if (err == nil) != c.ok || string(got) != c.want || err != nil && !errors.Is(err, ErrForm) {
					t.Errorf("%s: got %q, %v", from, got, err)
				}
			}
		})
	}
}

// pseudoTerminal gives both ends of one.
func pseudoTerminal(t *testing.T) (person, tty *os.File) {
	t.Helper()
	person, err := os.OpenFile("/dev/ptmx", os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { person.Close() })
	if err := unix.IoctlSetPointerInt(int(person.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(int(person.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	tty, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { tty.Close() })
	return person, tty
}

// TestAsk: what is typed is not shown, and echo is on again afterwards, also when
// the program is told to end.
func TestAsk(t *testing.T) {
	person, tty := pseudoTerminal(t)
	echo := func() bool {
		s, err := unix.IoctlGetTermios(int(tty.Fd()), unix.TCGETS)
		return err == nil && s.Lflag&unix.ECHO != 0
	}
	saw := func() string {
		b := make([]byte, 4096)
		n, _ := person.Read(b)
		return string(b[:n])
	}
	if !echo() {
		t.Fatal("control: a new terminal has no echo")
	}
	go func() {
		for echo() {
			time.Sleep(time.Millisecond)
		}
		person.WriteString("hush hush\n")
	}()
	got, err := Ask(t.Context(), tty, "key: ")
	if err != nil || string(got) != "hush hush" {
		t.Errorf("got %q, %v", got, err)
	}
	if text := saw(); strings.Contains(text, "hush") || !strings.Contains(text, "key: ") {
		t.Errorf("the terminal shows %q", text)
	}
	if !echo() {
		t.Error("the echo stays off")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := Ask(ctx, tty, "key: "); !errors.Is(err, context.DeadlineExceeded) || !echo() {
		t.Errorf("ended: %v, echo %v", err, echo())
	}
	if _, err := FromFile("-", tty); !errors.Is(err, ErrForm) {
		t.Errorf("a secret from a terminal with echo: %v", err)
	}
	null, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer null.Close()
	if _, err := Ask(t.Context(), null, ""); !errors.Is(err, ErrTerminal) {
		t.Errorf("no terminal: %v", err)
	}
}
