package qemutests

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"sealroot/init/config"
	"sealroot/init/report"
	"sealroot/slots/manifest"
)

// As many layers as there may be in one overlay: a hundred images, each behind a hash tree
// of its own, and three hundred directories of the volume over them. The kernel of one slot
// takes them one by one, that of the other only by the options of mount(2). All are there,
// in their order. (More are refused where the image is built: init/config, mkinitramfs/disk.)
func TestRootManyLayers(t *testing.T) {
	t.Parallel()
	const which, of = "usr/share/which", "usr/share/of"
	var images []string
	files := map[string]string{}
	section, fill := "", "#!/sbin/init\nmkdir /state/encrypted/.layers\n"
	for i := range config.MaxLayers {
		name := fmt.Sprintf("layer-%d", i)
		if i < manifest.MaxLayers {
			images = append(images, name)
			files[name+"/"+which], files[name+"/"+of+"/"+name] = name+"\n", name+"\n"
			continue
		}
		section += fmt.Sprintf("  - {name: %s, from: encrypted, verity: none}\n", name)
		dir := "/state/encrypted/.layers/" + name
		for _, below := range []string{"", "/usr", "/usr/share", "/" + of, "/" + of + "/" + name} {
			fill += "mkdir " + dir + below + "\n"
		}
		if i%50 == 49 { // each is a sync
			fill += fmt.Sprintf("write %s/%s %s\n", dir, which, name)
		}
	}
	layers := layerImages(t, images, files) + section
	disk := Image{
		Edit: []string{"etc: overlay\n", "etc: overlay\n" + layers}, Kernel: "6.12", B: &SlotB{Mode: "good", Kernel: "6.1"},
		Extra: map[string]string{"usr/bin/fill": fill},
	}.Build(t)
	m := directMachine(t, disk).WithTPM()
	up := func(slot string, most int) (*VM, report.Report) {
		t.Helper()
		m.LoadSlot(slot)
		vm := m.Boot()
		r := vm.UpIn(slot)
		top, want := 0, fmt.Sprintf("layer-%d", most-1)
		for i, l := range r.Layers {
			if l.LeftOut == "" {
				top++
			} else if !l.Absent || i < most {
				t.Errorf("slot %s: layer %s is left out: %s", slot, l.Name, l.LeftOut)
			}
		}
		if got := vm.Run("cat /" + which); top != most || got != want || len(r.Layers) != config.MaxLayers {
			t.Errorf("slot %s: %d layers of %d are in use, the topmost is %q; want %d, %s", slot, top, len(r.Layers), got, most, want)
		}
		if got := strings.Count(vm.Run("ls /"+of), "layer-"); got != most {
			t.Errorf("slot %s: %d layers have left their names, want %d", slot, got, most)
		}
		for _, s := range r.Stages {
			if s.Name == "layers" || s.Name == "measure" {
				t.Logf("slot %s, %d layers: stage %s %.1f s, at %.1f s", slot, most, s.Name, float64(s.End-s.Start)/1e6, float64(s.End)/1e6)
			}
		}
		return vm, r
	}
	vm, _ := up("a", manifest.MaxLayers)
	vm.Run("/usr/bin/fill")
	vm.PowerOff()
	for _, slot := range []string{"a", "b"} {
		vm, r := up(slot, config.MaxLayers)
		if len(r.Failures)+len(unexpected(r)) > 0 {
			t.Errorf("slot %s: warnings %q, failures %q", slot, r.Warnings, failuresText(r))
		}
		if slot == "b" {
			// A busy host may keep it from being done in its 30 s.
			for tries := 1; !vm.exits(); tries++ {
				if tries == 2 {
					t.Fatal("the exit program is twice not done in time")
				}
				vm, _ = up(slot, config.MaxLayers)
			}
			continue
		}
		vm.Run("sealroot rollback")
		vm.PowerOff()
	}
}

// exits powers the machine off by the exit program, and tells whether that could unmount
// everything within its time.
func (vm *VM) exits() bool {
	vm.t.Helper()
	vm.Run("sealroot exit-program")
	began := time.Now()
	vm.post("shutdown poweroff")
	said := vm.Expect(`exit: (everything is unmounted \(poweroff\)|a disk does not answer)`, commandTime)[1]
	vm.t.Logf("exit program: %s after %s", said, time.Since(began).Round(time.Second/10))
	vm.WaitPowerOff(commandTime)
	return said != "a disk does not answer"
}
