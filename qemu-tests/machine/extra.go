package machine

import (
	"fmt"
	"os"
	"path/filepath"
)

// The agent for a guest with systemd and a shell; agent.go has its protocol.
const (
	agentProgram = `#!/bin/sh
exec </dev/ttyS1 >/dev/ttyS1
stty raw -echo
echo "ready $(cat /proc/sys/kernel/random/boot_id)"
while read -r id command; do
	[ -n "$id" ] || continue
	printf %s "$command" | base64 -d >/run/sealroot-test-command
	sh /run/sealroot-test-command >/run/sealroot-test-output 2>&1 </dev/null
	echo "$id $? $(base64 -w 0 </run/sealroot-test-output)"
done
`
	agentUnit = `[Unit]
Description=Runs commands that come over the second serial port
ConditionPathExists=/dev/ttyS1
[Service]
ExecStart=/bin/sh /usr/lib/sealroot-test-agent
Restart=always
[Install]
WantedBy=multi-user.target
`
)

// AddAgent adds the agent to a tree of files for a root with systemd.
func AddAgent(tree string) error {
	if err := addFile(filepath.Join(tree, "usr/lib/sealroot-test-agent"), agentProgram); err != nil {
		return err
	}
	return AddUnit(tree, "sealroot-test-agent.service", agentUnit)
}

// AddUnit adds a unit, enabled for multi-user.target, to a tree of files for a
// root with systemd.
func AddUnit(tree, name, text string) error {
	units := filepath.Join(tree, "usr/lib/systemd/system")
	if err := addFile(filepath.Join(units, name), text); err != nil {
		return err
	}
	wants := filepath.Join(units, "multi-user.target.wants")
	if err := os.MkdirAll(wants, 0o755); err != nil {
		return fmt.Errorf("cannot enable %s: %w", name, err)
	}
	if err := os.Symlink("../"+name, filepath.Join(wants, name)); err != nil {
		return fmt.Errorf("cannot enable %s: %w", name, err)
	}
	return nil
}

func addFile(path, text string) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("cannot add %s: %w", path, err)
	}
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		return fmt.Errorf("cannot add %s: %w", path, err)
	}
	return nil
}
