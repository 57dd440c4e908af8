package config

import (
	"bytes"
	"errors"
	"fmt"
	"reflect"
	"strings"
	"testing"
)

func goodJSON(t testing.TB) []byte {
	t.Helper()
	c := goodUKI().WithDefaults()
	c, err := c.Embed(Kernel{Release: "6.1.0-40-cloud-amd64", Cmdline: "console=ttyS0"})
	if err != nil {
		t.Fatal(err)
	}
	b, err := c.Encode()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestParseReadsWhatEncodeWrote(t *testing.T) {
	text := goodJSON(t)
	c, err := Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	if c.Kernel == nil || c.Kernel.Release != "6.1.0-40-cloud-amd64" || c.Name != "kiosk" {
		t.Errorf("Parse = %+v", c)
	}
	again, err := c.Encode()
	if err != nil || !bytes.Equal(again, text) {
		t.Errorf("Encode(Parse(x)) =\n%s; want\n%s", again, text)
	}
}

// As many layers as there may be are not too long for PID 1; what would be is refused where
// the image is built.
func TestEncodeFits(t *testing.T) {
	c := goodUKI().WithDefaults()
	for i := range MaxLayers {
		l := Layer{Name: fmt.Sprintf("layer-%026d", i), Hash: strings.Repeat("0123456789abcdef", 4), Filesystem: "squashfs"}
		c.Layers = append(c.Layers, l)
		c.LayersAllowed = append(c.LayersAllowed, "added-"+l.Name[6:])
	}
	c.Trust.Layer = []string{"l.crt"}
	c, err := c.WithDefaults().Embed(Kernel{Release: "6.1.0-40-cloud-amd64"})
	if err != nil {
		t.Fatal(err)
	}
	text, err := c.Encode()
	if err != nil {
		t.Fatal(err)
	}
	if got, err := Parse(text); err != nil || len(got.Layers) != MaxLayers {
		t.Errorf("Parse of %d bytes with %d layers = %v", len(text), MaxLayers, err)
	}
	c.Name = strings.Repeat("x", MaxSize)
	if text, err := c.Encode(); text != nil || !errors.Is(err, ErrInvalid) {
		t.Errorf("Encode of what Parse refuses = %d bytes, %v; want %v", len(text), err, ErrInvalid)
	}
}

func TestParseFailsClosed(t *testing.T) {
	good := string(goodJSON(t))
	for _, test := range []struct{ name, old, new, path string }{
		{"unknown_key", `"name"`, `"colour": 1, "name"`, "colour"},
		{"unknown_nested_key", `"policy"`, `"x": {}, "policy"`, "state.tpm2.x"},
		{"key_twice", `"build"`, `"build": "development", "build"`, "build"},
		{"nested_key_twice", `"tries"`, `"tries": 3, "tries"`, "boot.tries"},
		{"other_case", `"build"`, `"Build"`, "Build"},
		{"other_case_beside_ours", `"build"`, `"BUILD": "development", "build"`, "BUILD"},
		{"null", `"production"`, `null`, "build"},
		{"object_for_a_word", `"production"`, `{}`, "build"},
		{"word_for_a_list", `"unlock": [`, `"unlock": "tpm2", "x": [`, "state.unlock"},
		{"word_for_an_object", `"binds": {}`, `"binds": ""`, "binds"},
		{"number_for_a_word", `"production"`, `1`, ""},
		{"fraction", `"tries": 3`, `"tries": 3.5`, ""},
		{"huge_number", `"tries": 3`, `"tries": 1e99`, ""},
		{"bare_duration", `"10m"`, `600`, ""},
		{"invalid_value", `"production"`, `"release"`, "build"},
		{"certificate_path", `"image.crt"`, `"keys/image.crt"`, "trust.root[0]"},
		{"kernel_release_path", `"6.1.0-40-cloud-amd64"`, `"../x"`, "kernel.release"},
		{"kernel_release_dots", `"6.1.0-40-cloud-amd64"`, `".."`, "kernel.release"},
	} {
		t.Run(test.name, func(t *testing.T) {
			if !strings.Contains(good, test.old) {
				t.Fatalf("%s is not in\n%s", test.old, good)
			}
			c, err := Parse([]byte(strings.Replace(good, test.old, test.new, 1)))
			problems := Problems(err)
			if c != nil || !errors.Is(err, ErrInvalid) || len(problems) == 0 || problems[0].Path != test.path {
				t.Errorf("Parse = %v, %v; want a problem at %q", c, err, test.path)
			}
		})
	}
	for name, text := range map[string]string{
		"empty": "", "cut": good[:len(good)-3], "trailing": good + "{}", "list": "[]", "null": "null", "number": "1",
		"too_long": good + strings.Repeat(" ", MaxSize), "deep": strings.Repeat(`{"boot":`, 20000), "brackets": strings.Repeat("[", 20000),
	} {
		t.Run(name, func(t *testing.T) {
			if c, err := Parse([]byte(text)); c != nil || !errors.Is(err, ErrInvalid) {
				t.Errorf("Parse = %v, %v; want %v", c, err, ErrInvalid)
			}
		})
	}
}

func TestParseTellsTheLine(t *testing.T) {
	_, err := Parse([]byte("{\n\"name\": \"x\",\n\"boot\": {\n\"tires\": 3}}"))
	if p := Problems(err); len(p) != 1 || p[0].Line != 4 || p[0].Path != "boot.tires" {
		t.Errorf("Parse = %v; want a problem on line 4", err)
	}
}

func TestEmbed(t *testing.T) {
	c := goodUKI().WithDefaults()
	c.Trust.Root = []string{"/keys/one/image.crt", "two.crt"}
	c.State.TPM2.PublicKey, c.State.TPM2.PreviousKeys = "keys/pcr.pub", []string{"old/pcr-previous.pub"}
	got, err := c.Embed(Kernel{Release: "6.12.1"})
	if err != nil || !reflect.DeepEqual(got.Trust.Root, []string{"image.crt", "two.crt"}) || got.State.TPM2.PublicKey != "pcr.pub" || !reflect.DeepEqual(got.State.TPM2.PreviousKeys, []string{"pcr-previous.pub"}) {
		t.Errorf("Embed = %+v, %v; want base names", got, err)
	}
	if c.Trust.Root[0] != "/keys/one/image.crt" || c.Kernel != nil {
		t.Error("Embed changed its receiver")
	}
	c.Trust.Root = []string{"one/image.crt", "two/image.crt"}
	if got, err := c.Embed(Kernel{Release: "6.12.1"}); !errors.Is(err, ErrInvalid) || got.Name != "" {
		t.Errorf("Embed of two files with one name = %+v, %v; want %v", got, err, ErrInvalid)
	}
	c.Trust.Root, c.State.TPM2.PreviousKeys = []string{"image.crt"}, []string{"one/pcr.pub", "two/pcr.pub"}
	if _, err := c.Embed(Kernel{Release: "6.12.1"}); !errors.Is(err, ErrInvalid) {
		t.Errorf("Embed of two policy keys with one name = %v; want %v", err, ErrInvalid)
	}
}

func FuzzParse(f *testing.F) {
	f.Add(goodJSON(f))
	f.Add([]byte(`{"name":"a","name":"b"}`))
	f.Add([]byte(`{"state":{"unlock":["tpm2",null]}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := Parse(data)
		if (err == nil) != (c != nil) {
			t.Fatalf("Parse = %v, %v", c, err)
		}
		if err != nil {
			if len(Problems(err)) == 0 {
				t.Fatalf("no problem in %v", err)
			}
			return
		}
		b, err := c.Encode()
		if err != nil {
			t.Fatal(err)
		}
		again, err := Parse(b)
		if err != nil {
			t.Fatalf("Parse(Encode) = %v; want %+v", err, c)
		}
		if b2, err := again.Encode(); err != nil || !bytes.Equal(b, b2) {
			t.Fatalf("Encode(Parse(x)) = %s, %v; want %s", b2, err, b)
		}
	})
}
