package disk

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"sealroot/init/config"
	"sealroot/mkinitramfs/keys"
	"sealroot/mkinitramfs/tools"
	"sealroot/mkinitramfs/uki"
	"sealroot/slots/bls"
	"sealroot/slots/efi"
	"sealroot/slots/esp"
	"sealroot/slots/gpt"
	"sealroot/slots/grubenv"
)

// grubFiles are the files of two filled slots that GRUB loads.
func grubFiles(more ...string) []string {
	files := append(more, "EFI/BOOT/BOOTX64.EFI", "sealroot/grubenv")
	for _, slot := range []string{"a", "b"} {
		for _, name := range []string{"vmlinuz", "initrd", "manifest.json", "manifest.sig"} {
			files = append(files, "sealroot/"+slot+"/"+name)
		}
	}
	return files
}

func sdbootFiles(more ...string) []string {
	return append(more, "EFI/BOOT/BOOTX64.EFI", "EFI/systemd/systemd-bootx64.efi", "loader/loader.conf",
		"sealroot/a/manifest.json", "sealroot/a/manifest.sig", "sealroot/b/manifest.json", "sealroot/b/manifest.sig")
}

// TestDiskPerLoader builds a disk with slot b on trial for each loader and
// store, and reads the first state back as the programs of others would.
func TestDiskPerLoader(t *testing.T) {
	onTrial := gpt.Attributes(0).WithSlot(2, 3, false)
	for _, tc := range []struct {
		name   string
		loader config.Loader
		store  config.Store
		files  []string
		env    string         // what grub-editenv lists
		bits   gpt.Attributes // of slot b
	}{
		{"grub_gpt", config.LoaderGRUB, config.StoreGPT, grubFiles(),
			"sealroot_default=a\nsealroot_once=b\n", onTrial},
		{"grub_darch", config.LoaderGRUB, config.StoreGrubenvDarch, grubFiles(),
			"sealroot_default=a\nsealroot_once=b\nBOOT_VERSION=B\nBOOT_COUNT=7\nBOOT_VERIFIED=false\nsealroot_slots=a:1:0:1,b:2:3:0\n", 0},
		{"grub_rauc", config.LoaderGRUB, config.StoreGrubenvRAUC, grubFiles(),
			"sealroot_default=a\nsealroot_once=b\nORDER=B A\nB_OK=1\nB_TRY=1\nA_OK=1\nA_TRY=0\nsealroot_slots=a:1:0:1,b:2:3:0\n", 0},
		{"systemd_boot_gpt", config.LoaderSystemdBoot, config.StoreGPT,
			sdbootFiles("EFI/Linux/sealroot-a.efi", "EFI/Linux/sealroot-b.efi"), "", onTrial},
		{"systemd_boot_bls", config.LoaderSystemdBoot, config.StoreBLS,
			sdbootFiles("EFI/Linux/sealroot-a.efi", "EFI/Linux/sealroot-b+3-0.efi", "sealroot/slots"), "", 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			b, in := builder(t)
			in.Config.Boot.Loader, in.Config.Boot.Store = tc.loader, tc.store
			out := filepath.Join(t.TempDir(), "disk.img")
			if err := b.Disk(t.Context(), Options{A: in, B: &in, BState: Trial, Output: out, Sizes: Sizes{State: 192 * mib}}); err != nil {
				t.Fatal(err)
			}
			volume, _ := part(t, out, gpt.LabelESP)
			run(t, "fsck.vfat", "-n", volume)
			checkFiles(t, volume, tc.files...)
			if tc.env != "" {
				path := filepath.Join(t.TempDir(), "grubenv")
				run(t, "mcopy", "-i", volume, "::/"+esp.Grubenv, path)
				if got := run(t, "grub-editenv", path, "list"); !sameLines(got, tc.env) {
					t.Errorf("grubenv =\n%swant\n%s", got, tc.env)
				}
			}
			_, p := part(t, out, gpt.RootLabel("b"))
			if want := tc.bits | gpt.ReadOnly; p.Attributes != want {
				t.Errorf("attributes of slot b are %v, want %v", p.Attributes, want)
			}
			bios, _ := part(t, out, gpt.LabelBIOSBoot)
			content, err := os.ReadFile(bios)
			if err != nil || allZero(content) == (tc.loader == config.LoaderGRUB) {
				t.Errorf("BIOS boot partition empty: %v (%v)", allZero(content), err)
			}
		})
	}
}

func sameLines(a, b string) bool {
	one, two := strings.Split(a, "\n"), strings.Split(b, "\n")
	slices.Sort(one)
	slices.Sort(two)
	return slices.Equal(one, two)
}

// With recount a committed slot is counted too.
func TestRecountedSlotBeginsWithTries(t *testing.T) {
	b, in := builder(t)
	in.Config.Boot.Recount, in.Config.Boot.Tries = true, 5
	out := filepath.Join(t.TempDir(), "disk.img")
	if err := b.Disk(t.Context(), Options{A: in, B: &in, BState: Off, Output: out, Sizes: Sizes{State: 192 * mib}}); err != nil {
		t.Fatal(err)
	}
	for slot, want := range map[string]gpt.Attributes{"a": gpt.Attributes(0).WithSlot(1, 5, true), "b": 0} {
		if _, p := part(t, out, gpt.RootLabel(slot)); p.Attributes != want|gpt.ReadOnly {
			t.Errorf("attributes of slot %s are %v, want %v", slot, p.Attributes, want|gpt.ReadOnly)
		}
	}
}

// The boot log's partition says whether the first boot is to give new GUIDs.
func TestDiskThatNothingBootedFrom(t *testing.T) {
	b, in := builder(t)
	for choice, want := range map[string]gpt.Attributes{config.NewGUIDsFirstBoot: gpt.Fresh, config.NewGUIDsNever: 0} {
		in.Config.Boot.NewGUIDs = choice
		out := filepath.Join(t.TempDir(), "disk.img")
		if err := b.Disk(t.Context(), Options{A: in, Output: out, Sizes: Sizes{State: 192 * mib}}); err != nil {
			t.Fatal(err)
		}
		if _, p := part(t, out, gpt.LabelLog); p.Attributes != want {
			t.Errorf("%s: attributes of the boot log are %v, want %v", choice, p.Attributes, want)
		}
	}
}

// The stores read back from a new disk what was to stand there.
func TestFirstStateAsTheStoresReadIt(t *testing.T) {
	for _, state := range []SlotState{Good, Trial, Off} {
		list, err := firstState(true, state, 3)
		if err != nil {
			t.Fatal(err)
		}
		for _, tc := range []struct {
			store  config.Store
			scheme grubenv.Scheme
		}{{config.StoreGrubenvDarch, grubenv.Darch}, {config.StoreGrubenvRAUC, grubenv.RAUC}} {
			t.Run(string(tc.store)+"_"+string(state), func(t *testing.T) {
				k, err := keep(config.Boot{Loader: config.LoaderGRUB, Store: tc.store}, gpt.Naming{}, list)
				if err != nil {
					t.Fatal(err)
				}
				env, err := grubenv.Parse(k.files[esp.Grubenv].data)
				if err != nil {
					t.Fatal(err)
				}
				if got := tc.scheme.Read(env, []string{"a", "b"}); !slices.Equal(got, list) {
					t.Errorf("the store reads %v, want %v", got, list)
				}
			})
		}
		t.Run("bls_"+string(state), func(t *testing.T) {
			k, err := keep(config.Boot{Loader: config.LoaderSystemdBoot, Store: config.StoreBLS}, gpt.Naming{}, list)
			if err != nil {
				t.Fatal(err)
			}
			tree := t.TempDir()
			files := map[string]content{esp.Slots: k.files[esp.Slots]}
			for _, s := range list {
				files[esp.LinuxDir+"/"+esp.UKIName(s.Name, k.counters[s.Name])] = content{data: []byte(s.Name)}
			}
			if err := stage(tree, files); err != nil {
				t.Fatal(err)
			}
			got, err := bls.Store{Dir: bls.Tree(tree), Slots: []string{"a", "b"}}.Load()
			if err != nil || !slices.Equal(got, list) {
				t.Errorf("the store reads %v (%v), want %v", got, err, list)
			}
		})
	}
}

func TestFixedDiskHasOneSlot(t *testing.T) {
	b, in := builder(t)
	in.Config.Boot.Store = config.StoreFixed
	out := filepath.Join(t.TempDir(), "disk.img")
	if err := b.Disk(t.Context(), Options{A: in, Output: out, Sizes: Sizes{State: 192 * mib}}); err != nil {
		t.Fatal(err)
	}
	if text := run(t, "sgdisk", "-p", out); strings.Contains(text, "root-b") || !strings.Contains(text, "root-a") {
		t.Errorf("partitions of a fixed disk:\n%s", text)
	}
}

// With Secure Boot keys all that the firmware starts is signed; sbverify judges.
func TestSystemdBootIsSigned(t *testing.T) {
	b, in := builder(t)
	b.Signing.Secure = &uki.SecureBoot{Key: filepath.Join(b.Signing.Dir, keys.DBKey), Cert: filepath.Join(b.Signing.Dir, keys.DBCert)}
	in.Config.Boot.Loader = config.LoaderSystemdBoot
	out := filepath.Join(t.TempDir(), "disk.img")
	if err := b.Disk(t.Context(), Options{A: in, Output: out, Sizes: Sizes{State: 192 * mib}}); err != nil {
		t.Fatal(err)
	}
	volume, _ := part(t, out, gpt.LabelESP)
	for _, name := range []string{esp.Fallback, esp.SystemdBoot, esp.UKI("a")} {
		path := filepath.Join(t.TempDir(), "x.efi")
		run(t, "mcopy", "-i", volume, "::/"+name, path)
		run(t, "sbverify", "--cert", b.Signing.Secure.Cert, path)
	}
	plain, err := tools.New().Data(tools.SystemdBoot)
	if err != nil {
		t.Fatal(err)
	}
	if exec.Command("sbverify", "--cert", b.Signing.Secure.Cert, plain).Run() == nil {
		t.Error("sbverify accepts a program without a signature")
	}
	conf := read(t, volume, esp.LoaderConf)
	if out, changed := efi.ConfDefault(string(conf), "a"); changed {
		t.Errorf("a commit of slot a would change loader.conf to\n%s", out)
	}
	for _, want := range []string{"default sealroot-a[+.]*\n", "timeout 0\n", "editor no\n"} {
		if !bytes.Contains(conf, []byte(want)) {
			t.Errorf("loader.conf lacks %q:\n%s", want, conf)
		}
	}
}
