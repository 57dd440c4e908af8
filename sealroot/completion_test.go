package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// complete asks bash itself what it offers at the end of a line.
func complete(t *testing.T, dir, line string) string {
	t.Helper()
	_, script, _, _ := world{uid: 1000}.run(t, "completion", "bash")
	if err := os.WriteFile(filepath.Join(dir, "completion"), []byte(script), 0o644); err != nil {
		t.Fatal(err)
	}
	// slots of a machine that is not there
	const ask = `set -u
. ./completion
_sealroot_slots() { printf 'a\nb\n'; }
complete -p sealroot >registered
COMP_WORDS=($LINE); case $LINE in *' ') COMP_WORDS+=('') ;; esac
COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
_sealroot
echo "${COMPREPLY[@]}"
`
	cmd := exec.Command("bash", "-c", ask)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "LINE="+line)
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("bash: %v\n%s", err, out)
	}
	words := strings.Fields(string(out))
	slices.Sort(words)
	return strings.Join(words, " ")
}

func TestBashCompletion(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"disk.img", "other.txt"} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct{ name, line, want string }{
		{"first_word", "sealroot com", "commit completion"},
		{"state", "sealroot st", "state status"},
		{"state_of_what", "sealroot state ", "balance create enroll escrow passphrase prepare-update recovery-key rekey remove repair reset resize status unlock"},
		{"etc_of_what", "sealroot etc ", "diff"},
		{"flags_of_two_words", "sealroot state recovery-key --", "--new --passphrase-file --recovery-key-file --show --yes"},
		{"flags", "sealroot rollback --", "--disk --json --reboot --store"},
		{"slots", "sealroot try ", "a b"},
		{"slot_and_flag", "sealroot try b --t", "--tries"},
		{"value_of_a_flag", "sealroot try b --tries ", ""},
		{"file_of_a_flag", "sealroot status --disk di", "disk.img"},
		{"file_as_word", "sealroot install o", "other.txt"},
		{"shells", "sealroot completion ", "bash fish zsh"},
		{"help", "sealroot help ro", "rollback"},
		{"hidden", "sealroot dead", ""},
		{"that_a_person_is_sent_to", "sealroot post", "post-rollback"},
		{"unknown", "sealroot explode ", ""},
		{"nothing_to_add", "sealroot commit ", "a b"},
	} {
		t.Run(c.name, func(t *testing.T) {
			if got := complete(t, dir, c.line); got != c.want {
				t.Errorf("%q: got %q, want %q", c.line, got, c.want)
			}
		})
	}
	if text, err := os.ReadFile(filepath.Join(dir, "registered")); err != nil || !strings.Contains(string(text), "-F _sealroot sealroot") {
		t.Errorf("bash has registered %q, %v", text, err)
	}
}

// TestCompletionIsWhole: every command and flag is offered to every shell, and
// the scripts can be read by their shells where those are installed.
func TestCompletionIsWhole(t *testing.T) {
	for _, shell := range []string{"bash", "zsh", "fish"} {
		t.Run(shell, func(t *testing.T) {
			code, script, stderr, _ := world{uid: 1000}.run(t, "completion", shell)
			if code != 0 {
				t.Fatalf("exit status %d, %q", code, stderr)
			}
			for _, c := range commands(Env{}) {
				for _, word := range strings.Fields(c.name) {
					if !strings.Contains(script, word) {
						t.Errorf("no %q", word)
					}
				}
				for _, f := range c.flags {
					if !regexp.MustCompile(`(--|-l )` + f.name + `\b`).MatchString(script) {
						t.Errorf("no flag %q of %s", f.name, c.name)
					}
				}
			}
			path, err := exec.LookPath(shell)
			if err != nil {
				t.Logf("%s is not installed: its script was not read by it", shell)
				return
			}
			file := filepath.Join(t.TempDir(), "script")
			if err := os.WriteFile(file, []byte(script), 0o644); err != nil {
				t.Fatal(err)
			}
			if out, err := exec.Command(path, "-n", file).CombinedOutput(); err != nil {
				t.Errorf("%s -n: %v\n%s", shell, err, out)
			}
		})
	}
	if code, _, stderr, _ := (world{uid: 1000}).run(t, "completion", "tcsh"); code != exitUsage || !strings.Contains(stderr, "bash, zsh and fish") {
		t.Errorf("an unknown shell: exit status %d, %q", code, stderr)
	}
}

// TestHelp: every command that is not hidden is in the usage, in docs/operators.md,
// and explains itself.
func TestHelp(t *testing.T) {
	doc, err := os.ReadFile("../docs/operators.md")
	if err != nil {
		t.Fatal(err)
	}
	_, usage, _, _ := world{uid: 1000}.run(t, "help")
	for _, v := range verbs() {
		if v.hidden {
			continue
		}
		if !strings.Contains(usage, "sealroot "+v.name) {
			t.Errorf("the usage has no %q", v.name)
		}
		if !strings.Contains(string(doc), "sealroot "+v.name) && v.name != "help" && v.name != "version" {
			t.Errorf("docs/operators.md has no %q", "sealroot "+v.name)
		}
		code, text, stderr, _ := world{uid: 1000}.run(t, append([]string{"help"}, strings.Fields(v.name)...)...)
		if code != 0 || !strings.HasPrefix(text, "usage: sealroot "+v.name) || !strings.Contains(text, v.summary) {
			t.Errorf("help %s: exit status %d, %q, %q", v.name, code, text, stderr)
		}
	}
	for _, args := range []string{"help layer", "layer --help", "layer -h"} {
		code, text, stderr, _ := world{uid: 1000}.run(t, strings.Fields(args)...)
		if code != 0 || strings.Count(text, "\n") != len(wordsBehind("layer")) || !strings.HasPrefix(text, "  sealroot layer list [--json]") || !strings.Contains(text, "sealroot layer override") {
			t.Errorf("%s: exit status %d, %q, %q", args, code, text, stderr)
		}
	}
	if code, text, stderr, _ := (world{uid: 1000}).run(t, "layer"); code != exitUsage || text != "" || !strings.Contains(stderr, "sealroot layer knows list, add") {
		t.Errorf("layer: exit status %d, %q, %q", code, text, stderr)
	}
	for _, code := range []string{"| 0 ", "| 1 ", "| 2 ", "| 3 ", "| 4 ", "| 5 ", "| 6 "} {
		if !strings.Contains(string(doc), code) {
			t.Errorf("docs/operators.md does not explain exit status %s", code)
		}
	}
}
