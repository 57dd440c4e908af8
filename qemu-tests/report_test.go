package qemutests

import (
	"encoding/json"
	"path/filepath"
	"strings"
	"testing"

	"sealroot/init/report"
	"sealroot/sealroot/schematest"
)

// Report returns the boot report of the running guest.
func (vm *VM) Report() report.Report {
	vm.t.Helper()
	var r report.Report
	text := vm.Run("cat " + report.Path)
	if err := json.Unmarshal([]byte(text), &r); err != nil {
		vm.t.Fatalf("%s: %v", report.Path, err)
	}
	fits(vm.t, "boot", text)
	return r
}

// fits holds JSON of a guest to a schema in docs/.
func fits(t *testing.T, schema, text string) {
	t.Helper()
	want := readFile(t, filepath.Join(rootDir, "docs", schema+".schema.json"))
	for _, problem := range schematest.Check(want, []byte(text)) {
		t.Errorf("%s.schema.json: %s", schema, problem)
	}
}

// UpIn waits until the probe runs in the given slot, next after what was
// matched before. The slot that did come up instead ends the test.
func (vm *VM) UpIn(slot string) report.Report {
	vm.t.Helper()
	got := vm.Expect(`probe: up: slot "(.*)", kernel (.*)\n`, probeTime)
	vm.WaitReady(commandTime)
	if got[1] != slot {
		vm.t.Fatalf("slot %q came up, want %q", got[1], slot)
	}
	return vm.Report()
}

// failuresText joins a report's failures, to look for words in.
func failuresText(r report.Report) string {
	var lines []string
	for _, f := range r.Failures {
		lines = append(lines, f.Slot+" "+f.Class+" "+f.Error)
	}
	if r.FellBack != nil {
		lines = append(lines, r.FellBack.From+" "+r.FellBack.Class+" "+r.FellBack.Reason)
	}
	return strings.Join(lines, "\n")
}
