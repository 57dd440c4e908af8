package efi

import "strings"

// ConfDefault returns the configuration of systemd-boot (loader.conf) with the
// slot as its default, which counts when the firmware has forgotten the variable.
// changed is false when it is so already; then conf is returned as it is.
func ConfDefault(conf, slot string) (out string, changed bool) {
	want := "default " + EntryPattern(slot)
	var lines []string
	found := 0
	for line := range strings.Lines(conf) {
		line = strings.TrimRight(line, "\r\n")
		if f := strings.Fields(line); len(f) > 0 && f[0] == "default" {
			if found++; found > 1 {
				continue
			}
			line = want
		}
		lines = append(lines, line)
	}
	if found == 0 {
		lines = append(lines, want)
	}
	out = strings.Join(lines, "\n") + "\n"
	if out == conf {
		return conf, false
	}
	return out, true
}
