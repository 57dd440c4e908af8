package qr

import (
	"bytes"
	"errors"
	"image"
	"image/color"
	"image/png"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// screen is what a terminal shows of a code, each character 8 by 16 pixels. Drawn
// characters are white, and so is what is drawn of each.
func screen(t *testing.T, c *Code) *image.Gray {
	t.Helper()
	img := image.NewGray(image.Rect(0, 0, 8*(Columns+8), 16*(Rows+4))) // a dark terminal
	for n := range Rows {
		text := string(c.AppendRow(nil, n))
		text, starts := strings.CutPrefix(text, "\x1b[0;1;37;40m")
		text, ends := strings.CutSuffix(text, "\x1b[0m\r\n")
		if !starts || !ends || len([]rune(text)) != Columns {
			t.Fatalf("row %d is %q, want %d characters", n, text, Columns)
		}
		for x, r := range []rune(text) {
			from, to := 0, 16
			switch r {
			case '▀':
				to = 8
			case '▄':
				from = 8
			case ' ':
				to = 0
			case '█':
			default:
				t.Fatalf("row %d has %q", n, r)
			}
			for dy := from; dy < to; dy++ {
				for dx := range 8 {
					img.SetGray(8*(x+4)+dx, 16*(n+2)+dy, color.Gray{Y: 170})
				}
			}
		}
	}
	return img
}

// read has zbarimg read what is on the screen.
func read(t *testing.T, img image.Image) (string, error) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "screen.png")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(png.Encode(f, img), f.Close()); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("zbarimg", "--quiet", "--raw", "-Sdisable", "-Sqrcode.enable", path).Output()
	return strings.TrimSuffix(string(out), "\n"), err
}

// What a reader of somebody else's takes from the screen is the text.
func TestZbarReadsIt(t *testing.T) {
	for _, text := range []string{
		"bhniktnl-becjtikj-khjecvfh-jtghielh-fjihnnug-evijrkun-vclfitng-hchghtke",
		"x", "", strings.Repeat("cbdefghi", 9) + "jklnrt",
	} {
		var c Code
		if err := c.Encode([]byte(text)); err != nil {
			t.Fatal(err)
		}
		got, err := read(t, screen(t, &c))
		if text == "" {
			continue // a reader may say nothing of it
		}
		if err != nil || got != text {
			t.Errorf("zbarimg reads %q, %v, want %q", got, err, text)
		}
		// With a corner of the data damaged the error correction is in use, and right.
		for i := range 3 {
			c.dark[Size-2-i][Size-2] = !c.dark[Size-2-i][Size-2]
		}
		if got, err := read(t, screen(t, &c)); err != nil || got != text {
			t.Errorf("of a damaged code zbarimg reads %q, %v, want %q", got, err, text)
		}
	}
	// Control: a code that says nothing is not read as one.
	var c Code
	c.patterns()
	if got, err := read(t, screen(t, &c)); err == nil {
		t.Errorf("control: zbarimg reads %q", got)
	}
}

func TestEncodeRefusesAndWipes(t *testing.T) {
	var c Code
	if err := c.Encode(make([]byte, MaxBytes+1)); !errors.Is(err, ErrTooLong) || c != (Code{}) {
		t.Errorf("Encode() of too much = %v, want %v and nothing", err, ErrTooLong)
	}
	if err := c.Encode(bytes.Repeat([]byte("x"), MaxBytes)); err != nil {
		t.Error(err)
	}
	if c.Wipe(); c != (Code{}) {
		t.Error("the code is still there")
	}
}
