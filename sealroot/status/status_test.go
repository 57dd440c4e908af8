package status

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"sealroot/goldentest"
	"sealroot/init/report"
	"sealroot/sealroot/boots"
	"sealroot/sealroot/hooks"
	"sealroot/sealroot/schematest"
	"sealroot/sealroot/volume"
	"sealroot/slots"
	"sealroot/slots/bootlog"
	"sealroot/state/tpm/pcrsig"
	"sealroot/state/tpm/predict"
)

// committed is a machine in its every-day state.
func committed() report.Report {
	return report.Report{
		Schema: 1, BootID: "0f6a1c3e-9f0b-4a53-8b8b-000000000001", Program: "v0.1", Name: "kiosk", Version: "2026.11.1", Build: "production",
		BootPath: "uki-secure-boot",
		Disk:     report.Disk{Device: "/dev/vda", GUID: "c0ffee00-0000-4000-8000-000000000000", FoundBy: "loader"},
		Slot:     report.Slot{Name: "a", Loaded: "a", Reason: "committed", Priority: 2, Successful: true},
		Root: report.Root{
			RootHash: strings.Repeat("4f", 32), HashSource: "signature partition", Certificate: "CN=kiosk images",
			ImageID: "kiosk", ImageVersion: "2026.11.1", KernelRelease: "6.1.0-50-cloud-amd64",
		},
		State: report.State{Unlocked: "tpm2", Keyslot: 0, Token: 0, Recovery: "enrolled", ReservedBytes: 512 << 20},
		TPM: report.TPM{
			Present: true, Banks: []string{"sha1", "sha256"}, Capped: []int{7, 11, 15}, Policy: "signed-pcr11+7", PCRs: []int{7, 11},
		},
		Stages: []report.Stage{
			{Name: "configuration", Start: 1000, End: 3000}, {Name: "root", Start: 3000, End: 120_000}, {Name: "state", Start: 120_000, End: 901_000},
		},
	}
}

func slotsOf(a, b slots.Slot) []slots.Slot {
	a.Name, b.Name = "a", "b"
	return []slots.Slot{a, b}
}

// reportOf is the report of boot n.
func reportOf(n int, change func(*report.Report)) []byte {
	r := committed()
	r.BootID = fmt.Sprintf("0f6a1c3e-9f0b-4a53-8b8b-%012d", 100+n)
	change(&r)
	text, err := r.Encode()
	if err != nil {
		panic(err)
	}
	return text
}

// lastBoots has boots on the state partition, one of them in the boot log too,
// one there only, and one that is none.
func lastBoots(list []slots.Slot) Input {
	in := Input{Slots: list, BootsErr: errors.New("one file is no report"), Versions: map[string]string{"b": "2026.12.0"}}
	keep := func(n int, change func(*report.Report)) {
		text := reportOf(n, change)
		in.Boots = append(in.Boots, boots.Report{
			Number: n, BootID: fmt.Sprint(n), Text: text, Recorded: time.Date(2026, 11, n, 12, 30, 0, 0, time.UTC),
		})
	}
	keep(1, func(r *report.Report) { r.Slot.Reason = "trial"; r.Slot.Name = "b" })
	keep(2, func(r *report.Report) {
		r.Slot.Reason = "fallback"
		r.FellBack = &report.Fallback{From: "b", Reason: "health check failed: 20-database: exit status 3", Class: "image"}
	})
	keep(3, func(r *report.Report) { r.Degraded = true })
	keep(4, func(r *report.Report) { r.BootID = committed().BootID })
	in.Boots = append(in.Boots, boots.Report{Number: 5, BootID: "5", Text: []byte("{")})
	in.Log.Reports = []json.RawMessage{
		in.Boots[1].Text, []byte(`{"schema": 1}`), []byte(`[]`),
		reportOf(6, func(r *report.Report) { r.Ended = "unlock of the state refused"; r.Slot.Name = "\x1b[2J" }),
	}
	return in
}

var errDisk = errors.New("boot disk not found")

// situations are golden files testdata/<name>.txt and .json.
func situations() map[string]Input {
	good, other := slots.Slot{Priority: 2, Successful: true}, slots.Slot{Priority: 1, Successful: true}
	all := map[string]Input{}
	add := func(name string, in Input, change func(*report.Report)) {
		r := committed()
		if change != nil {
			change(&r)
		}
		text, err := r.Encode()
		if err != nil {
			panic(err)
		}
		in.Report = text
		all[name] = in
	}
	add("committed", Input{Slots: slotsOf(good, other)}, nil)
	add("trial", Input{Slots: slotsOf(other, slots.Slot{Priority: 2, Tries: 2}), Log: bootlog.Record{Armed: "b"}}, func(r *report.Report) {
		r.Slot = report.Slot{Name: "b", Loaded: "b", Reason: "trial", Trial: true, Priority: 2, TriesBefore: 3, TriesAfter: 2}
	})
	add("fallback", Input{
		Slots: slotsOf(other, slots.Slot{}),
		Log: bootlog.Record{Failures: map[string]bootlog.Failure{
			"b": {Reason: slots.KernelNeverReached, Class: slots.ImageFailure, BootID: "0f6a1c3e-9f0b-4a53-8b8b-000000000000"},
		}},
	}, func(r *report.Report) {
		r.Slot.Reason, r.Slot.Priority = "fallback", 1
		r.FellBack = &report.Fallback{From: "b", Reason: "kernel never reached init", Class: "image"}
	})
	add("committed_slot_went_bad", Input{
		Slots: slotsOf(slots.Slot{Priority: 2, Successful: true}, slots.Slot{Priority: 1, Successful: true}),
		Log: bootlog.Record{Failures: map[string]bootlog.Failure{
			"b": {Reason: slots.Verity, Class: slots.ImageFailure},
		}},
	}, nil)
	add("degraded", Input{Slots: slotsOf(good, other)}, func(r *report.Report) {
		r.Degraded = true
		r.State = report.State{Unlocked: "degraded", Keyslot: -1, Token: -1, Attempts: []string{"token 0: PCR 7 changed"}}
		r.Failures = []report.Failure{{Stage: "state", Class: "state", Error: "cannot unlock the encrypted volume: PCR 7 changed"}}
		r.Warnings = []string{"nobody answered the prompt"}
	})
	add("recovery_waiting", Input{Slots: slotsOf(good, other), KeyKept: true}, func(r *report.Report) {
		r.State.Unlocked, r.State.Recovery = "created", "waiting-to-be-shown"
	})
	add("recovery_escrowed", Input{Slots: slotsOf(good, other)}, func(r *report.Report) { r.State.Recovery = "escrowed" })
	add("recovery_shown_since", Input{Slots: slotsOf(good, other)}, func(r *report.Report) { r.State.Recovery = "waiting-to-be-shown" })
	add("bios_without_recovery", Input{Slots: slotsOf(good, slots.Slot{})}, func(r *report.Report) {
		r.BootPath, r.State.Recovery = "unmeasured", "none"
		r.TPM.Policy, r.TPM.PCRs = "pcrs", []int{15}
	})
	add("grub_on_uefi", Input{Slots: slotsOf(good, other)}, func(r *report.Report) {
		r.BootPath, r.TPM.Policy, r.TPM.PCRs = "grub-efi", "pcrs", []int{15}
	})
	add("grub_on_uefi_sealed_to_it", Input{Slots: slotsOf(good, other)}, func(r *report.Report) {
		r.BootPath, r.TPM.Policy, r.TPM.PCRs = "grub-efi", "pcrs", []int{8, 9, 15}
	})
	add("grub_with_a_pin", Input{Slots: slotsOf(good, other)}, func(r *report.Report) {
		r.BootPath, r.TPM.Policy, r.TPM.PCRs, r.TPM.PIN = "unmeasured", "pcrs", []int{15}, true
	})
	add("grub_on_uefi_refused", Input{Slots: slotsOf(good, other)}, func(r *report.Report) {
		r.BootPath, r.TPM.Policy, r.TPM.PCRs = "grub-efi", "", nil
		r.State.Unlocked, r.State.Keyslot, r.State.Token = "degraded", -1, -1
	})
	add("sealed_by_an_earlier_boot", Input{Slots: slotsOf(good, other)}, func(r *report.Report) { r.TPM.Policy = "" })
	add("sealed_to_one_uki", Input{Slots: slotsOf(good, other)}, func(r *report.Report) {
		r.BootPath, r.TPM.Policy, r.TPM.PCRs = "uki", "signed-pcr11+4", []int{4, 11, 12}
	})
	add("nothing_closed", Input{Slots: slotsOf(good, other)}, func(r *report.Report) { r.TPM.Capped = nil })
	add("no_tpm", Input{Slots: slotsOf(good, other)}, func(r *report.Report) {
		r.TPM, r.State.Unlocked, r.State.Keyslot, r.State.Token = report.TPM{}, "passphrase", 2, -1
	})
	add("last_resort_on_another_kernel", Input{Slots: slotsOf(slots.Slot{Priority: 1}, slots.Slot{})}, func(r *report.Report) {
		r.Slot.Reason, r.Slot.Loaded, r.Slot.Successful = "last-resort", "b", false
	})
	add("last_boots", lastBoots(slotsOf(good, slots.Slot{})), nil)
	add("layers_left_out", Input{Slots: slotsOf(good, other), Log: bootlog.Record{Reports: []json.RawMessage{
		reportOf(7, func(r *report.Report) {
			r.Layers = []report.Layer{{Name: "low", LeftOut: "cannot use layer low: cannot mount: input/output error (a block does not match the hash tree)\x1b[31m"}}
			r.Failures = []report.Failure{{Stage: "layers", Slot: "a", Class: "environment", Error: r.Layers[0].LeftOut}}
			r.FellBack = &report.Fallback{From: "b", Reason: "kernel never reached init", Class: "image"}
		}),
	}}}, func(r *report.Report) {
		r.Layers = []report.Layer{
			{Name: "low", Version: "1"}, {Name: "mid", LeftOut: report.LayerOff}, {Name: "top", LeftOut: "cannot use layer top: not a layer for this root: it is for ID fedora, this is ID debian"},
		}
		r.Failures = []report.Failure{{Stage: "layers", Slot: "a", Class: "environment", Error: r.Layers[2].LeftOut}}
	})
	add("loader_disagreed", Input{Slots: slotsOf(other, good), Store: "gpt", Loader: "systemd-boot"}, func(r *report.Report) {
		r.Slot.Loaded = "?"
		r.Disagreement = &report.Disagreement{Loaded: "?", Wanted: "b", Why: "the entry was chosen by hand"}
	})
	add("trial_with_deadline", Input{Slots: slotsOf(slots.Slot{Priority: 3, Tries: 1}, good), Versions: map[string]string{"b": "2026.10.7", "a": "x"}}, func(r *report.Report) {
		r.CommitDeadlineSeconds = 600
	})
	add("rollback_floor", Input{Slots: slotsOf(good, other), FloorAsked: 2}, func(r *report.Report) {
		r.Root.SecurityVersion, r.Floor = 2, &report.Floor{Value: 1, Known: true}
	})
	add("rollback_floor_behind", Input{Slots: slotsOf(good, other), FloorAsked: 1}, func(r *report.Report) {
		r.Root.SecurityVersion, r.Floor = 2, &report.Floor{Value: 1, Known: true}
	})
	add("rollback_floor_lost", Input{Slots: slotsOf(good, other), FloorErr: fs.ErrPermission}, func(r *report.Report) {
		r.State.Unlocked, r.Floor = "recovery-key", &report.Floor{}
	})
	add("pcrs", Input{Slots: slotsOf(good, other), PCRs: comparedPCRs()}, nil)
	add("pcrs_unknown", Input{Slots: slotsOf(good, other), PCRs: &PCRs{PredictErr: errDisk, ActualErr: fs.ErrNotExist}}, nil)
	all["another_disk"] = Input{
		Disk: "/srv/disk.img", Store: "grubenv-rauc", Loader: "grub", Slots: slotsOf(good, slots.Slot{Priority: 1, Tries: 3}),
		Versions: map[string]string{"a": "1"}, VersionsErr: errors.New("cannot tell the version of slot b: no manifest"),
		Log: bootlog.Record{Armed: "b", Reports: []json.RawMessage{reportOf(9, func(r *report.Report) { r.Ended = "device missing" })}},
	}
	add("hooks_failed", Input{Slots: slotsOf(good, other), Ran: hooks.Ran{
		System: hooks.System{Slot: "a", RootHash: strings.Repeat("4f", 32), Version: "2026.11.1"},
		From:   hooks.System{Slot: "b", RootHash: strings.Repeat("5e", 32), Version: "2026.12.1"},
		Failed: []string{"05-x: exit status 1: broken\x1b[31m", "20-db: time limit of 2m0s"},
	}}, nil)
	add("hooks_failed_of_another_image", Input{Slots: slotsOf(good, other), Ran: hooks.Ran{System: hooks.System{Slot: "a", RootHash: "5e"}, Failed: []string{"x"}}}, nil)
	add("hooks_unknown", Input{Slots: slotsOf(good, other), RanErr: hooks.ErrRecord}, nil)
	add("disk_unreadable", Input{SlotsErr: errDisk, LogErr: errDisk, KeyErr: fs.ErrPermission}, nil)
	add("newer_report", Input{Slots: slotsOf(good, other)}, func(r *report.Report) { r.Schema = 2 })
	all["not_sealroot"] = Input{ReportErr: errors.New("/run/sealroot/boot.json is missing"), Slots: slotsOf(good, other)}
	all["broken_report"] = Input{Report: []byte(`{"schema":1,`), SlotsErr: errDisk, LogErr: errDisk}
	return all
}

// comparedPCRs are those of a machine whose PCR 13 was extended once more in one
// bank, and where systemd has measured a word.
func comparedPCRs() *PCRs {
	banks := []pcrsig.Bank{pcrsig.SHA1, pcrsig.SHA256}
	values, err := predict.Values(predict.Image{
		Sections: []pcrsig.Section{{Name: ".linux", Data: []byte("kernel")}}, RootHash: bytes.Repeat([]byte{0x4f}, 32), RootPCR: 13,
	}, banks)
	if err != nil {
		panic(err)
	}
	actual := map[pcrsig.Bank]map[int]string{}
	for _, bank := range banks {
		actual[bank] = map[int]string{}
		for _, v := range values {
			actual[bank][v.PCR] = v.Digests[bank]
		}
		now, err := hex.DecodeString(actual[bank][11])
		if err == nil {
			now, err = pcrsig.Extend(bank, now, "sysinit")
		}
		if err != nil {
			panic(err)
		}
		actual[bank][11] = hex.EncodeToString(now)
	}
	actual[pcrsig.SHA1][13] = strings.Repeat("00", 20)
	return &PCRs{Predicted: values, Actual: actual}
}

// TestGolden compares with testdata; SEALROOT_GOLDEN=1 writes it anew.
func TestGolden(t *testing.T) {
	schema, err := os.ReadFile("../../docs/status.schema.json")
	if err != nil {
		t.Fatal(err)
	}
	for name, in := range situations() {
		t.Run(name, func(t *testing.T) {
			s := New(in)
			asJSON, err := s.JSON()
			if err != nil {
				t.Fatal(err)
			}
			goldentest.Check(t, name+".txt", s.Text())
			goldentest.Check(t, name+".json", string(asJSON))
			for _, problem := range schematest.Check(schema, asJSON) {
				t.Error(problem)
			}
		})
	}
}

// The state is lost with the TPM only where nothing else opens the volume, and a recovery
// key counts that was enrolled since the boot.
func TestNoRecoveryKey(t *testing.T) {
	const lost = "when the TPM refuses, the state is lost"
	for _, tt := range []struct {
		name    string
		kinds   []volume.Kind
		keyFile bool
		lost    bool
		want    Recovery
	}{
		{"unread", nil, false, true, RecoveryNone},
		{"tpm_alone", []volume.Kind{volume.TPM2, volume.Manage}, false, true, RecoveryNone},
		{"passphrase", []volume.Kind{volume.TPM2, volume.Passphrase}, false, false, RecoveryNone},
		{"key_file", []volume.Kind{volume.Unknown}, true, false, RecoveryNone},
		{"of_another_program", []volume.Kind{volume.TPM2, volume.Unknown}, false, true, RecoveryNone},
		{"recovery_key_since", []volume.Kind{volume.TPM2, volume.Recovery}, false, false, RecoveryEnrolled},
	} {
		in := Input{Report: reportOf(1, func(r *report.Report) { r.State.Recovery = report.RecoveryNone }), KeyFile: tt.keyFile}
		for i, kind := range tt.kinds {
			in.Keyslots = append(in.Keyslots, volume.Keyslot{ID: i, Kind: kind})
		}
		s := New(in)
		if got := strings.Contains(strings.Join(s.ToDo, "; "), lost); got != tt.lost || s.Recovery != tt.want {
			t.Errorf("%s: to do %q, recovery key %s; want %s, and %q: %v", tt.name, s.ToDo, s.Recovery, tt.want, lost, tt.lost)
		}
	}
}

func TestGoldensHaveASituation(t *testing.T) {
	files, err := os.ReadDir("testdata")
	if err != nil {
		t.Fatal(err)
	}
	known := situations()
	for _, f := range files {
		name := strings.TrimSuffix(f.Name(), filepath.Ext(f.Name()))
		if _, ok := known[name]; !ok {
			t.Errorf("testdata/%s belongs to no situation", f.Name())
		}
	}
}

// TestTerminalIsSafe: the boot log and the report can hold anything.
func TestTerminalIsSafe(t *testing.T) {
	const evil = "x\x1b[2J\r\n\u009b1m\u202ey"
	in := situations()["fallback"]
	in.Log.Failures = map[string]bootlog.Failure{"b": {Reason: evil, Class: evil, Detail: evil, BootID: evil}}
	in.Log.Armed = evil
	r := committed()
	r.Name, r.Version, r.Build, r.Program, r.BootPath, r.Warnings = evil, evil, evil, evil, evil, []string{evil}
	r.Slot.Reason, r.Root.ImageVersion, r.Root.HashSource, r.State.Unlocked, r.State.Recovery = evil, evil, evil, evil, evil
	r.State.Attempts, r.Failures = []string{evil}, []report.Failure{{Stage: evil, Slot: evil, Class: evil, Error: evil}}
	r.TPM.Banks, r.TPM.Policy = []string{evil}, evil
	text, err := r.Encode()
	if err != nil {
		t.Fatal(err)
	}
	in.Report = text
	for _, c := range strings.ReplaceAll(New(in).Text(), "\n", "") {
		if c < ' ' || c >= 0x7f && c < 0xa0 || c == '\u202e' {
			t.Errorf("the text has %U", c)
		}
	}
	if !strings.Contains(New(in).Text(), "x?[2J??") {
		t.Error("the text shows nothing of the detail: this test proves nothing")
	}
}

func FuzzNew(f *testing.F) {
	for _, in := range situations() {
		f.Add(in.Report, "detail")
	}
	f.Fuzz(func(t *testing.T, text []byte, detail string) {
		s := New(Input{
			Report: text, Slots: slotsOf(slots.Slot{Priority: 1}, slots.Slot{}),
			Log: bootlog.Record{Failures: map[string]bootlog.Failure{"a": {Detail: detail}}},
		})
		if strings.ContainsRune(s.Text(), 0x1b) {
			t.Error("an escape sequence reaches the terminal")
		}
		out, err := s.JSON()
		if err != nil || !json.Valid(out) {
			t.Errorf("JSON() = %q, %v; want valid JSON", out, err)
		}
		if !s.Booted() && string(s.Boot) != "null" {
			t.Errorf("a report that cannot be read is passed on: %q", s.Boot)
		}
	})
}
