// Package recovery hands out the recovery key that PID 1 keeps inside the
// encrypted volume under `recovery: later`, once: it is shown, and deleted when
// a person says that it was written down.
package recovery

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"sealroot/sealroot/durable"
	"sealroot/state/layout"
)

// File is where the key is kept until it was shown.
const File = layout.State + "/" + layout.Volume + "/" + layout.RecoveryKey

// maxKey is more than any form of a recovery key has.
const maxKey = 512

var (
	// ErrNone: no recovery key is kept.
	ErrNone = errors.New("no recovery key is kept here")
	// ErrUnsafe: the file is not the one that PID 1 made.
	ErrUnsafe = errors.New("not the file that sealroot made")
	// ErrNotTerminal: a key is not printed to a place nobody looks at unasked.
	ErrNotTerminal = errors.New("not a terminal")
	// ErrKept: the key was shown and is still kept.
	ErrKept = errors.New("the recovery key is still kept")
)

// Waiting says whether a key is kept, still to be shown, under either of its names.
func Waiting(path string) (bool, error) {
	for _, p := range []string{path, Pending(path)} {
		if _, err := os.Lstat(p); !errors.Is(err, fs.ErrNotExist) {
			return err == nil, err
		}
	}
	return false, nil
}

// Ask is how a key is handed out.
type Ask struct {
	Path string
	In   io.Reader
	Out  io.Writer // the key goes only here
	// Terminal: a person sits at In and Out.
	Terminal bool
	// Show prints the key although Out is no terminal; with Yes it is then
	// deleted, and on a terminal deleted without asking.
	Show, Yes bool
}

// Run shows the key and deletes it. Errors: ErrNone, ErrNotTerminal, ErrUnsafe,
// ErrKept when it was shown but is not to be deleted yet.
func Run(ctx context.Context, a Ask) error {
	if !a.Terminal && !a.Show {
		if waiting, err := Waiting(a.Path); err == nil && !waiting {
			return ErrNone
		}
		return fmt.Errorf("cannot show the recovery key: %w; --show prints it all the same, --show --yes also deletes it here", ErrNotTerminal)
	}
	key, err := Read(a.Path)
	if err != nil {
		return err
	}
	defer clear(key)
	if !a.Terminal {
		text := line(key)
		_, err := a.Out.Write(text)
		clear(text)
		if err != nil {
			return fmt.Errorf("cannot show the recovery key: %w: %w", err, ErrKept)
		}
		if !a.Yes {
			return nil
		}
		return destroy(a.Path)
	}
	return a.talk(ctx, key)
}

// talk shows the key to a person and asks.
func (a Ask) talk(ctx context.Context, key []byte) error {
	fmt.Fprint(a.Out, "The recovery key of this machine's encrypted state is\n\n    ")
	text := line(key)
	_, err := a.Out.Write(text)
	clear(text)
	if err != nil {
		return fmt.Errorf("cannot show the recovery key: %w: %w", err, ErrKept)
	}
	fmt.Fprint(a.Out, "\nIt opens the state when the TPM does not. Write it down and keep it away from\n"+
		"the machine. It is deleted here afterwards and cannot be shown again.\n")
	if !a.Yes {
		fmt.Fprint(a.Out, "Type yes when you have written it down: ")
		if answer, err := readLine(ctx, a.In); err != nil || answer != "yes" {
			fmt.Fprint(a.Out, "\n")
			return fmt.Errorf("nothing was deleted: %w", ErrKept)
		}
	}
	if err := destroy(a.Path); err != nil {
		return err
	}
	if !a.Yes {
		fmt.Fprint(a.Out, "\x1b[H\x1b[2J\x1b[3J") // the screen and what scrolled off it
	}
	fmt.Fprintln(a.Out, "The recovery key is deleted from this machine. It stays enrolled.")
	return nil
}

func line(key []byte) []byte { return append(bytes.Clone(key), '\n') }

// Read returns a key that is kept in the volume, the recovery key or another one; the
// caller wipes it. The file has to be root's own and nobody else's. Errors: ErrNone,
// ErrUnsafe.
func Read(path string) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, ErrNone
	}
	if errors.Is(err, unix.ELOOP) {
		return nil, fmt.Errorf("cannot use %s: a symbolic link: %w", path, ErrUnsafe)
	}
	if err != nil {
		return nil, fmt.Errorf("cannot read %s: %w", path, err)
	}
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return nil, fmt.Errorf("cannot read %s: %w", path, err)
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG || st.Mode&0o077 != 0 || int(st.Uid) != os.Geteuid() || st.Nlink != 1 || st.Size > maxKey {
		return nil, fmt.Errorf("cannot use %s: owner, mode or kind: %w", path, ErrUnsafe)
	}
	key := make([]byte, maxKey)
	n, err := io.ReadFull(f, key)
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, io.EOF) {
		clear(key)
		return nil, fmt.Errorf("cannot read %s: %w", path, err)
	}
	text := bytes.TrimRight(key[:n], "\n")
	for _, c := range text {
		// one line of printable text, or it would play with the terminal
		if c < ' ' || c > '~' {
			clear(key)
			return nil, fmt.Errorf("cannot use %s: its content: %w", path, ErrUnsafe)
		}
	}
	if len(text) == 0 {
		return nil, fmt.Errorf("cannot use %s: it is empty: %w", path, ErrUnsafe)
	}
	return text, nil
}

// destroy deletes the file for good: unlinked, and the directory synced. Its
// blocks are inside the encrypted volume.
func destroy(path string) error {
	if err := durable.Remove(path); err != nil {
		return fmt.Errorf("cannot delete the recovery key here: %w: %w", err, ErrKept)
	}
	return nil
}

// answerTime is how long a person may take: the command keeps others out meanwhile,
// such as the one that ends a trial in time.
const answerTime = 2 * time.Minute

// readLine reads at most one short line, byte by byte, so that nothing typed
// ahead is swallowed. It ends with ctx, and after answerTime; the read itself ends with the program.
func readLine(ctx context.Context, r io.Reader) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, answerTime)
	defer cancel()
	type answer struct {
		text string
		err  error
	}
	done := make(chan answer, 1)
	go func() {
		text, err := scanLine(r)
		done <- answer{text, err}
	}()
	select {
	case <-ctx.Done():
		return "", ctx.Err()
	case a := <-done:
		return a.text, a.err
	}
}

func scanLine(r io.Reader) (string, error) {
	var out []byte
	one := make([]byte, 1)
	for len(out) < 64 {
		n, err := r.Read(one)
		if n == 1 {
			if one[0] == '\n' {
				return string(bytes.TrimSpace(out)), nil
			}
			out = append(out, one[0])
		}
		if err != nil {
			return "", err
		}
	}
	return "", io.ErrShortBuffer
}
