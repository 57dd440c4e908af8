package qemutests

import (
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// What the Makefile builds PID 1 with keeps secrets in registers out of its memory. The
// control is a program without these settings.
func TestStateSecretsInRegisters(t *testing.T) {
	const setting = "runtime.godebugDefault="
	settings := regexp.MustCompile(`-X (` + regexp.QuoteMeta(setting) + `\S+)`).FindStringSubmatch(tool(t, "make", "-n", "-C", rootDir, "build"))
	if settings == nil {
		t.Fatalf("make build sets no %s", setting)
	}
	for _, c := range []struct {
		name, setting string
		left          bool
	}{{"as PID 1", settings[1], false}, {"control", setting, true}} {
		program := goBuild(t, "-ldflags", "-X "+c.setting, "./registers")
		n, err := strconv.Atoi(strings.TrimSpace(tool(t, program)))
		if err != nil {
			t.Fatal(err)
		}
		if t.Logf("%s: %d times the secret", c.name, n); (n > 0) != c.left {
			t.Errorf("%s: the secret is left %d times", c.name, n)
		}
	}
}
