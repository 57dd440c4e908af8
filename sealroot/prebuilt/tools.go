package prebuilt

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// ErrMissing: a program of e2fsprogs is not installed.
var ErrMissing = errors.New("program is missing: install e2fsprogs, version 1.47 or later")

// tools are the paths of the programs that are run, by name.
type tools map[string]string

func findTools() (tools, error) {
	t := tools{}
	for _, name := range []string{"debugfs", "e2fsck", "resize2fs"} {
		// An ordinary user's PATH lacks the sbin directories.
		for _, dir := range []string{"", "/usr/local/sbin", "/usr/sbin", "/sbin"} {
			if path, err := exec.LookPath(filepath.Join(dir, name)); err == nil && t[name] == "" {
				t[name] = path
			}
		}
		if t[name] == "" {
			return nil, fmt.Errorf("cannot find %s: %w", name, ErrMissing)
		}
	}
	return t, nil
}

// run runs one with these files as its descriptors from 3 on, and returns what it says.
func (t tools) run(ctx context.Context, name, stdin string, files []*os.File, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, t[name], args...)
	cmd.Env = append(os.Environ(), "LC_ALL=C", "TZ=UTC")
	cmd.ExtraFiles = files
	cmd.Stdin = strings.NewReader(stdin)
	out, err := cmd.CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, strings.TrimSpace(string(out)))
	}
	return string(out), nil
}
