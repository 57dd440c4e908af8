package kmod

import (
	"os/exec"
	"strings"
	"testing"
	"time"
)

// The shell's case is fnmatch(3), which is what kmod matches aliases by.
func TestMatchAgreesWithTheShell(t *testing.T) {
	patterns := []string{
		"", "*", "?", "a", "a*", "*a", "*a*", "a?c", "a*c", "**", "a**c", "*?*", "[ab]", "[a-c]x", "[!a]", "[!a-c]*",
		"[]]", "[]a]", "[!]a]", "[a-]", "[-a]", "\\*", "a\\?c", "*[0-9]*", "[", "[a", "a[", "*abc*abd*", "a/*",
		"pci:v00001AF4d*sv*sd*bc*sc*i*", "virtio:d00000002v*", "pci:v*d*sv*sd*bc01sc06i01*",
		"usb:v*p*d*dc*dsc*dp*ic08isc0[26]ip50in*", "cpu:type:x86,ven*fam*mod*:feature:*0099*",
	}
	aliases := []string{
		"", "a", "b", "c", "d", "x", "]", "-", "[", "[a", "a[", "*", "abc", "aXc", "a?c", "ac", "axxc", "bx", "cx", "dx", "a/b/c",
		"xabcxabdx", "abcabcabd", "xabdxabc", "a1", "é",
		"pci:v00001AF4d00001001sv00001AF4sd00000002bc01sc00i00", "pci:v00008086d00002922sv00001AF4sd00001100bc01sc06i01",
		"virtio:d00000002v00001AF4", "virtio:d00000004v00001AF4", "usb:v0951p1666d0110dc00dsc00dp00ic08isc06ip50in00",
		"cpu:type:x86,ven0000fam0006mod00CF:feature:,0000,0099,00C0",
	}
	matches := 0
	for _, p := range patterns {
		// One shell for each pattern; a line for each alias that fits.
		cmd := exec.Command("bash", append([]string{"-c", `p=$1; shift; for a; do case "$a" in $p) echo 1;; *) echo 0;; esac; done`, "bash", p}, aliases...)...)
		cmd.Env = []string{"LC_ALL=C"}
		out, err := cmd.Output()
		if err != nil {
			t.Fatal(err)
		}
		answers := strings.Fields(string(out))
		for i, a := range aliases {
			want := answers[i] == "1"
			if want {
				matches++
			}
			if got := Match(p, a); got != want {
				t.Errorf("Match(%q, %q) = %t; want %t", p, a, got, want)
			}
		}
	}
	if matches < 100 {
		t.Errorf("only %d pairs match: the table shows too little", matches)
	}
}

func TestMatchIsBounded(t *testing.T) {
	pattern := strings.Repeat("*a", 256) + "b"
	alias := strings.Repeat("a", 4096)
	start := time.Now()
	if Match(pattern, alias) {
		t.Error("got a match, want none")
	}
	if d := time.Since(start); d > 5*time.Second {
		t.Errorf("took %v", d)
	}
}

func FuzzMatch(f *testing.F) {
	f.Add("pci:v*d*", "pci:v1d2")
	f.Add("[!a-c]?\\*", "dx*")
	f.Add("[", "[")
	f.Fuzz(func(t *testing.T, pattern, alias string) {
		got := Match(pattern, alias)
		// Stars around a pattern never take a match away, and a string without
		// special characters fits itself.
		if got && !Match("*"+pattern, alias) {
			t.Errorf("%q fits %q, but not with a star before it", pattern, alias)
		}
		if !strings.ContainsAny(alias, `*?[\`) && !Match(alias, alias) {
			t.Errorf("%q does not fit itself", alias)
		}
	})
}
