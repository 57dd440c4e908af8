package osrelease

import (
	"errors"
	"os"
	"strings"
	"testing"
)

func TestParse(t *testing.T) {
	for _, tt := range []struct {
		name, in string
		want     Release
		err      error
	}{
		{"debian_like", "PRETTY_NAME=\"Debian GNU/Linux 12\"\nID=debian\nVERSION_ID=\"12\"\n# x\n\nIMAGE_ID=kiosk\nIMAGE_VERSION='1.2'\nSEALROOT_SECURITY_VERSION=3\n",
			Release{ImageID: "kiosk", ImageVersion: "1.2", PrettyName: "Debian GNU/Linux 12", ID: "debian", VersionID: "12", SecurityVersion: 3}, nil},
		{"last_one_counts", "IMAGE_ID=a\nIMAGE_ID=b", Release{ImageID: "b"}, nil},
		{"escapes", `IMAGE_ID="a\"b\\c"`, Release{ImageID: `a"b\c`}, nil},
		{"empty", "", Release{}, nil},
		{"no_equals_sign", "IMAGE_ID", Release{}, ErrFormat},
		{"open_quote", `IMAGE_ID="a`, Release{}, ErrFormat},
		{"highest_security_version", "SEALROOT_SECURITY_VERSION=2147483647", Release{SecurityVersion: 1<<31 - 1}, nil},
		{"security_version_too_high", "SEALROOT_SECURITY_VERSION=2147483648", Release{}, ErrFormat},
		{"negative_security_version", "SEALROOT_SECURITY_VERSION=-1", Release{}, ErrFormat},
		{"nul", "IMAGE_ID=a\x00", Release{}, ErrFormat},
		{"too_large", strings.Repeat("#", MaxSize+1), Release{}, ErrFormat},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := Parse([]byte(tt.in))
			if got != tt.want || !errors.Is(err, tt.err) {
				t.Errorf("Parse() = %+v, %v; want %+v, %v", got, err, tt.want, tt.err)
			}
		})
	}
}

func TestParseOfThisMachine(t *testing.T) {
	b, err := os.ReadFile("/etc/os-release")
	if err != nil {
		t.Fatal(err)
	}
	if r, err := Parse(b); err != nil || r.PrettyName == "" {
		t.Errorf("Parse(/etc/os-release) = %+v, %v; want a pretty name", r, err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte("IMAGE_ID=\"kiosk\"\nSEALROOT_SECURITY_VERSION=3\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		if r, err := Parse(b); err != nil && r != (Release{}) {
			t.Errorf("error %v with a value %+v", err, r)
		}
	})
}
