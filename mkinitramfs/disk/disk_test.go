package disk

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"sealroot/init/config"
	"sealroot/mkinitramfs/keys/keystest"
	"sealroot/mkinitramfs/tools"
	"sealroot/slots/gpt"
	"sealroot/verity/signature"
)

// fakeKernel has the header of a bzImage and nothing else.
func fakeKernel(version string) []byte {
	b := make([]byte, 0x800)
	copy(b[0x202:], "HdrS")
	binary.LittleEndian.PutUint16(b[0x20e:], 0x100)
	copy(b[0x300:], version)
	return b
}

func TestKernelRelease(t *testing.T) {
	for _, tc := range []struct {
		name string
		data []byte
		want string
	}{
		{"real_form", fakeKernel("6.1.0-50-cloud-amd64 (someone@host) #1 SMP\x00"), "6.1.0-50-cloud-amd64"},
		{"zeros", make([]byte, 0x800), ""},
		{"short", []byte("MZ"), ""},
		{"path_in_release", fakeKernel("../../etc x\x00"), ""},
		{"no_end", append(fakeKernel("")[:0x300], bytes.Repeat([]byte("6"), 0x200)...), ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			got, err := KernelRelease(bytes.NewReader(tc.data))
			if got != tc.want || (tc.want == "") != errors.Is(err, ErrKernel) {
				t.Errorf("KernelRelease = %q, %v; want %q", got, err, tc.want)
			}
		})
	}
}

func FuzzKernelRelease(f *testing.F) {
	f.Add(fakeKernel("6.1.0 (x)\x00"))
	f.Fuzz(func(t *testing.T, data []byte) {
		got, err := KernelRelease(bytes.NewReader(data))
		if (err != nil) != (got == "") || strings.Contains(got, "/") {
			t.Errorf("KernelRelease = %q, %v", got, err)
		}
	})
}

func TestLayout(t *testing.T) {
	need := needs{root: 100 * mib, esp: 20 * mib, shared: 2 * mib, state: 165 * mib, verity: func(root int64) int64 { return root / 100 }}
	for _, tc := range []struct {
		name  string
		sizes Sizes
		ok    bool
	}{
		{"defaults", Sizes{}, true},
		{"root_too_small", Sizes{Root: 99 * mib}, false},
		{"root_not_aligned", Sizes{Root: 200*mib + 512}, false},
		{"esp_for_two_slots_and_an_update", Sizes{ESP: 64 * mib}, true},
		{"esp_too_small_for_an_update", Sizes{ESP: 62 * mib}, false},
		{"esp_too_small_for_fat32", Sizes{ESP: 33 * mib}, false},
		{"disk_size_gives_the_state_the_rest", Sizes{Disk: 4096 * mib}, true},
		{"no_state", Sizes{NoState: true}, true},
		{"no_state_on_a_disk_too_small", Sizes{NoState: true, Disk: 300 * mib}, false},
		{"disk_too_small", Sizes{Disk: 300 * mib}, false},
		{"state_that_holds_a_volume", Sizes{State: 165 * mib}, true},
		{"state_too_small_for_the_volume", Sizes{State: 164 * mib}, false},
		{"disk_that_leaves_too_little_for_the_volume", Sizes{Disk: 620 * mib}, false},
		{"state_does_not_fit_on_the_disk", Sizes{Disk: 1024 * mib, State: 900 * mib}, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			parts, disk, err := layout(tc.sizes, need, []string{"a", "b"})
			if !tc.ok {
				if !errors.Is(err, ErrSize) || parts != nil || disk != 0 {
					t.Errorf("layout = %v, %d, %v; want ErrSize", parts, disk, err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			end := alignment
			for _, p := range parts {
				if p.start != end || p.start%alignment != 0 || p.size <= 0 {
					t.Errorf("partition %s at %d+%d, want it at %d", p.label, p.start, p.size, end)
				}
				end = p.start + p.size
			}
			if end+alignment > disk || tc.sizes.Disk > 0 && (disk != tc.sizes.Disk || end+alignment < disk) {
				t.Errorf("partitions end at %d of %d", end, disk)
			}
		})
	}
}

// builder makes a builder and a slot input with a made-up kernel and a tiny root.
func builder(t *testing.T) (*Builder, SlotInput) {
	t.Helper()
	dir := t.TempDir()
	keyDir := filepath.Join(dir, "keys")
	keystest.Write(t, keyDir)
	dep := ""
	write := func(name, content string) string {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o755); err != nil {
			t.Fatal(err)
		}
		return path
	}
	for _, m := range []string{"reed_solomon", "dm_verity", "squashfs", "erofs", "overlay", "loop", "dm_crypt", "ext4", "btrfs", "vfat"} {
		needs := map[string]string{"dm_verity": " kernel/reed_solomon.ko"}[m]
		dep += "kernel/" + m + ".ko:" + needs + "\n"
		write("lib/modules/"+release+"/kernel/"+m+".ko", "module "+m)
	}
	write("lib/modules/"+release+"/modules.dep", dep)
	root := write("root.tar", string(tarOf(t, bootable(strings.Repeat("init ", 100000)))))
	kernel := write("vmlinuz", string(fakeKernel(release+" (x)\x00")))
	signing, err := LoadSigning(t.Context(), keyDir, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	cfg := config.Config{
		Name: "kiosk", Version: "1", Build: config.Production,
		Boot:  config.Boot{Loader: config.LoaderUKI, Store: config.StoreGPT, Tries: 3},
		Trust: config.Trust{Root: []string{"image.crt"}},
		State: config.State{Create: "first-boot", Recovery: "later", Unlock: []string{"tpm2", "recovery-key"}, TPM2: config.TPM2{Policy: "signed-pcr11+7", PublicKey: "pcr.pub"}},
	}.WithDefaults()
	return &Builder{Tools: tools.New(), Log: io.Discard, Init: write("init", "program"), Signing: signing, Time: time.Unix(0, 0), Now: time.Now()},
		SlotInput{Rootfs: root, Kernel: kernel, ModulesDir: dir, Config: &cfg, ConfigDir: keyDir, Cmdline: "console=ttyS0", RootModules: true}
}

// run runs a judge and returns what it says.
func run(t *testing.T, name string, args ...string) string {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Env = append(os.Environ(), "PATH="+os.Getenv("PATH")+":/usr/sbin:/sbin")
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Errorf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// part extracts a partition.
func part(t *testing.T, disk, label string) (string, gpt.Partition) {
	t.Helper()
	f, err := os.Open(disk)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	table, err := gpt.Read(f, info.Size(), sectorSize)
	if err != nil {
		t.Fatal(err)
	}
	p, err := table.ByName(label)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), label)
	out, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	if _, err := io.Copy(out, io.NewSectionReader(f, table.Offset(p), table.Size(p))); err != nil {
		t.Fatal(err)
	}
	return path, p
}

// TestDiskAsOthersReadIt builds a disk with slot b on trial and lets other
// people's tools look at it.
func TestDiskAsOthersReadIt(t *testing.T) {
	b, in := builder(t)
	out := filepath.Join(t.TempDir(), "disk.img")
	if err := b.Disk(t.Context(), Options{A: in, B: &in, BState: Trial, Output: out, Sizes: Sizes{State: 192 * mib}}); err != nil {
		t.Fatal(err)
	}
	if text := run(t, "sgdisk", "-v", out); !strings.Contains(text, "No problems found") {
		t.Errorf("sgdisk -v: %s", text)
	}
	if text := run(t, "sfdisk", "-V", out); !strings.Contains(text, "No errors detected") {
		t.Errorf("sfdisk -V: %s", text)
	}
	for slot, want := range map[string]string{"a": "1 0 1", "b": "2 3 0"} {
		_, p := part(t, out, gpt.RootLabel(slot))
		var got []string
		for _, flag := range []string{"-P", "-T", "-S"} {
			got = append(got, strings.TrimSpace(run(t, "cgpt", "show", "-i", fmt.Sprint(p.Number), flag, out)))
		}
		if strings.Join(got, " ") != want {
			t.Errorf("cgpt says priority, tries, successful of slot %s are %v, want %s", slot, got, want)
		}
		checkSlot(t, b, out, slot)
	}
	esp, _ := part(t, out, gpt.LabelESP)
	run(t, "fsck.vfat", "-n", esp)
	checkFiles(t, esp, "EFI/BOOT/BOOTX64.EFI", "EFI/Linux/sealroot-a.efi", "EFI/Linux/sealroot-b.efi",
		"sealroot/a/manifest.json", "sealroot/a/manifest.sig", "sealroot/b/manifest.json", "sealroot/b/manifest.sig")
	image := read(t, esp, "EFI/Linux/sealroot-a.efi")
	for _, name := range []string{"EFI/Linux/sealroot-b.efi", "EFI/BOOT/BOOTX64.EFI"} {
		if !bytes.Equal(read(t, esp, name), image) {
			t.Errorf("%s is another image than that of slot a, which has the same version", name)
		}
	}
	state, _ := part(t, out, gpt.LabelState)
	run(t, "e2fsck", "-fn", state)
}

// checkFiles compares the names of all files on the ESP.
func checkFiles(t *testing.T, esp string, want ...string) {
	t.Helper()
	var got []string
	for line := range strings.Lines(run(t, "mdir", "-i", esp, "-/", "-b", "-a", "::")) {
		if name := strings.TrimPrefix(strings.TrimSpace(line), "::/"); !strings.HasSuffix(name, "/") {
			got = append(got, name)
		}
	}
	slices.Sort(got)
	slices.Sort(want)
	if !slices.Equal(got, want) {
		t.Errorf("files on the ESP are\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// read returns a file on the ESP.
func read(t *testing.T, esp, name string) []byte {
	t.Helper()
	path := filepath.Join(t.TempDir(), "file")
	run(t, "mcopy", "-i", esp, "::/"+name, path)
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// checkSlot lets veritysetup and unsquashfs judge a slot, and our own reader
// the signature (openssl judges that reader in its own package).
func checkSlot(t *testing.T, b *Builder, disk, slot string) {
	t.Helper()
	root, _ := part(t, disk, gpt.RootLabel(slot))
	hash, _ := part(t, disk, gpt.VerityLabel(slot))
	sigPath, _ := part(t, disk, gpt.SigLabel(slot))
	content, err := os.ReadFile(sigPath)
	if err != nil {
		t.Fatal(err)
	}
	sig, err := signature.Read(bytes.NewReader(content))
	if err != nil {
		t.Fatal(err)
	}
	signer, err := signature.ParseCertificate(b.Signing.ImageCert.Raw)
	if err != nil {
		t.Fatal(err)
	}
	rootHash, _, err := signature.Verify(sig, []*signature.Certificate{signer})
	if err != nil {
		t.Fatal(err)
	}
	run(t, "veritysetup", "verify", root, hash, hex.EncodeToString(rootHash))
	if text := run(t, "unsquashfs", "-cat", root, "usr/lib/os-release"); !strings.Contains(text, "IMAGE_ID=\"kiosk\"\n") {
		t.Errorf("os-release of slot %s: %s", slot, text)
	}
	// The judge can say no.
	f, err := os.OpenFile(root, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	old := make([]byte, 1)
	if _, err := f.ReadAt(old, 200); err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt([]byte{old[0] ^ 1}, 200); err != nil {
		t.Fatal(err)
	}
	if exec.Command("/usr/sbin/veritysetup", "verify", root, hash, hex.EncodeToString(rootHash)).Run() == nil {
		t.Error("veritysetup accepts a changed root")
	}
}

func TestEqualInputsGiveEqualRootHashes(t *testing.T) {
	for _, fs := range []string{squashfs, erofs} {
		t.Run(fs, func(t *testing.T) {
			b, in := builder(t)
			in.Config.Root.Filesystem = fs
			first, err := b.buildParts(t.Context(), in, filepath.Join(t.TempDir(), "1"))
			if err != nil {
				t.Fatal(err)
			}
			// The programs would give the root directory the present second.
			time.Sleep(1100 * time.Millisecond)
			second, err := b.buildParts(t.Context(), in, filepath.Join(t.TempDir(), "2"))
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(first.rootHash, second.rootHash) || !bytes.Equal(first.initrd, second.initrd) {
				t.Errorf("root hashes %x and %x differ, or initramfs do", first.rootHash, second.rootHash)
			}
			in.Config.Version = "2"
			third, err := b.buildParts(t.Context(), in, filepath.Join(t.TempDir(), "3"))
			if err != nil {
				t.Fatal(err)
			}
			if bytes.Equal(first.rootHash, third.rootHash) {
				t.Error("another version has the same root hash")
			}
		})
	}
}

// fsck.erofs and dump.erofs judge an erofs root.
func TestErofsRoot(t *testing.T) {
	b, in := builder(t)
	in.Config.Root.Filesystem = erofs
	p, err := b.buildParts(t.Context(), in, t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	image := p.path("root")
	run(t, "fsck.erofs", "--extract", image)
	for path, want := range map[string][]string{
		"/bin/ping":           {"regular file", "Uid: 7 ", "Gid: 8 ", "Access: 0750/rwxr-x---", "Links: 2", "Xattr size: 32", "1970-01-01 00:16:40"},
		"/dev/null":           {"char dev"},
		"/lib":                {"symlink file"},
		"/usr/lib/modules":    {"directory"},
		"/etc/machine-id":     {"Size: 0 "},
		"/usr/lib/os-release": {"regular file"},
	} {
		text := run(t, "dump.erofs", "--path="+path, image)
		for _, w := range want {
			if !strings.Contains(text, w) {
				t.Errorf("%s: dump.erofs does not say %q:\n%s", path, w, text)
			}
		}
	}
	work, err := os.ReadDir(filepath.Dir(p.dir))
	if err != nil || len(work) != 1 {
		t.Errorf("beside the set there is %v, %v: the unpacked root stayed", work, err)
	}
}

func TestEmptySlotB(t *testing.T) {
	b, in := builder(t)
	out := filepath.Join(t.TempDir(), "disk.img")
	if err := b.Disk(t.Context(), Options{A: in, Output: out, Sizes: Sizes{NoState: true}}); err != nil {
		t.Fatal(err)
	}
	if dump := sfdisk(t, out); strings.Contains(dump, gpt.TypeState) || !strings.Contains(dump, gpt.TypeLog) {
		t.Errorf("want a disk without a state partition:\n%s", dump)
	}
	for _, label := range []string{gpt.RootLabel("b"), gpt.VerityLabel("b"), gpt.SigLabel("b")} {
		path, p := part(t, out, label)
		content, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if p.Attributes != gpt.ReadOnly || !allZero(content) {
			t.Errorf("partition %s has attributes %v or content, want read-only and empty", label, p.Attributes)
		}
	}
}

// btrfs is left to the first boot: the partition is empty, and marked so.
func TestStatePartitionOfBtrfs(t *testing.T) {
	b, in := builder(t)
	in.Config.State.PartitionFilesystem = "btrfs"
	out := filepath.Join(t.TempDir(), "disk.img")
	if err := b.Disk(t.Context(), Options{A: in, Output: out, Sizes: Sizes{State: 512 * mib}}); err != nil {
		t.Fatal(err)
	}
	path, p := part(t, out, gpt.LabelState)
	content, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !p.Unfinished() || int64(len(content)) != 512*mib || !allZero(content) {
		t.Errorf("the state partition has attributes %v, %d bytes, or content", p.Attributes, len(content))
	}
}

// sfdisk is the partition table as sfdisk reads it, in lower case.
func sfdisk(t *testing.T, path string) string {
	t.Helper()
	out, err := exec.Command("sfdisk", "--dump", path).Output()
	if err != nil {
		t.Fatal(err)
	}
	return strings.ToLower(string(out))
}

func TestFailedBuildLeavesNothing(t *testing.T) {
	b, in := builder(t)
	dir := t.TempDir()
	in.ModulesDir = "" // and the root has none
	err := b.Disk(t.Context(), Options{A: in, Output: filepath.Join(dir, "disk.img")})
	if !errors.Is(err, ErrRoot) {
		t.Errorf("Disk = %v, want ErrRoot", err)
	}
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) != 0 {
		t.Errorf("a failed build left %v (%v)", entries, err)
	}
}

// withB fills slot b with a version that has a configuration of its own.
func withB(o *Options, state SlotState) *config.Config {
	cfg, in := *o.A.Config, o.A
	in.Config = &cfg
	o.B, o.BState = &in, state
	return &cfg
}

func TestDiskRefuses(t *testing.T) {
	for _, tc := range []struct {
		name   string
		change func(*Builder, *Options)
	}{
		{"signed_policy_without_key", func(b *Builder, _ *Options) { b.Signing.PCRKey = nil }},
		{"two_loaders", func(_ *Builder, o *Options) { withB(o, Good).Boot.Loader = config.LoaderSystemdBoot }},
		{"no_state_that_is_never_added", func(_ *Builder, o *Options) {
			o.Sizes.NoState, o.A.Config.State.Create, o.A.Config.State.Recovery = true, config.CreateNever, config.RecoveryNone
		}},
		{"no_state_and_its_table_sealed_to", func(_ *Builder, o *Options) { o.Sizes.NoState, o.A.Config.State.TPM2.PCRs = true, []int{5} }},
		{"btrfs_that_nobody_makes", func(_ *Builder, o *Options) {
			s := &o.A.Config.State
			s.PartitionFilesystem, s.Create, s.Recovery = "btrfs", config.CreateNever, config.RecoveryNone
		}},
		{"btrfs_and_a_layer_in_it", func(_ *Builder, o *Options) {
			o.A.Config.State.PartitionFilesystem = "btrfs"
			o.A.Config.Layers = []config.Layer{{Name: "tools", From: config.LayerFromState, Hash: strings.Repeat("ab", 32)}}
		}},
		{"two_partition_filesystems", func(_ *Builder, o *Options) { withB(o, Good).State.PartitionFilesystem = "btrfs" }},
		{"two_stores", func(_ *Builder, o *Options) { withB(o, Good).Boot.Store = config.StoreBLS }},
		{"tree_at_two_places", func(_ *Builder, o *Options) { withB(o, Good).Root.Verity.TreeAtMiB = 100 }},
		{"two_slots_of_which_one_is_fixed", func(_ *Builder, o *Options) {
			o.A.Config.Boot.Store = config.StoreFixed
			withB(o, Good)
		}},
		{"trial_that_the_disk_cannot_hold", func(_ *Builder, o *Options) {
			o.A.Config.Boot.Store = config.StoreEFI
			withB(o, Trial)
		}},
		{"stdin_for_both_slots", func(_ *Builder, o *Options) { o.A.Rootfs = "-"; in := o.A; o.B = &in }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			b, in := builder(t)
			o := Options{A: in, Output: filepath.Join(t.TempDir(), "disk.img")}
			tc.change(b, &o)
			if err := b.Disk(t.Context(), o); !errors.Is(err, ErrOptions) {
				t.Errorf("Disk = %v, want ErrOptions", err)
			}
		})
	}
	if list, err := firstState(true, "maybe", 3); !errors.Is(err, ErrOptions) || list != nil {
		t.Errorf("firstState = %v, %v; want ErrOptions", list, err)
	}
}
