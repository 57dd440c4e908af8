package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"sealroot/init/report"
	"sealroot/qemu-tests/machine"
)

const (
	bootTime    = 6 * time.Minute
	commandTime = 3 * time.Minute
)

// guest is the running machine; its errors say what was wanted.
type guest struct {
	*machine.Guest
	log     *os.File
	logName string
}

// powerOn starts the machine; what sealroot says on its console is told.
func (d *demo) powerOn(name string) (*guest, error) {
	path := d.file("console-" + name + ".log")
	log, err := os.Create(path)
	if err != nil {
		return nil, err
	}
	c := d.config
	c.Log = io.MultiWriter(log, narrator{os.Stderr})
	m, err := machine.Start(c)
	if err != nil {
		log.Close()
		return nil, err
	}
	d.guest = &guest{m, log, path}
	return d.guest, nil
}

// powerOff shuts the machine down in order.
func (d *demo) powerOff() error {
	g := d.guest
	if err := g.Post("systemctl poweroff", commandTime); err != nil {
		return err
	}
	if err := g.Wait(commandTime); err != nil {
		return err
	}
	d.guest = nil
	return g.log.Close()
}

// narrator shows the lines of a console's log that sealroot wrote.
type narrator struct{ w io.Writer }

// Write gets one line at a time, with the seconds since the start before it.
func (n narrator) Write(line []byte) (int, error) {
	if _, text, ours := bytes.Cut(line, []byte("] sealroot: ")); ours {
		seconds, _, _ := bytes.Cut(bytes.TrimSpace(line), []byte(" "))
		fmt.Fprintf(n.w, "    %7s  %s", seconds, text)
	}
	return len(line), nil
}

// run runs a command that must succeed. The first one waits for the boot.
func (g *guest) run(command string) (string, error) {
	output, status, err := g.Run(command, bootTime)
	if err != nil {
		return "", err
	}
	if status != 0 {
		return "", fmt.Errorf("%q in the machine ended with status %d: %s", command, status, output)
	}
	return output, nil
}

// tell runs a command and shows it with its output.
func (g *guest) tell(command string) error {
	output, err := g.run(command)
	if err != nil {
		return err
	}
	fmt.Fprintf(os.Stderr, "    # %s\n", command)
	for line := range strings.Lines(output) {
		fmt.Fprintf(os.Stderr, "    %s", line)
	}
	return nil
}

// report returns the boot report of a boot that must be one of the given slot.
func (g *guest) report(slot string) (report.Report, error) {
	var r report.Report
	text, err := g.run("cat " + report.Path)
	if err != nil {
		return r, err
	}
	if err := json.Unmarshal([]byte(text), &r); err != nil {
		return report.Report{}, fmt.Errorf("cannot read the boot report: %w", err)
	}
	if r.Slot.Name != slot {
		return report.Report{}, fmt.Errorf("slot %q came up, want %q: %+v", r.Slot.Name, slot, r.Failures)
	}
	return r, nil
}

func (g *guest) stateIsThere() error {
	_, err := g.run("grep -x 'written by version 1' " + witness)
	return err
}

// settled waits until systemd has nothing left to start, so that the unit that
// commits has run, and returns which slots are committed. A service that failed
// is told and no error:
// a root of somebody else may have some that fail in a bare machine.
func (g *guest) settled() (committed map[string]bool, err error) {
	state, _, err := g.Run("systemctl is-system-running --wait", commandTime)
	if err != nil {
		return nil, err
	}
	if s := strings.TrimSpace(state); s != "running" {
		failed, _, err := g.Run("systemctl --failed --no-legend --plain", commandTime)
		if err != nil {
			return nil, err
		}
		// A root of somebody else may have services that fail in a bare machine.
		fmt.Fprintf(os.Stderr, "    systemd is %s: %s\n", s, strings.ReplaceAll(strings.TrimSpace(failed), "\n", "; "))
	}
	text, err := g.run("sealroot status --json")
	if err != nil {
		return nil, err
	}
	var status struct {
		Slots []struct {
			Name       string `json:"name"`
			Successful bool   `json:"successful"`
		} `json:"slots"`
	}
	if err := json.Unmarshal([]byte(text), &status); err != nil {
		return nil, fmt.Errorf("cannot read sealroot status --json: %w", err)
	}
	committed = map[string]bool{}
	for _, s := range status.Slots {
		committed[s.Name] = s.Successful
	}
	return committed, nil
}
