package qemutests

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"sealroot/init/report"
)

// layerImages makes images of layers for the probe's root and returns the section of
// the configuration that names them, from the lowest up.
func layerImages(t *testing.T, names []string, files map[string]string) (section string) {
	t.Helper()
	return layerImagesFor(t, []string{"ID=probe"}, names, files)
}

// layerImagesFor makes them for another root: system are lines of its os-release.
func layerImagesFor(t *testing.T, system, names []string, files map[string]string) (section string) {
	t.Helper()
	program := filepath.Join(buildDir, "sealroot-mkinitramfs")
	text, err := os.ReadFile(program)
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(append(text, fmt.Sprint(system, names, files)...))
	dir, err := filepath.Abs(filepath.Join(buildDir, "images", "layers-"+hex.EncodeToString(sum[:6])))
	if err != nil {
		t.Fatal(err)
	}
	once(t, dir, func(dir string) {
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		for _, name := range names {
			tree := t.TempDir()
			for path, content := range files {
				if layer, in, _ := strings.Cut(path, "/"); layer == name {
					writeFile(t, filepath.Join(tree, in), []byte(content), 0o644)
				}
			}
			args := []string{"layer", "--name", name, "--tree", tree, "--keys", keysDir(t), "--version", "7", "-o", filepath.Join(dir, name+".raw")}
			for _, line := range system {
				args = append(args, "--for", line)
			}
			tool(t, program, args...)
		}
	})
	section = "layers:\n"
	for _, name := range names {
		section += fmt.Sprintf("  - {name: %s, image: %s/%s.raw, on_failure: skip}\n", name, dir, name)
	}
	return section
}

// Three layers over the root, in their order and measured as predicted, with the root
// where a root is and nothing left of how it came there. One whose bytes were changed
// is left out, or costs its slot the boot, as configured, and comes back with a set of
// parts.
func TestRootLayers(t *testing.T) {
	t.Parallel()
	const which = "usr/share/which"
	layers := layerImages(t, []string{"low", "mid", "top"}, map[string]string{
		"low/" + which: "low\n", "low/usr/share/low": "low\n",
		"mid/" + which: "mid\n", "mid/usr/share/mid": "mid, which is not the others\n",
		"top/etc/top.conf": "top\n",
	})
	image := Image{
		Edit: []string{"etc: overlay\n", "etc: overlay\n" + layers},
		B:    &SlotB{Mode: "good", Edit: []string{"on_failure: skip", "on_failure: stop"}},
	}
	disk := image.Build(t)
	next := readFile(t, image.next(t).Parts(t))
	m := directMachine(t, disk).WithTPM().withParts(t, next)
	vm := m.Boot()
	r := vm.UpIn("a")
	if len(r.Failures)+len(unexpected(r)) > 0 || r.State.Unlocked != "created" {
		t.Errorf("state %+v, warnings %q, failures %q; want a new volume and no words", r.State, r.Warnings, failuresText(r))
	}
	if got := layersText(r); got != "low 7, mid 7, top 7" {
		t.Errorf("layers %s", got)
	}
	if got := vm.Run("cat /" + which + " /usr/share/low /usr/share/mid /etc/top.conf /etc/from-image /var/lib/from-image"); got != "mid\nlow\nmid, which is not the others\ntop\netc of the image\nvar of the image" {
		t.Errorf("what the layers hold: %q", got)
	}
	want := []string{"/ overlay ro", "/dev devtmpfs rw", "/dev/pts devpts rw", "/dev/shm tmpfs rw", "/etc overlay rw", "/home ext4 rw", "/proc proc rw", "/run tmpfs rw", "/state ext4 rw", "/state/encrypted ext4 rw", "/sys sysfs rw", "/var ext4 rw"}
	if got := mounts(vm.Run("cat /proc/1/mountinfo")); !slices.Equal(got, want) {
		t.Errorf("mounts\n%q, want\n%q", got, want)
	}
	if got := vm.Run("ls /run/systemd"); !strings.Contains(got, "/run/systemd/volatile-root") {
		t.Errorf("volatile-root: %q", got)
	}
	if got := vm.Run("sealroot status --pcrs"); !strings.Contains(got, "sealroot:layer:") || strings.Contains(got, "DIFFERS") {
		t.Errorf("sealroot status --pcrs:\n%s", got)
	}
	var status struct {
		PCRs []struct {
			PCR                     int
			Bank, Actual, Predicted string
		}
	}
	unmarshal(t, vm.Run("sealroot status --json --pcrs"), &status)
	vm.PowerOff()
	var predicted struct{ PCRs []predictedPCR }
	unmarshal(t, tool(t, filepath.Join(buildDir, "sealroot-mkinitramfs"), "predict", "--json", disk.Path), &predicted)
	compared := 0
	for _, p := range predicted.PCRs {
		for _, is := range status.PCRs {
			if p.PCR == 13 && is.PCR == 13 && p.When == "booted" {
				compared++
				if is.Actual != p.Digests[is.Bank] {
					t.Errorf("PCR 13 of bank %s is %s, predicted %s", is.Bank, is.Actual, p.Digests[is.Bank])
				}
			}
		}
	}
	if compared == 0 {
		t.Error("PCR 13 was not compared")
	}

	disk.damageLayer(t, layers, "mid")
	disk.setSlot(t, "b", SlotBits{14, 3, 0})
	m.LoadSlot("b")
	vm = m.Boot()
	vm.Expect(`cannot boot: .*cannot use layer mid: `, bootTime)
	vm.Expect(`restarting in`, commandTime)
	vm.Kill()
	m.LoadSlot("a")
	vm = m.Boot()
	r = vm.UpIn("a")
	if r.FellBack == nil || r.FellBack.From != "b" || r.FellBack.Class != "image" || !strings.Contains(r.FellBack.Reason, "layer mid") {
		t.Errorf("fell back %+v, want from b by its layer mid", r.FellBack)
	}
	if got := layersText(r); !strings.HasPrefix(got, "low 7, mid left out: cannot use layer mid: ") || !strings.HasSuffix(got, ", top 7") {
		t.Errorf("layers %s, want mid left out", got)
	}
	if got := vm.Run("cat /" + which + " /etc/top.conf"); got != "low\ntop" {
		t.Errorf("without mid: %q", got)
	}

	// A set of parts brings back the one that was changed, and no other.
	before := vm.Run("ls /state/.layers")
	vm.Run("sealroot install /dev/vdb")
	if after := vm.Run("ls /state/.layers"); after != before || strings.Count(after, ".raw") != 3 {
		t.Errorf("layers after install\n%s, before\n%s", after, before)
	}
	vm.PowerOff()
	m.LoadSlot("b")
	vm = m.Boot()
	if r = vm.UpIn("b"); layersText(r) != "low 7, mid 7, top 7" {
		t.Errorf("layers of the next version: %s", layersText(r))
	}
	vm.Run("sealroot commit")
	if after := vm.Run("ls /state/.layers"); after != before {
		t.Errorf("layers after commit\n%s, before\n%s", after, before)
	}
	vm.PowerOff()
}

func unmarshal(t *testing.T, text string, v any) {
	t.Helper()
	if err := json.Unmarshal([]byte(text), v); err != nil {
		t.Fatalf("%v:\n%s", err, text)
	}
}

// layersText is the report's list of layers.
func layersText(r report.Report) string {
	var all []string
	for _, l := range r.Layers {
		text := l.Name + " " + l.Version
		if l.LeftOut != "" {
			text = l.Name + " left out: " + l.LeftOut
		}
		all = append(all, text)
	}
	return strings.Join(all, ", ")
}

// mounts are place, type and the first attribute of each mount, sorted.
func mounts(mountinfo string) []string {
	var all []string
	for line := range strings.Lines(mountinfo) {
		before, after, _ := strings.Cut(line, " - ")
		f := strings.Fields(before)
		all = append(all, f[4]+" "+strings.Fields(after)[0]+" "+strings.Split(f[5], ",")[0])
	}
	slices.Sort(all)
	return all
}

// damageLayer flips a bit of the first block of a layer's data, as it lies on the
// state partition.
func (d *Disk) damageLayer(t *testing.T, section, name string) {
	t.Helper()
	_, path, _ := strings.Cut(section, "name: "+name+", image: ")
	path, _, _ = strings.Cut(path, ",")
	image, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	block := image[1<<20:][:4096] // where the first partition begins
	p := d.Part(t, "state")
	f, err := os.Open(d.Path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	buf := make([]byte, 4096)
	for at := int64(0); at < p.Bytes; at += 4096 {
		if _, err := f.ReadAt(buf, p.Offset+at); err != nil {
			t.Fatal(err)
		}
		if bytes.Equal(buf, block) {
			d.Flip(t, "state", at+5)
			return
		}
	}
	t.Fatalf("layer %s is not on the state partition", name)
}
