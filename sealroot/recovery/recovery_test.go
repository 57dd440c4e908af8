package recovery

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

const sample = "cbdefghi-jklnrtuv-cbdefghi-jklnrtuv-cbdefghi-jklnrtuv-cbdefghi-jklnrtuv"

func keep(t *testing.T, content string, mode os.FileMode) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "recovery.key")
	if err := os.WriteFile(path, []byte(content), mode); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestRun(t *testing.T) {
	for _, c := range []struct {
		name    string
		ask     Ask
		typed   string
		want    error
		shown   bool
		deleted bool
	}{
		{"person_says_yes", Ask{Terminal: true}, "yes\n", nil, true, true},
		{"person_says_no", Ask{Terminal: true}, "no\n", ErrKept, true, false},
		{"person_says_y", Ask{Terminal: true}, "y\n", ErrKept, true, false},
		{"person_goes_away", Ask{Terminal: true}, "", ErrKept, true, false},
		{"person_types_for_ever", Ask{Terminal: true}, strings.Repeat("yes", 100), ErrKept, true, false},
		{"terminal_with_yes", Ask{Terminal: true, Yes: true}, "", nil, true, true},
		{"pipe", Ask{}, "yes\n", ErrNotTerminal, false, false},
		{"pipe_with_yes", Ask{Yes: true}, "yes\n", ErrNotTerminal, false, false},
		{"pipe_with_show", Ask{Show: true}, "yes\n", nil, true, false},
		{"pipe_with_show_and_yes", Ask{Show: true, Yes: true}, "", nil, true, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			var out bytes.Buffer
			c.ask.Path, c.ask.In, c.ask.Out = keep(t, sample+"\n", 0o600), strings.NewReader(c.typed), &out
			err := Run(context.Background(), c.ask)
			if !errors.Is(err, c.want) {
				t.Errorf("got error %v, want %v", err, c.want)
			}
			if err != nil && strings.Contains(err.Error(), sample) {
				t.Errorf("the error holds the key: %v", err)
			}
			if got := strings.Contains(out.String(), sample); got != c.shown {
				t.Errorf("shown: got %v, want %v", got, c.shown)
			}
			waiting, err := Waiting(c.ask.Path)
			if err != nil || waiting == c.deleted {
				t.Errorf("Waiting() = %v, %v; want %v, nil", waiting, err, !c.deleted)
			}
			if c.ask.Terminal {
				return
			}
			if got := out.String(); c.shown && got != sample+"\n" {
				t.Errorf("a program got %q, want the key and a newline only", got)
			}
		})
	}
}

// failingWriter is a terminal that is gone.
type failingWriter struct{}

func (failingWriter) Write([]byte) (int, error) { return 0, io.ErrClosedPipe }

func TestKeyThatWasNotShownIsKept(t *testing.T) {
	for _, terminal := range []bool{true, false} {
		path := keep(t, sample, 0o600)
		err := Run(context.Background(), Ask{Path: path, In: strings.NewReader(""), Out: failingWriter{}, Terminal: terminal, Show: true, Yes: true})
		if !errors.Is(err, ErrKept) {
			t.Errorf("terminal %v: got error %v, want %v", terminal, err, ErrKept)
		}
		if waiting, err := Waiting(path); !waiting || err != nil {
			t.Errorf("terminal %v: Waiting() = %v, %v; want true, nil", terminal, waiting, err)
		}
	}
}

func TestInterruptKeepsTheKey(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	r, w := io.Pipe() // nobody types
	defer w.Close()
	path := keep(t, sample, 0o600)
	if err := Run(ctx, Ask{Path: path, In: r, Out: io.Discard, Terminal: true}); !errors.Is(err, ErrKept) {
		t.Errorf("got error %v, want %v", err, ErrKept)
	}
	if waiting, err := Waiting(path); !waiting || err != nil {
		t.Errorf("Waiting() = %v, %v; want true, nil", waiting, err)
	}
}

// TestNobodyAnswers: the prompt ends by itself, and the key stays.
func TestNobodyAnswers(t *testing.T) {
	path := keep(t, sample, 0o600)
	synctest.Test(t, func(t *testing.T) {
		r, w := io.Pipe()
		defer w.Close()
		begin := time.Now()
		err := Run(t.Context(), Ask{Path: path, In: r, Out: io.Discard, Terminal: true})
		if took := time.Since(begin); !errors.Is(err, ErrKept) || took != 2*time.Minute {
			t.Errorf("after %v: %v", took, err)
		}
	})
	if waiting, err := Waiting(path); !waiting || err != nil {
		t.Errorf("Waiting() = %v, %v; want true, nil", waiting, err)
	}
}

func TestUnsafeFilesAreRefused(t *testing.T) {
	link := filepath.Join(t.TempDir(), "link")
	if err := os.Symlink(keep(t, sample, 0o600), link); err != nil {
		t.Fatal(err)
	}
	hard := keep(t, sample, 0o600)
	if err := os.Link(hard, hard+"2"); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ name, path string }{
		{"readable_by_others", keep(t, sample, 0o644)},
		{"symbolic_link", link},
		{"second_name", hard},
		{"directory", t.TempDir()},
		{"escape_sequence", keep(t, "abc\x1b[2J", 0o600)},
		{"two_lines", keep(t, "abc\ndef\n", 0o600)},
		{"too_long", keep(t, strings.Repeat("c", maxKey+1), 0o600)},
		{"empty", keep(t, "\n", 0o600)},
	} {
		t.Run(c.name, func(t *testing.T) {
			var out bytes.Buffer
			err := Run(context.Background(), Ask{Path: c.path, In: strings.NewReader("yes\n"), Out: &out, Terminal: true})
			if !errors.Is(err, ErrUnsafe) {
				t.Errorf("got error %v, want %v", err, ErrUnsafe)
			}
			if out.Len() != 0 {
				t.Errorf("printed %q, want nothing", out.String())
			}
			if _, err := os.Lstat(c.path); err != nil {
				t.Errorf("the file is gone: %v", err)
			}
		})
	}
}

func TestNoKey(t *testing.T) {
	for _, terminal := range []bool{true, false} {
		a := Ask{Path: filepath.Join(t.TempDir(), "none"), In: strings.NewReader(""), Out: io.Discard, Terminal: terminal}
		if err := Run(context.Background(), a); !errors.Is(err, ErrNone) {
			t.Errorf("terminal %v: got error %v, want %v", terminal, err, ErrNone)
		}
	}
}
