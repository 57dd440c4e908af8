package console

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// pty gives a fake root whose only console is a pseudo terminal, and the
// person's end of it.
func pty(t *testing.T) (root string, person *os.File) {
	t.Helper()
	person, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
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
	root = t.TempDir()
	for _, dir := range []string{"sys/class/tty/console", "dev"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	os.WriteFile(filepath.Join(root, "sys/class/tty/console/active"), []byte("ttyS0\n"), 0o644)
	if err := os.Symlink("/dev/pts/"+strconv.Itoa(n), filepath.Join(root, "dev/ttyS0")); err != nil {
		t.Fatal(err)
	}
	return root, person
}

// Keys pressed while nobody asks are for nobody.
func TestFlushDropsWhatWasTypedAhead(t *testing.T) {
	root, person := pty(t)
	c, err := Open(root)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	const ahead = "ahead\nand more\n"
	if _, err := person.WriteString(ahead); err != nil {
		t.Fatal(err)
	}
	// The terminal hands it on in its own time.
	for waiting := 0; waiting < len(ahead); time.Sleep(time.Millisecond) {
		if waiting, err = unread(c.ttys[0]); err != nil {
			t.Fatal(err)
		}
	}
	c.Flush()
	if n, err := unread(c.ttys[0]); n != 0 || err != nil {
		t.Errorf("after Flush() %d bytes wait, error %v", n, err)
	}
	go func() {
		time.Sleep(50 * time.Millisecond)
		person.WriteString("asked\n")
	}()
	if got, err := c.ReadLine(context.Background(), time.Minute); err != nil || string(got) != "asked" {
		t.Errorf("ReadLine() = %q, %v; want asked", got, err)
	}
}

// unread is how many bytes wait to be read from a terminal.
func unread(tty *os.File) (n int, err error) {
	raw, err := tty.SyscallConn()
	if err != nil {
		return 0, err
	}
	controlErr := raw.Control(func(fd uintptr) { n, err = unix.IoctlGetInt(int(fd), unix.TIOCINQ) })
	return n, errors.Join(err, controlErr)
}

func TestReadLineTakesWhatWasTypedWithoutEcho(t *testing.T) {
	root, person := pty(t)
	c, err := Open(root)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	go person.WriteString("wrong\x15se\x7fecret\x03\n")
	got, err := c.ReadLine(context.Background(), time.Minute)
	if err != nil || string(got) != "secret" {
		t.Fatalf("ReadLine() = %q, %v; want secret", got, err)
	}
	c.Print("done")
	buf := make([]byte, 100)
	n, _ := person.Read(buf)
	if string(buf[:n]) != "done" {
		t.Errorf("the person saw %q, want only what Print wrote", buf[:n])
	}
}

func TestReadLineEndsWhenNobodyTypes(t *testing.T) {
	root, _ := pty(t)
	c, err := Open(root)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.ReadLine(context.Background(), 30*time.Millisecond); !errors.Is(err, ErrIdle) {
		t.Errorf("ReadLine() error = %v, want ErrIdle", err)
	}
	if err := c.WaitKey(context.Background(), 30*time.Millisecond); !errors.Is(err, ErrIdle) {
		t.Errorf("WaitKey() error = %v, want ErrIdle", err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := c.ReadLine(ctx, time.Hour); !errors.Is(err, context.Canceled) {
		t.Errorf("ReadLine() after cancel = %v, want context.Canceled", err)
	}
}

func TestLongLineIsCutNotGrown(t *testing.T) {
	line := make([]byte, 0, 4)
	for _, b := range []byte("abcdefgh") {
		line, _ = edit(line, b)
	}
	if string(line) != "abcd" {
		t.Errorf("line = %q, want the first 4 bytes", line)
	}
}

func TestOpenWithoutConsole(t *testing.T) {
	root := t.TempDir()
	os.MkdirAll(filepath.Join(root, "sys/class/tty/console"), 0o755)
	os.WriteFile(filepath.Join(root, "sys/class/tty/console/active"), nil, 0o644)
	if _, err := Open(root); !errors.Is(err, ErrNone) {
		t.Errorf("Open() error = %v, want ErrNone", err)
	}
}

// What needs room is shown where there is some, and where nobody knows.
func TestPrintSecretIf(t *testing.T) {
	root, person := pty(t)
	c, err := Open(root)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for _, tt := range []struct {
		columns, rows uint16
		shown         bool
	}{{0, 0, true}, {80, 25, true}, {80, 24, false}, {40, 25, false}} {
		if err := unix.IoctlSetWinsize(int(person.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Col: tt.columns, Row: tt.rows}); err != nil {
			t.Fatal(err)
		}
		c.PrintSecretIf(41, 25, []byte("code"))
		c.PrintSecret([]byte("."))
		got := make([]byte, 16)
		n, err := person.Read(got)
		for err == nil && got[n-1] != '.' {
			var more int
			more, err = person.Read(got[n:])
			n += more
		}
		if shown := string(got[:n]) == "code."; err != nil || shown != tt.shown {
			t.Errorf("%d by %d: %q, %v, want it shown: %v", tt.columns, tt.rows, got[:n], err, tt.shown)
		}
	}
}
