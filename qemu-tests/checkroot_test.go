package qemutests

import (
	"encoding/json"
	"fmt"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// TestCheckRoot holds check-root to what is true of a real Debian root, as
// debootstrap makes it, and of what was done to it. No machine is started.
func TestCheckRoot(t *testing.T) {
	t.Parallel()
	asBuilt := []string{
		"warning /state (mount-points)",
		"warning /usr/bin/sealroot (units)",
		"warning /usr/lib/modules (modules)",
		"warning /usr/lib/os-release (os-release)", "warning /usr/lib/os-release (os-release)", // IMAGE_ID, IMAGE_VERSION
	}
	hurt := filepath.Join(t.TempDir(), "hurt.tar")
	tool(t, "cp", rootTar(t, Debian), hurt)
	// What follows in the tar is what an ill-made one has.
	extra := t.TempDir()
	for name, content := range map[string]string{
		"etc/ssh/ssh_host_rsa_key": "key", "var/lib/systemd/random-seed": "seed", "var/lib/big": strings.Repeat("x", 65<<20),
	} {
		writeFile(t, filepath.Join(extra, name), []byte(content), 0o644)
	}
	tool(t, "tar", "-C", extra, "--owner=0", "--group=0", "-rf", hurt, "etc", "var")
	tool(t, "tar", "-f", hurt, "--delete", "./usr/lib/systemd/systemd")
	withHurts := append(slices.Clone(asBuilt[:1]),
		"error /sbin/init (init)",
		"warning /etc/ssh/ssh_host_rsa_key (ssh-host-keys)",
		"warning /var (size)",
		"warning /var/lib/systemd/random-seed (random-seed)")
	// Nothing is said of a root without systemd that its units would need.
	withHurts = append(withHurts, asBuilt[1:]...)
	for _, tc := range []struct {
		name, tar string
		status    int
		want      []string
	}{{"as_built", rootTar(t, Debian), 0, asBuilt}, {"hurt", hurt, 1, withHurts}} {
		t.Run(tc.name, func(t *testing.T) {
			var out struct {
				Findings []struct{ Severity, Rule, Path, What, Remedy string }
			}
			cmd := exec.Command(filepath.Join(buildDir, "sealroot-mkinitramfs"), "check-root", "--json", tc.tar)
			stdout, err := cmd.Output()
			if cmd.ProcessState == nil {
				t.Fatal(err)
			}
			if err := json.Unmarshal(stdout, &out); err != nil {
				t.Fatalf("%v in %s", err, stdout)
			}
			var got []string
			for _, f := range out.Findings {
				got = append(got, fmt.Sprintf("%s %s (%s)", f.Severity, f.Path, f.Rule))
			}
			slices.Sort(got)
			slices.Sort(tc.want)
			if status := cmd.ProcessState.ExitCode(); status != tc.status || !slices.Equal(got, tc.want) {
				t.Errorf("status %d\n%s\nwant %d\n%s", status, strings.Join(got, "\n"), tc.status, strings.Join(tc.want, "\n"))
			}
		})
	}
}
