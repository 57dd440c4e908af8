package qemutests

import (
	"encoding/hex"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"sealroot/init/report"
	"sealroot/state/layout"
	"sealroot/verity/signature"
)

// madeLayer makes the image of a layer with one file, signed with the keys of that name;
// it returns the content of the image and its root hash.
func madeLayer(t *testing.T, name, keys, path, content string) (image, hash string) {
	t.Helper()
	tree, out := t.TempDir(), filepath.Join(t.TempDir(), "layer.raw")
	writeFile(t, filepath.Join(tree, path), []byte(content), 0o755)
	said := tool(t, filepath.Join(buildDir, "sealroot-mkinitramfs"), "layer", "--name", name, "--tree", tree,
		"--keys", keyFolder(t, keys), "--version", "1", "--for", "ID=probe", "-o", out)
	return string(readFile(t, out)), strings.TrimSpace(said)
}

// A layer that root adds on the running system is verified and counted like one of the
// image: on trial at first, measured, gone when it is removed. What the configuration does
// not allow, or another key has signed, is refused by the command, and by PID 1 when the
// list is written by hand; the same way with the right key and name is the control. A
// layer that breaks the boot is dropped by the second try, with what else was changed, and
// the committed slot stays as it was.
func TestRootAddedLayers(t *testing.T) {
	t.Parallel()
	const folder = "/usr/share/layers/"
	own := layerImages(t, []string{"low"}, map[string]string{"low/usr/share/low": "low\n"})
	good, goodHash := madeLayer(t, "extra-good", "", "usr/share/extra", "extra\n")
	bad, _ := madeLayer(t, "extra-bad", "", "usr/sbin/init", "#!/no/such/interpreter\n")
	evil, evilHash := madeLayer(t, "extra-evil", "stranger", "usr/share/evil", "evil\n")
	other, otherHash := madeLayer(t, "other", "", "usr/share/other", "other\n")
	disk := Image{
		Edit: []string{"root: [image.crt]\n", "root: [image.crt]\n  layer: [image.crt]\n", "etc: overlay\n", "etc: overlay\nlayers_allowed: [extra-*]\n" + own},
		Extra: map[string]string{
			folder[1:] + "good.raw": good, folder[1:] + "bad.raw": bad, folder[1:] + "evil.raw": evil, folder[1:] + "other.raw": other,
		},
	}.Build(t)
	before := disk.Slot(t, "a")
	m := directMachine(t, disk).WithTPM()
	vm := m.Boot()
	if r := vm.UpIn("a"); r.LayerList != "" || layersText(r) != "low 7" {
		t.Errorf("a new machine: list %q, layers %s", r.LayerList, layersText(r))
	}
	for _, refused := range []struct{ command, says string }{
		{"add " + folder + "evil.raw", signature.ErrUnknownSigner.Error()},
		{"add " + folder + "other.raw", "does not allow a layer other"},
		{"add /etc/from-image", "not the image of a layer"},
		{"remove low", "no layer"},
		{"override no-such off", "no layer"},
	} {
		if said, status := vm.TryRun("sealroot layer " + refused.command); status == 0 || !strings.Contains(said, refused.says) {
			t.Errorf("%s: status %d, %q; want it refused for %q", refused.command, status, said, refused.says)
		}
	}
	if got := vm.Run("ls /state/.layers"); strings.Count(got, ".raw") != 1 {
		t.Errorf("after what was refused there are layers\n%s", got)
	}
	vm.Run("sealroot layer add " + folder + "good.raw")
	vm.PowerOff()

	vm = m.Boot()
	r := vm.UpIn("a")
	if layersText(r) != "low 7, extra-good 1" || !r.LayerTrial || len(unexpected(r)) > 0 {
		t.Errorf("with a layer: %s, on trial %v, warnings %q", layersText(r), r.LayerTrial, unexpected(r))
	}
	if got := vm.Run("cat /usr/share/extra /usr/share/low"); got != "extra\nlow" {
		t.Errorf("what the layers hold: %q", got)
	}
	if got := vm.Run("sealroot status --pcrs"); !strings.Contains(got, "sealroot:layer:"+goodHash+":extra-good") || strings.Contains(got, "DIFFERS") || !strings.Contains(got, "layers are on trial") {
		t.Errorf("sealroot status --pcrs:\n%s", got)
	}
	if said, status := vm.TryRun("sealroot layer add " + folder + "bad.raw"); status == 0 || !strings.Contains(said, "sealroot commit") {
		t.Errorf("a change during a trial: status %d, %q", status, said)
	}
	vm.Run("sealroot commit")
	if said := vm.Run("sealroot verify"); !strings.Contains(said, "layers (low, extra-good)") {
		t.Errorf("sealroot verify: %q", said)
	}
	vm.Run("sealroot layer add " + folder + "bad.raw")
	vm.Run("sealroot layer override low off")
	vm.PowerOff()

	vm = m.Boot()
	vm.Expect(`cannot boot: .*cannot start /sbin/init`, bootTime)
	vm.Expect(`restarting in`, commandTime)
	vm.Kill()
	vm = m.Boot()
	r = vm.UpIn("a")
	if layersText(r) != "low 7, extra-good 1" || r.LayerTrial || r.FellBack != nil || r.Slot.Reason != "committed" || !slices.ContainsFunc(r.Warnings, func(w string) bool { return strings.Contains(w, "did not come up") }) {
		t.Errorf("after a layer that breaks the boot: %s, slot %+v, fell back %+v, warnings %q", layersText(r), r.Slot, r.FellBack, r.Warnings)
	}
	if after := disk.Slot(t, "a"); after != before {
		t.Errorf("slot a is %+v, was %+v", after, before)
	}
	if got := vm.Run("sealroot layer list"); !strings.Contains(got, "dropped") {
		t.Errorf("sealroot layer list:\n%s", got)
	}
	vm.Run("sealroot layer remove extra-bad")
	vm.Run("sealroot layer remove extra-good")
	vm.Run("sealroot layer override low off")
	// What the command refuses, written by hand.
	list := layout.State + "/" + layout.Volume + "/" + layout.LayerList
	for name, l := range map[string]struct{ file, hash string }{"extra-evil": {"evil.raw", evilHash}, "other": {"other.raw", otherHash}} {
		vm.Run("cp " + folder + l.file + " " + layout.State + "/" + layout.LayerImage(name, l.hash))
		vm.Run("append " + list + " add " + name + " " + l.hash)
	}
	vm.Run("sealroot layer override extra-evil on") // else nobody has asked for that list
	vm.PowerOff()

	vm = m.Boot()
	r = vm.UpIn("a")
	why := map[string]string{}
	for _, l := range r.Layers {
		why[l.Name] = l.LeftOut
	}
	if len(why) != 3 || why["low"] != report.LayerOff || !strings.Contains(why["extra-evil"], signature.ErrUnknownSigner.Error()) || !strings.Contains(why["other"], "layers_allowed") {
		t.Errorf("with a list that was written by hand: %q", why)
	}
	if said, status := vm.TryRun("cat /usr/share/evil /usr/share/other /usr/share/extra /usr/share/low"); status == 0 {
		t.Errorf("what nobody vouches for is there: %q", said)
	}
	if got := vm.Run("sealroot status --pcrs"); strings.Contains(got, "DIFFERS") || strings.Contains(got, evilHash) {
		t.Errorf("sealroot status --pcrs:\n%s", got)
	}
	vm.Run("sealroot commit")
	if _, err := hex.DecodeString(r.LayerList); err != nil || r.LayerList == "" {
		t.Errorf("the list is %q", r.LayerList)
	}
	vm.PowerOff()
}
