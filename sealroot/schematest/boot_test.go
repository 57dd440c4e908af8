package schematest

import (
	"os"
	"reflect"
	"strings"
	"testing"

	"sealroot/init/report"
)

// whole is a report in which every member is set.
func whole() report.Report {
	failure := report.Failure{Stage: "root", Slot: "b", Class: "image", Error: "a block does not match"}
	return report.Report{
		Schema: report.Schema, BootID: "id", Program: "v1", Name: "kiosk", Version: "1", Build: "production", BootPath: "uki",
		Disk: report.Disk{Device: "/dev/vda", GUID: "guid", FoundBy: "loader", BootPartition: "guid"},
		Slot: report.Slot{Name: "a", Loaded: "?", Reason: "fallback", Trial: true, Priority: 15, Successful: true, TriesBefore: 15, TriesAfter: 14},
		Root: report.Root{
			Role: "usr", RootHash: strings.Repeat("0a", 32), HashSource: "signature partition", Certificate: "CN=x", Filesystem: "squashfs",
			ImageID: "kiosk", ImageVersion: "1", SecurityVersion: 3, KernelRelease: "6.1",
		},
		State: report.State{
			Unlocked: "recovery-key", Keyslot: 1, Token: -1, UUID: "uuid", Attempts: []string{"tpm2: no"},
			Recovery: "waiting-to-be-shown", ReservedBytes: 1 << 30, ReadOnly: "no room", Pinned: "yes", Reset: "key", ResetBegun: "key",
		},
		FellBack:              &report.Fallback{From: "b", Reason: "no commit", Class: "image"},
		Disagreement:          &report.Disagreement{Loaded: "?", Wanted: "a", Why: "the one-shot was not followed"},
		CommitDeadlineSeconds: 600, Ended: "device missing", Failures: []report.Failure{failure},
		Layers:    []report.Layer{{Name: "tools", RootHash: "0a", Version: "7", LeftOut: "it is not there", Absent: true, Source: report.LayerAdded, Measured: true}},
		LayerList: "0a", LayerTrial: true,
		EtcImage:     strings.Repeat("0a", 32),
		EtcInMemory:  true,
		EtcConflicts: []string{"ssh/sshd_config: both changed it"},
		Mounts:       []report.Mount{{What: "/dev/vda3", Where: "/", Type: "squashfs", Options: []string{"ro"}}},
		TPM:          report.TPM{Present: true, Banks: []string{"sha256"}, Capped: []int{11}, Policy: "pcrs", PCRs: []int{7}, PIN: true, RecordKeys: []string{"pcr-previous.pub"}},
		Floor:        &report.Floor{Value: 2, Known: true},
		Watchdog:     &report.Watchdog{Device: "/dev/watchdog0", Identity: "i6300ESB", Seconds: 30, HandedOver: true, NoWayOut: true, Fired: true},
		Stages:       []report.Stage{{Name: "root", Start: 1, End: 2}}, Warnings: []string{"w"}, Degraded: true,
	}
}

// unset names a member that is zero.
func unset(at string, v reflect.Value) string {
	switch v.Kind() {
	case reflect.Pointer:
		if !v.IsNil() {
			return unset(at, v.Elem())
		}
	case reflect.Slice:
		if v.Len() > 0 {
			return unset(at, v.Index(0))
		}
	case reflect.Struct:
		for i := range v.NumField() {
			if name := unset(at+"."+v.Type().Field(i).Name, v.Field(i)); name != "" {
				return name
			}
		}
		return ""
	}
	if v.IsZero() {
		return at
	}
	return ""
}

// What PID 1 reports fits docs/boot.schema.json: with all that it can tell, and
// when the boot ended before it knew anything.
func TestBootReport(t *testing.T) {
	schema, err := os.ReadFile("../../docs/boot.schema.json")
	if err != nil {
		t.Fatal(err)
	}
	full := whole()
	if name := unset("Report", reflect.ValueOf(full)); name != "" {
		t.Fatalf("%s is not set: nothing is shown", name)
	}
	text, err := full.Encode()
	if err != nil {
		t.Fatal(err)
	}
	for _, problem := range Check(schema, text) {
		t.Error(problem)
	}
	ended, err := (&report.Report{Schema: report.Schema, BootID: "id", Ended: "device missing"}).Line()
	if err != nil {
		t.Fatal(err)
	}
	for _, problem := range Check(schema, ended) {
		t.Errorf("a boot that ended: %s", problem)
	}
	full.Root.RootHash, full.State.Unlocked = "0A", "by magic"
	if text, err = full.Encode(); err != nil {
		t.Fatal(err)
	}
	if got := Check(schema, text); len(got) != 2 {
		t.Errorf("a wrong root hash and a wrong method: %q, want two problems", got)
	}
}
