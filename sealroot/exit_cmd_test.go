package main

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"sealroot/sealroot/exit"
)

// Another init than systemd has the machine ended by a command; systemd does it itself,
// and a word that is not known ends nothing.
func TestExitProgramEnds(t *testing.T) {
	there, missing := t.TempDir(), filepath.Join(t.TempDir(), "none")
	for _, c := range []struct {
		name, systemd string
		args          []string
		code          int
		ends          []exit.Ending
		says          string
	}{
		{"poweroff", missing, []string{"poweroff"}, exitOK, []exit.Ending{exit.PowerOff}, ""},
		{"reboot", missing, []string{"reboot"}, exitOK, []exit.Ending{exit.Reboot}, ""},
		{"unknown", missing, []string{"now"}, exitUsage, nil, `"now" is none of poweroff`},
		{"two", missing, []string{"halt", "now"}, exitUsage, nil, "poweroff|reboot"},
		{"systemd", there, []string{"poweroff"}, exitRefused, nil, "systemctl poweroff"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var ends []exit.Ending
			w := world{adapt: func(env *Env) {
				env.Systemd = c.systemd
				env.End = func(e exit.Ending) error { ends = append(ends, e); return nil }
			}}
			code, _, stderr, _ := w.run(t, append([]string{"exit-program"}, c.args...)...)
			if code != c.code || !slices.Equal(ends, c.ends) || !strings.Contains(stderr, c.says) {
				t.Errorf("exit status %d, ends %q, says %q; want %d, %q, %q", code, ends, stderr, c.code, c.ends, c.says)
			}
		})
	}
	if exit.Entered() {
		t.Errorf("%q counts as the exit program", os.Args[0])
	}
}
