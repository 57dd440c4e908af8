package qemutests

import (
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"

	"sealroot/state/tpm"
	"sealroot/state/tpm/pcrsig"
	"sealroot/state/tpm/tpmtest"
)

// Whoever replays the event logs, the firmware's and ours, gets the values that
// tpm2_pcrread prints, in every bank; and the image alone predicts them.
func TestMeasureReplay(t *testing.T) {
	t.Parallel()
	banks := []tpm.Bank{pcrsig.SHA1, pcrsig.SHA256, pcrsig.SHA384}
	disk := Image{Config: "uki", SecureBoot: true, Extra: tpm2Tools(t)}.Build(t)
	m := NewMachine(t, UEFISecure, disk).WithTPM()
	tool(t, "swtpm_setup", "--tpm2", "--tpmstate", m.Config.TPM, "--pcr-banks", "sha1,sha256,sha384", "--overwrite")
	vm := m.Boot()
	r := vm.UpIn("a")
	if len(r.TPM.Banks) != len(banks) {
		t.Errorf("active banks %v, want %v", r.TPM.Banks, banks)
	}
	vm.Run("mount securityfs /sys/kernel/security")
	firmware := firmwarePCRs(t, vm.bytes("/sys/kernel/security/tpm0/binary_bios_measurements"))
	log := vm.bytes("/run/log/systemd/tpm2-measure.log")
	compared := []int{11, 12, 13, 15}
	actual := vm.pcrread(banks, compared)
	for _, bank := range banks {
		values, err := tpmtest.Replay(log, bank, firmware[bank])
		if err != nil {
			t.Fatal(err)
		}
		for _, pcr := range compared {
			if values[pcr] == nil { // nobody measured into it
				values[pcr] = make([]byte, len(actual[bank][pcr])/2)
			}
			if got, want := hex.EncodeToString(values[pcr]), actual[bank][pcr]; got != want {
				t.Errorf("PCR %d of bank %s: the logs give %s, tpm2_pcrread says %s", pcr, bank, got, want)
			}
		}
		if firmware[bank][11] == nil {
			t.Errorf("the firmware's log of bank %s has no PCR 11: this shows nothing of the stub", bank)
		}
	}
	// Without one of its records the log gives other values.
	short := log[:strings.LastIndex(string(log), "\x1e")]
	if values, err := tpmtest.Replay(short, pcrsig.SHA256, firmware[pcrsig.SHA256]); err != nil || hex.EncodeToString(values[15]) == actual[pcrsig.SHA256][15] {
		t.Errorf("control: PCR 15 without its last event is %x, %v", values[15], err)
	}
	if info := vm.Run("sealroot status --pcrs"); strings.Contains(info, "DIFFERS") || strings.Count(info, "as predicted") != 3*len(banks) {
		t.Errorf("sealroot status --pcrs:\n%s", info)
	}
	vm.PowerOff()
	for _, v := range predicted(t, disk) {
		if v.When != "booted" {
			continue
		}
		for _, bank := range banks {
			if got, want := v.Digests[string(bank)], actual[bank][v.PCR]; got != want {
				t.Errorf("PCR %d of bank %s: predicted %s, tpm2_pcrread says %s", v.PCR, bank, got, want)
			}
		}
	}
}

type predictedPCR struct {
	PCR     int
	When    string
	Digests map[string]string
}

// predicted is what sealroot-mkinitramfs predict says of a disk.
func predicted(t *testing.T, disk *Disk) []predictedPCR {
	t.Helper()
	var p struct{ PCRs []predictedPCR }
	text := tool(t, filepath.Join(buildDir, "sealroot-mkinitramfs"), "predict", "--json", disk.Path)
	if err := json.Unmarshal([]byte(text), &p); err != nil || len(p.PCRs) != 4 {
		t.Fatalf("predict --json: %v:\n%s", err, text)
	}
	return p.PCRs
}

// bytes returns a file of the guest.
func (vm *VM) bytes(path string) []byte {
	vm.t.Helper()
	data, err := hex.DecodeString(vm.Run("hex " + path))
	if err != nil {
		vm.t.Fatalf("%s: %v", path, err)
	}
	return data
}

// pcrread returns PCRs as the guest's tpm2_pcrread prints them, in lower case.
func (vm *VM) pcrread(banks []tpm.Bank, pcrs []int) map[tpm.Bank]map[int]string {
	vm.t.Helper()
	var list, selection []string
	for _, pcr := range pcrs {
		list = append(list, strconv.Itoa(pcr))
	}
	for _, bank := range banks {
		selection = append(selection, string(bank)+":"+strings.Join(list, ","))
	}
	return parsePCRs(vm.Run("tpm2 pcrread -T device:/dev/tpmrm0 " + strings.Join(selection, "+")))
}

// parsePCRs reads what tpm2_pcrread prints, and the end of what tpm2_eventlog
// does: banks with their PCRs below them.
func parsePCRs(text string) map[tpm.Bank]map[int]string {
	values := map[tpm.Bank]map[int]string{}
	bankLine, pcrLine := regexp.MustCompile(`^ +(sha\d+):$`), regexp.MustCompile(`^ +(\d+) *: 0x([0-9A-Fa-f]+)$`)
	var bank tpm.Bank
	for line := range strings.Lines(text) {
		line = strings.TrimRight(line, "\r\n ")
		if b := bankLine.FindStringSubmatch(line); b != nil {
			bank = tpm.Bank(b[1])
			values[bank] = map[int]string{}
		} else if p := pcrLine.FindStringSubmatch(line); p != nil {
			if pcr, err := strconv.Atoi(p[1]); err == nil {
				values[bank][pcr] = strings.ToLower(p[2])
			}
		}
	}
	return values
}

// firmwarePCRs are the values that tpm2_eventlog computes from the firmware's log.
func firmwarePCRs(t *testing.T, log []byte) map[tpm.Bank]tpm.Values {
	t.Helper()
	path := filepath.Join(t.TempDir(), "binary_bios_measurements")
	writeFile(t, path, log, 0o644)
	text := tool(t, "tpm2_eventlog", path)
	_, end, ok := strings.Cut(text, "\npcrs:\n")
	if !ok {
		t.Fatalf("tpm2_eventlog prints no PCRs:\n%s", text)
	}
	all := map[tpm.Bank]tpm.Values{}
	for bank, pcrs := range parsePCRs(end) {
		all[bank] = tpm.Values{}
		for pcr, value := range pcrs {
			digest, err := hex.DecodeString(value)
			if err != nil {
				t.Fatalf("tpm2_eventlog: PCR %d is %q", pcr, value)
			}
			all[bank][pcr] = digest
		}
	}
	return all
}

// tpm2Tools is the host's tpm2-tools with all libraries, as files for a root that
// has none.
func tpm2Tools(t *testing.T) map[string]string {
	t.Helper()
	const program = "/usr/bin/tpm2"
	const device = "/usr/lib/x86_64-linux-gnu/libtss2-tcti-device.so.0"
	return hostPrograms(t, program, device)
}

// hostPrograms are programs of this machine with all that they load, for the probe's
// root.
func hostPrograms(t *testing.T, programs ...string) map[string]string {
	t.Helper()
	paths := slices.Clone(programs)
	for _, field := range strings.Fields(tool(t, "ldd", programs...)) {
		if strings.HasPrefix(field, "/") && !strings.HasSuffix(field, ":") {
			paths = append(paths, field)
		}
	}
	files := map[string]string{}
	slices.Sort(paths)
	for _, path := range slices.Compact(paths) {
		content, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		// The probe's root has /lib as a link into /usr, and no /lib64.
		if strings.HasPrefix(path, "/lib/") {
			path = "/usr" + path
		}
		files[strings.TrimPrefix(path, "/")] = string(content)
	}
	if len(files) < 5 {
		t.Fatal(fmt.Errorf("%v have only the files %v", programs, paths))
	}
	return files
}
