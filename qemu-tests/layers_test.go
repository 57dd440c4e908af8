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
// the configuration that names them, from the lowest up. A name may have another file
// system than squashfs behind it: "top:erofs".
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
		for _, entry := range names {
			name, filesystem, other := strings.Cut(entry, ":")
			tree := t.TempDir()
			for path, content := range files {
				if layer, in, _ := strings.Cut(path, "/"); layer == name {
					writeFile(t, filepath.Join(tree, in), []byte(content), 0o644)
				}
			}
			args := []string{"layer", "--name", name, "--tree", tree, "--keys", keysDir(t), "--version", "7", "-o", filepath.Join(dir, name+".raw")}
			if other {
				args = append(args, "--filesystem", filesystem)
			}
			for _, line := range system {
				args = append(args, "--for", line)
			}
			tool(t, program, args...)
		}
	})
	section = "layers:\n"
	for _, entry := range names {
		name, filesystem, other := strings.Cut(entry, ":")
		if other {
			filesystem = ", filesystem: " + filesystem
		}
		section += fmt.Sprintf("  - {name: %s, image: %s/%s.raw, on_failure: skip%s}\n", name, dir, name, filesystem)
	}
	return section
}

// layerLine is the line of a section that names a layer.
func layerLine(t *testing.T, section, name string) string {
	t.Helper()
	for line := range strings.Lines(section) {
		if strings.HasPrefix(line, "  - {name: "+name+",") {
			return line
		}
	}
	t.Fatalf("no layer %s in %q", name, section)
	return ""
}

// layerFiles are the names of the layers whose files the state partition holds, sorted: a
// name for each file.
func layerFiles(vm *VM) string {
	var names []string
	for file := range strings.Lines(vm.Run("ls /state/.layers")) {
		name := filepath.Base(strings.TrimSpace(file))
		names = append(names, name[:strings.LastIndex(name, "-")])
	}
	slices.Sort(names)
	return strings.Join(names, " ")
}

// Layers over the root, in their order and measured as predicted, with the root where a
// root is and nothing left of how it came there. One whose bytes were changed is left out,
// or costs its slot the boot, as configured, and comes back with a set of parts. Each slot
// has a list of its own: the trial that fails takes nothing of the other's, nor does the
// commit of a version with other layers, which collects those of the version that its slot
// had before; a rollback has the old ones again.
func TestRootLayers(t *testing.T) {
	t.Parallel()
	const which = "usr/share/which"
	all := layerImages(t, []string{"low", "mid", "gone", "top", "before"}, map[string]string{
		"low/" + which: "low\n", "low/usr/share/low": "low\n",
		"mid/" + which: "mid\n", "mid/usr/share/mid": "mid, which is not the others\n",
		"gone/usr/share/gone": "gone\n", "gone/" + unreadFile: unread(), "before/usr/share/before": "before\n",
		"top/etc/top.conf": "top\n", "top/usr/share/top": "top\n",
	})
	later := layerImages(t, []string{"top", "new"}, map[string]string{
		"top/etc/top.conf": "top 2\n", "top/usr/share/top": "top 2\n", "new/usr/share/new": "new\n",
	})
	before := layerLine(t, all, "before")
	layers := strings.Replace(all, before, "", 1)
	image := Image{
		Edit: []string{"etc: overlay\n", "etc: overlay\n" + layers},
		B:    &SlotB{Mode: "good", Edit: []string{"etc: overlay\nlayers:\n", "etc: overlay\nlayers:\n" + before, "on_failure: skip", "on_failure: stop"}},
	}
	disk := image.Build(t)
	update := image
	update.Edit = []string{"tries: 3", "tries: 3\n  eager_check: true", "etc: overlay\n", "etc: overlay\nlayers:\n" + layerLine(t, all, "low") + layerLine(t, all, "mid") + layerLine(t, later, "top") + layerLine(t, later, "new")}
	next := readFile(t, update.next(t).Parts(t))
	m := directMachine(t, disk).WithTPM().withParts(t, next)
	vm := m.Boot()
	r := vm.UpIn("a")
	if len(r.Failures)+len(unexpected(r)) > 0 || r.State.Unlocked != "created" {
		t.Errorf("state %+v, warnings %q, failures %q; want a new volume and no words", r.State, r.Warnings, failuresText(r))
	}
	if got := layersText(r); got != "low 7, mid 7, gone 7, top 7" {
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

	disk.damageLayer(t, layers, "mid", 0)
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
	if got := layersText(r); !strings.HasPrefix(got, "low 7, mid left out: cannot use layer mid: ") || !strings.HasSuffix(got, ", gone 7, top 7") {
		t.Errorf("layers %s, want mid left out", got)
	}
	if got := vm.Run("cat /" + which + " /etc/top.conf /usr/share/gone"); got != "low\ntop\ngone" {
		t.Errorf("without mid: %q", got)
	}
	// The slot that failed can be tried again.
	vm.Run("sealroot commit")
	if got := layerFiles(vm); got != "before gone low mid top" {
		t.Errorf("after a trial that failed and a commit of the other slot there are layers %s", got)
	}

	// A set of parts brings back the one that was changed, and those that are not there.
	vm.Run("sealroot install /dev/vdb")
	if got := layerFiles(vm); got != "before gone low mid new top top" {
		t.Errorf("after install there are layers %s", got)
	}
	vm.PowerOff()
	m.LoadSlot("b")
	vm = m.Boot()
	if r = vm.UpIn("b"); layersText(r) != "low 7, mid 7, top 7, new 7" || !r.Slot.Trial {
		t.Errorf("layers of the next version: %s, slot %+v", layersText(r), r.Slot)
	}
	const content = "cat /" + which + " /usr/share/low /usr/share/mid /usr/share/top /etc/top.conf "
	if got := vm.Run(content + "/usr/share/new"); got != "mid\nlow\nmid, which is not the others\ntop 2\ntop 2\nnew" {
		t.Errorf("what the layers of the next version hold: %q", got)
	}
	if said, status := vm.TryRun("cat /usr/share/gone"); status == 0 {
		t.Errorf("the next version has a layer of the one before: %q", said)
	}
	if said := vm.Run("sealroot check --commit"); !strings.Contains(said, "hash tree, with layer low, with layer mid, with layer top, with layer new") {
		t.Errorf("sealroot check --commit: %q", said)
	}
	if got := layerFiles(vm); got != "gone low mid new top top" {
		t.Errorf("after commit there are layers %s; want those of both slots, and not what b had before", got)
	}
	vm.Run("sealroot rollback")
	vm.PowerOff()
	// In the middle of a file that no boot reads, of a layer that slot a alone has.
	disk.damageLayer(t, layers, "gone", len(unread())/2)
	m.LoadSlot("a")
	vm = m.Boot()
	if r = vm.UpIn("a"); layersText(r) != "low 7, mid 7, gone 7, top 7" || r.FellBack == nil || !strings.Contains(r.FellBack.Reason, "rolled back") || r.Slot.Trial {
		t.Errorf("after the rollback: layers %s, slot %+v, fell back %+v", layersText(r), r.Slot, r.FellBack)
	}
	if got := vm.Run(content + "/usr/share/gone"); got != "mid\nlow\nmid, which is not the others\ntop\ntop\ngone" {
		t.Errorf("what the layers hold after the rollback: %q", got)
	}
	if said, status := vm.TryRun("cat /usr/share/new"); status == 0 {
		t.Errorf("after the rollback there is a layer of the next version: %q", said)
	}
	vm.Run("sealroot commit")
	if got := layerFiles(vm); got != "gone low mid new top top" {
		t.Errorf("after a commit of the old version there are layers %s; want those of both slots", got)
	}
	if said, status := vm.TryRun("sealroot verify a"); status != 6 || !strings.Contains(said, "layer gone: ") || strings.Contains(said, "layer mid: ") {
		t.Errorf("sealroot verify a: status %d, %q; want 6 for layer gone alone", status, said)
	}
	if said := vm.Run("sealroot verify b"); !strings.Contains(said, "layers (low, mid, top, new)") { // the control
		t.Errorf("sealroot verify b: %q", said)
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

// damageLayer flips a bit of the block at a place of a layer's data, as it lies on the
// state partition.
func (d *Disk) damageLayer(t *testing.T, section, name string, at int) {
	t.Helper()
	_, path, _ := strings.Cut(section, "name: "+name+", image: ")
	path, _, _ = strings.Cut(path, ",")
	image, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	block := image[1<<20+at&^4095:][:4096] // where the first partition begins
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
