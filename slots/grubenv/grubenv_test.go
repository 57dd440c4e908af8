package grubenv

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"sealroot/slots/slotstest"
)

// block pads text to an environment block.
func block(text string) []byte {
	return []byte(text + strings.Repeat("#", max(0, Size-len(text))))
}

func TestParse(t *testing.T) {
	tests := []struct {
		name, text string
		want       map[string]string
		err        error
	}{
		{name: "empty", text: header, want: map[string]string{}},
		{name: "warning_line", text: header + "# WARNING: do not edit\na=1\n", want: map[string]string{"a": "1"}},
		{name: "last_one_counts", text: header + "a=1\nb=2\na=3\n", want: map[string]string{"a": "3", "b": "2"}},
		{name: "escapes", text: header + "a=x\\\\y\\\nz\n", want: map[string]string{"a": "x\\y\nz"}},
		{name: "value_with_equals", text: header + "a=b=c\n", want: map[string]string{"a": "b=c"}},
		{name: "line_without_equals_is_dropped", text: header + "rubbish\n\na=1\n", want: map[string]string{"a": "1"}},
		{name: "no_header", text: "a=1\n", err: ErrFormat},
		{name: "crlf", text: "# GRUB Environment Block\r\na=1\r\n", err: ErrFormat},
		{name: "oversize", text: header + strings.Repeat("#", Size), err: ErrFormat},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			e, err := Parse(block(tt.text))
			if !errors.Is(err, tt.err) || (err != nil) != (e == nil) {
				t.Fatalf("got %v, %v, want error %v", e, err, tt.err)
			}
			for name, want := range tt.want {
				if got, ok := e.Get(name); !ok || got != want {
					t.Errorf("%s: got %q, %v, want %q", name, got, ok, want)
				}
			}
			if e != nil && len(e.vars) != len(tt.want) {
				t.Errorf("got %d variables, want %d", len(e.vars), len(tt.want))
			}
		})
	}
	if _, err := Parse(nil); !errors.Is(err, ErrFormat) {
		t.Errorf("0 bytes: got %v, want ErrFormat", err)
	}
}

func TestEncodeFull(t *testing.T) {
	e := New()
	if err := e.Set("a", strings.Repeat("x", Size)); err != nil {
		t.Fatal(err)
	}
	if b, err := e.Encode(); !errors.Is(err, ErrFull) || b != nil {
		t.Errorf("got %d bytes, %v, want ErrFull", len(b), err)
	}
	for _, name := range []string{"", "#a", "a=b", "a\nb"} {
		if err := e.Set(name, "1"); !errors.Is(err, ErrVariable) {
			t.Errorf("name %q: got %v, want ErrVariable", name, err)
		}
	}
}

// editenv runs grub-editenv, the judge of this package.
func editenv(t *testing.T, args ...string) string {
	t.Helper()
	out, err := exec.Command("grub-editenv", args...).CombinedOutput()
	if err != nil {
		t.Fatalf("grub-editenv %v: %v\n%s(Debian package grub-common)", args, err, out)
	}
	return string(out)
}

func TestSlotsGrubEditenvAgrees(t *testing.T) {
	path := filepath.Join(t.TempDir(), "grubenv")
	editenv(t, path, "create")
	editenv(t, path, "set", "kept=a\\b c", "other=1")
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	h := Hint{f}
	if err := h.Arm("b"); err != nil {
		t.Fatal(err)
	}
	if err := h.SetDefault("a"); err != nil {
		t.Fatal(err)
	}
	if got, want := editenv(t, path, "list"), "kept=a\\b c\nother=1\nsealroot_once=b\nsealroot_default=a\n"; got != want {
		t.Errorf("grub-editenv list: got %q, want %q", got, want)
	}
	editenv(t, path, "set", "sealroot_once=a")
	if got, err := h.Get(); err != nil || got != "a" {
		t.Errorf("what grub-editenv set: got %q, %v, want a", got, err)
	}
	if err := h.Clear(); err != nil {
		t.Fatal(err)
	}
	if got := editenv(t, path, "list"); strings.Contains(got, "once") || !strings.Contains(got, "kept=a\\b c") {
		t.Errorf("after Clear: got %q", got)
	}
	ours, err := New().Encode()
	if err != nil {
		t.Fatal(err)
	}
	editenv(t, path, "create")
	if theirs, err := os.ReadFile(path); err != nil || !bytes.Equal(ours, theirs) {
		t.Errorf("an empty block differs from grub-editenv's (%v)", err)
	}
}

func TestHint(t *testing.T) {
	d := slotstest.NewDisk(block(header + "x=1\n"))
	h := Hint{d}
	if got, err := h.Get(); err != nil || got != "" {
		t.Errorf("got %q, %v, want no one-shot", got, err)
	}
	if err := h.Clear(); err != nil || d.Ops() != 0 {
		t.Errorf("clearing nothing: %v, %d operations, want none", err, d.Ops())
	}
	damaged := Hint{slotstest.NewDisk(make([]byte, Size))}
	if got, err := damaged.Get(); !errors.Is(err, ErrFormat) || got != "" {
		t.Errorf("damaged: got %q, %v, want ErrFormat", got, err)
	}
	if err := damaged.Arm("b"); err != nil {
		t.Fatal(err)
	}
	if got, err := damaged.Get(); err != nil || got != "b" {
		t.Errorf("after arming a damaged block: got %q, %v, want b", got, err)
	}
}

// The two sectors of a block can be torn. Whatever is left is the old value,
// the new one, or a block that GRUB refuses, and then it boots the default.
func TestHintPowerCut(t *testing.T) {
	for cut := range 3 {
		d := slotstest.NewDisk(block(header + "sealroot_default=a\n"))
		d.CutAfter(cut)
		err := Hint{d}.Arm("b")
		if (err == nil) != (cut == 2) {
			t.Fatalf("cut after %d: got %v", cut, err)
		}
		for _, b := range d.Outcomes(0, 0) {
			h := Hint{slotstest.NewDisk(b)}
			got, err := h.Get()
			if err != nil || got != "" && got != "b" {
				t.Errorf("cut after %d: got %q, %v", cut, got, err)
			}
			if cut == 2 && got != "b" {
				t.Errorf("armed, but a synced value was lost: got %q", got)
			}
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte{})
	f.Add(block(header + warning + "\na=1\nb=\\\\\n"))
	f.Add(block(header + "a"))
	f.Fuzz(func(t *testing.T, b []byte) {
		e, err := Parse(b)
		if err != nil {
			if e != nil {
				t.Fatal("error with a value")
			}
			return
		}
		again, err := e.Encode()
		if err != nil {
			t.Fatalf("what was read does not fit again: %v", err)
		}
		second, err := Parse(again)
		if err != nil {
			t.Fatal(err)
		}
		for _, v := range e.vars {
			if got, _ := second.Get(v.name); got != v.value {
				t.Fatalf("%q: got %q, want %q", v.name, got, v.value)
			}
		}
	})
}
