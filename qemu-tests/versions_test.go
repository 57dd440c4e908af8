package qemutests

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"sealroot/slots/bootlog"
	"sealroot/slots/gpt"
)

// trunk is the last commit before slots could be installed.
const trunk = "e8692ab6a77890b82487868e78f4c24ccc71aa3c"

// The two slots of a machine hold different versions of this project, which
// share the boot log and the partition table: init of the trunk with today's
// command, and the reverse.
func TestVersionsTogether(t *testing.T) {
	t.Parallel()
	old := trunkTree(t)
	for _, tc := range []struct {
		name  string
		image Image
	}{
		{"old_init_new_command", Image{Tree: old, Sealroot: filepath.Join(buildDir, "sealroot")}},
		{"new_init_old_command", Image{Sealroot: filepath.Join(old, "build/sealroot")}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			tc.image.B = &SlotB{}
			disk := tc.image.Build(t)
			setFuture(t, disk)
			m := NewMachine(t, BIOS, disk).WithTPM().Hold()
			log := disk.Read(t, "sealroot-log", 0, bootlog.PartitionSize)

			vm := m.Boot()
			if r := vm.UpIn("b"); !r.Slot.Trial {
				t.Errorf("slot %+v, want a trial", r.Slot)
			}
			// What the command and init write is seen apart.
			vm.PowerOff()
			byInit := disk.Read(t, "sealroot-log", 0, bootlog.PartitionSize)
			if bytes.Equal(log, byInit) {
				t.Error("init did not write the boot log: nothing is shown")
			}
			wantFuture(t, disk)

			vm = m.Boot()
			vm.UpIn("b")
			vm.Run("sealroot commit")
			if status := vm.Run("sealroot status"); strings.Count(status, "committed") < 2 {
				t.Errorf("sealroot status after a commit:\n%s", status)
			}
			vm.Run("sealroot try a")
			vm.PowerOff()
			if bytes.Equal(byInit, disk.Read(t, "sealroot-log", 0, bootlog.PartitionSize)) {
				t.Error("sealroot did not write the boot log: nothing is shown")
			}
			wantFuture(t, disk)

			vm = m.Boot()
			if r := vm.UpIn("a"); !r.Slot.Trial {
				t.Errorf("slot %+v, want a trial", r.Slot)
			}
			vm.Run("sealroot commit")
			vm.Reboot()
			if r := vm.UpIn("a"); r.Slot.Reason != "committed" {
				t.Errorf("slot %+v, want committed", r.Slot)
			}
			vm.PowerOff()
			wantFuture(t, disk)
			disk.CheckTable(t)
			for _, slot := range []string{"a", "b"} {
				if got := disk.Slot(t, slot); got.Successful != 1 {
					t.Errorf("slot %s is %+v, want successful", slot, got)
				}
			}
		})
	}
}

// trunkTree returns a folder with the trunk's sources and programs.
func trunkTree(t *testing.T) string {
	t.Helper()
	path := filepath.Join(buildDir, "tree-"+trunk[:7])
	once(t, path, func(path string) {
		if err := os.MkdirAll(path, 0o755); err != nil {
			t.Fatal(err)
		}
		archive := filepath.Join(t.TempDir(), "trunk.tar")
		tool(t, "git", "-C", trunkHistory(t), "archive", "-o", archive, trunk)
		tool(t, "tar", "-x", "-C", path, "-f", archive)
		tool(t, "make", "-s", "-C", path, "build")
	})
	return path
}

// trunkHistory returns a repository with the trunk's last commit: this one, or
// where it is shallow one beside it with that commit of the same origin.
func trunkHistory(t *testing.T) string {
	t.Helper()
	if _, err := runTool("git", "-C", rootDir, "cat-file", "-e", trunk+"^{commit}"); err == nil {
		return rootDir
	}
	const remedy = "TestVersionsTogether builds the older of its two versions from commit %s, which is not in this folder's history and cannot be fetched from where that comes from. Run it in a whole clone (git fetch --unshallow makes a shallow one whole), or put that commit's sources, built with make, into build/tree-%s:\n%v: %s"
	origin, err := runTool("git", "-C", rootDir, "remote", "get-url", "origin")
	if err != nil {
		t.Fatalf(remedy, trunk, trunk[:7], err, origin)
	}
	repository := filepath.Join(t.TempDir(), "history.git")
	tool(t, "git", "init", "--quiet", "--bare", repository)
	if output, err := runTool("git", "-C", repository, "fetch", "--quiet", "--depth=1", strings.TrimSpace(origin), trunk); err != nil {
		t.Fatalf(remedy, trunk, trunk[:7], err, output)
	}
	return repository
}

// future is a field that neither program knows.
const future = `{"known":"to a later version","list":[1,2,3]}`

// setFuture puts it into the boot log.
func setFuture(t *testing.T, disk *Disk) {
	t.Helper()
	log := hostLog(t, disk)
	err := log.Update(func(r bootlog.Record) (bootlog.Record, error) {
		text, err := json.Marshal(r)
		if err != nil {
			return r, err
		}
		var fields map[string]json.RawMessage
		if err := json.Unmarshal(text, &fields); err != nil {
			return r, err
		}
		fields["future"] = json.RawMessage(future)
		if text, err = json.Marshal(fields); err != nil {
			return r, err
		}
		err = json.Unmarshal(text, &r)
		return r, err
	})
	if err != nil {
		t.Fatal(err)
	}
	wantFuture(t, disk)
}

// wantFuture checks that it is still there.
func wantFuture(t *testing.T, disk *Disk) {
	t.Helper()
	record, err := hostLog(t, disk).Load()
	if err != nil {
		t.Fatal(err)
	}
	text, err := json.Marshal(record)
	if err != nil {
		t.Fatal(err)
	}
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(text, &fields); err != nil {
		t.Fatal(err)
	}
	var got bytes.Buffer
	if err := json.Compact(&got, fields["future"]); err != nil || got.String() != future {
		t.Errorf("the boot log's unknown field is %s now, want %s", fields["future"], future)
	}
}

// hostLog opens the boot log of a disk image.
func hostLog(t *testing.T, disk *Disk) bootlog.Log {
	t.Helper()
	f, err := os.OpenFile(disk.Path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	p := disk.Part(t, gpt.LabelLog)
	return bootlog.Log{Dev: fileSection{f, p.Offset}}
}

// fileSection is a partition in a file.
type fileSection struct {
	*os.File
	offset int64
}

func (s fileSection) ReadAt(b []byte, off int64) (int, error) { return s.File.ReadAt(b, s.offset+off) }
func (s fileSection) WriteAt(b []byte, off int64) (int, error) {
	return s.File.WriteAt(b, s.offset+off)
}
