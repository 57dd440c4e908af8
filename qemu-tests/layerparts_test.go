package qemutests

import (
	"fmt"
	"path/filepath"
	"strings"
	"testing"
)

// inPartitions has the layers of a section in partitions of the slot.
func inPartitions(section, onFailure string) string {
	return strings.ReplaceAll(section, "on_failure: skip", "from: partition, on_failure: "+onFailure)
}

// Layers in partitions of the slot, on a machine that keeps no state: measured as
// predicted, written by an update into the other slot, where they are on trial as the root
// is. One whose bytes were changed there costs that slot the boot, and the layers of the
// other slot are those of before. Of three that may be left out none is used: one is
// corrupted, one whole but not the one of the configuration and signed by a stranger, one
// in its partition only on another disk. One has another file system than the root, and in
// the update, a development build, is for such builds alone. The control is the first boot, with all three.
// The root is written to in memory: changes of it and of its layers end with the boot, and
// are no image's.
func TestRootLayersInPartitions(t *testing.T) {
	t.Parallel()
	const which = "usr/share/which"
	const inMemory = "overlays: [{path: /, upper: memory}]\n"
	names := []string{"low", "mid", "top:erofs"}
	first := layerImages(t, names, map[string]string{"low/" + which: "low 1\n", "mid/usr/share/mid": "mid 1\n", "top/usr/share/top": "top 1\n"})
	second := layerImages(t, names, map[string]string{"low/" + which: "low 2\n", "mid/usr/share/mid": "mid 2, which is longer\n", "top/usr/share/top": "top 2\n"})
	yaml := string(readFile(t, Image{}.whole().configFile()))
	from, end := strings.Index(yaml, "  create: first-boot\n"), strings.Index(yaml, "\netc: overlay\n")
	if from < 0 || end < from {
		t.Fatal("the configuration has no section state")
	}
	of := func(layers string) Image {
		return Image{Edit: []string{yaml[from:end], "  create: none\n", "etc: overlay\n", "etc: overlay\n" + inMemory + layers}, Disk: []string{"--layer-size", "low=6M"}}
	}
	disk := of(inPartitions(first, "skip")).Build(t)
	if p := disk.Part(t, "layer-low-b"); p.Bytes != 6<<20 {
		t.Errorf("layer-low-b has %d bytes, want 6 MiB", p.Bytes)
	}
	update := of(strings.Replace(inPartitions(second, "stop"), "{name: top,", "{name: top, build: development,", 1)).next(t)
	update.Disk = nil
	update.Edit = append(update.Edit, "build: production", "build: development")
	m := directMachine(t, disk).WithTPM().withParts(t, readFile(t, update.Parts(t)))
	vm := m.Boot()
	r := vm.UpIn("a")
	if layersText(r) != "low 7, mid 7, top 7" || len(r.Failures)+len(unexpected(r)) > 0 {
		t.Errorf("layers %s, warnings %q, failures %q", layersText(r), r.Warnings, failuresText(r))
	}
	const all = "cat /" + which + " /usr/share/mid /usr/share/top"
	if got := vm.Run(all); got != "low 1\nmid 1\ntop 1" {
		t.Errorf("what the layers hold: %q", got)
	}
	if got := vm.Run("sealroot status --pcrs"); strings.Count(got, "sealroot:layer:") < 3 || strings.Contains(got, "DIFFERS") {
		t.Errorf("sealroot status --pcrs:\n%s", got)
	}
	if got := vm.Run("cat /proc/filesystems"); !strings.Contains(got, "erofs") {
		t.Errorf("the kernel has no erofs, which layer top is:\n%s", got)
	}
	vm.Run("write /usr/bin/new changed")
	vm.Run("write /" + which + " changed")
	if got := vm.Run("cat /usr/bin/new /" + which); got != "changed\nchanged" {
		t.Errorf("what was changed reads %q", got)
	}
	if got := vm.Run("cat /proc/self/mountinfo"); strings.Contains(got, " / / ro") || strings.Contains(got, "changes") {
		t.Errorf("the root, or what is changed in it:\n%s", got)
	}
	vm.Run("sealroot verify a")
	vm.Run("sealroot install /dev/vdb")
	vm.PowerOff()

	m.LoadSlot("b")
	vm = m.Boot()
	if r = vm.UpIn("b"); layersText(r) != "low 7, mid 7, top 7" || !r.Slot.Trial || r.Build != "development" {
		t.Errorf("after the update: slot %+v, layers %s, a %s build", r.Slot, layersText(r), r.Build)
	}
	if got := vm.Run(all); got != "low 2\nmid 2, which is longer\ntop 2" {
		t.Errorf("what the layers of the update hold: %q", got)
	}
	vm.PowerOff()

	disk.Flip(t, "layer-low-b", 5)
	vm = m.Boot()
	vm.Expect(`cannot boot: .*cannot use layer low: `, bootTime)
	vm.Expect(`restarting in`, commandTime)
	vm.Kill()
	m.LoadSlot("a")
	vm = m.Boot()
	r = vm.UpIn("a")
	if r.FellBack == nil || r.FellBack.From != "b" || r.FellBack.Class != "image" || !strings.Contains(r.FellBack.Reason, "layer low") {
		t.Errorf("fell back %+v, want from b by its layer low", r.FellBack)
	}
	if got := vm.Run(all); layersText(r) != "low 7, mid 7, top 7" || got != "low 1\nmid 1\ntop 1" {
		t.Errorf("after the fallback: layers %s, %q", layersText(r), got)
	}
	if said, status := vm.TryRun("cat /usr/bin/new"); status == 0 {
		t.Errorf("what was changed in memory is there after a restart: %q", said)
	}
	if said, status := vm.TryRun("sealroot verify b"); status != 6 || !strings.Contains(said, "layer low") {
		t.Errorf("sealroot verify b: status %d, %q; want 6 for its layer", status, said)
	}
	vm.Run("sealroot replicate")
	vm.Run("sealroot verify b")
	vm.PowerOff()

	disk.Flip(t, "layer-low-a", 5)
	evil, _ := madeLayer(t, "mid", "stranger", "usr/share/mid", "evil\n")
	for i, part := range []string{"", "-verity", "-verity-sig"} { // as layer.Pack has them
		disk.Write(t, "layer-mid-a"+part, 0, []byte(evil[(i+1)<<20:][:1<<20]))
	}
	other := filepath.Join(t.TempDir(), "other.img")
	tool(t, "truncate", "-s", "16M", other)
	tool(t, "cgpt", "create", other)
	tool(t, "cgpt", "boot", "-p", other) // sfdisk wants the protective MBR
	for i, part := range []string{"", "-verity", "-verity-sig"} {
		p := disk.Part(t, "layer-top-a"+part)
		tool(t, "cgpt", "add", "-b", fmt.Sprint(2048*(1+4*i)), "-s", fmt.Sprint(min(int(p.Bytes/512), 4*2048)), "-t", p.Type, "-l", p.Name, other)
		(&Disk{Path: other}).Write(t, p.Name, 0, disk.Read(t, p.Name, 0, min(p.Bytes, 4<<20)))
		tool(t, "cgpt", "add", "-i", fmt.Sprint(p.Number), "-l", "was-top"+part, disk.Path)
	}
	m.WithDisk(other)
	vm = m.Boot()
	r = vm.UpIn("a")
	got := layersText(r)
	for _, want := range []string{
		"low left out: cannot use layer low: ", "mid left out: cannot use layer mid: ", "top left out: cannot use layer top: ",
		`a block does not match the hash tree`, `cannot find partition layer-top-a on /dev/vda`,
	} {
		if !strings.Contains(got, want) {
			t.Errorf("layers %s; want %q", got, want)
		}
	}
	if said, status := vm.TryRun(all); status == 0 || strings.Contains(said, "evil") {
		t.Errorf("what the layers held is there: %q", said)
	}
	vm.Run("sealroot verify b")
	vm.PowerOff()
}
