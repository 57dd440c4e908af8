package disk

import (
	"archive/tar"
	"bytes"
	"crypto/rand"
	"errors"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"sealroot/init/cmdline"
	"sealroot/init/config"
	"sealroot/mkinitramfs/initramfs"
	"sealroot/slots/gpt"
	"sealroot/slots/guid"
)

// usrRoot is a root with a merged /usr. /etc comes before /usr, as in most tars.
func usrRoot() []entry {
	return []entry{
		{"bin", "", tar.TypeSymlink, "usr/bin"},
		{"lib64", "", tar.TypeSymlink, "usr/lib64"},
		{"etc/", "", tar.TypeDir, ""},
		{"etc/hostname", "of the root", 0, ""},
		{"etc/issue", "of the root", 0, ""},
		{"etc/machine-id", "0123", 0, ""},
		{"etc/mtab", "", tar.TypeSymlink, "../proc/self/mounts"},
		{"etc/conf.d/", "", tar.TypeDir, ""},
		{"etc/conf.d/a", "a", 0, ""},
		{"etc/passwd", "users", 0, ""},
		{"etc/passwd-", "", tar.TypeLink, "etc/passwd"},
		{"root/.profile", "x", 0, ""},
		{"opt/tool", "x", 0, ""},
		{"tmp/old", "x", 0, ""},
		{"usr/", "", tar.TypeDir, ""},
		{"usr/bin/", "", tar.TypeDir, ""},
		{"usr/bin/ping", "program", 0, ""},
		{"usr/bin/ping4", "", tar.TypeLink, "usr/bin/ping"},
		{"usr/lib64/", "", tar.TypeDir, ""},
		{"usr/lib/os-release", "ID=debian\n", 0, ""},
		{"usr/share/", "", tar.TypeDir, ""},
		{"usr/share/factory/", "", tar.TypeDir, ""},
		{"usr/share/factory/etc/", "", tar.TypeDir, ""},
		{"usr/share/factory/etc/issue", "of the factory", 0, ""},
		{"usr/share/factory/etc/machine-id", "4567", 0, ""},
		{"var/lib/db", "data", 0, ""},
	}
}

func TestFilterUsr(t *testing.T) {
	extra := t.TempDir()
	for name, content := range map[string]string{"etc/hostname": "extra", "bin/tool": "tool", "opt/more": "x"} {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(extra, name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(extra, name), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	edit := rootEdit{release: release, extra: extra, usr: true, osRelease: map[string]string{"IMAGE_ID": `"kiosk"`}}
	files, err := filter(t, tarOf(t, usrRoot()), edit)
	if err != nil {
		t.Fatal(err)
	}
	const etc = "share/factory/etc/"
	for name, content := range map[string]string{
		"bin/ping": "program", "bin/tool": "tool", "lib/os-release": "ID=debian\nIMAGE_ID=\"kiosk\"\n",
		etc + "hostname": "extra", etc + "issue": "of the factory", etc + "machine-id": "", etc + "conf.d/a": "a",
		etc + "passwd": "users", "share/factory/var/lib/db": "data",
	} {
		f, ok := files[name]
		if !ok || f.content != content {
			t.Errorf("%s is %q, there %t; want %q", name, f.content, ok, content)
		}
		delete(files, name)
	}
	for name, to := range map[string]string{"bin/ping4": "bin/ping", etc + "passwd-": etc + "passwd", etc + "mtab": "../proc/self/mounts"} {
		if f, ok := files[name]; !ok || f.header.Linkname != to {
			t.Errorf("%s is there %t, a link to %q", name, ok, to)
		}
		delete(files, name)
	}
	want := []string{"bin", "lib", "lib64", "share", "share/factory", "share/factory/etc", "share/factory/etc/conf.d", "share/factory/var", "share/factory/var/lib"}
	if got := slices.Sorted(maps.Keys(files)); !slices.Equal(got, want) {
		t.Errorf("beside files there are %q, want the directories %q", got, want)
	}
	open := func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(tarOf(t, usrRoot()))), nil }
	found, err := filterRoot(open, tar.NewWriter(io.Discard), edit)
	if err != nil || !strings.HasSuffix(found.leftOut, ": files of /opt (2), /root (1)") {
		t.Errorf("left out: %q, %v", found.leftOut, err)
	}
}

func TestFilterUsrErrors(t *testing.T) {
	usr := entry{"usr/bin/ping", "program", 0, ""}
	for name, entries := range map[string][]entry{
		"own_bin":              {usr, {"bin/", "", tar.TypeDir, ""}},
		"file_in_bin":          {usr, {"bin/sh", "x", 0, ""}},
		"link_without_a_place": {usr, {"lib64", "", tar.TypeSymlink, "usr/lib64"}},
		"hard_link_to_opt":     {usr, {"opt/x", "x", 0, ""}, {"usr/bin/x", "", tar.TypeLink, "opt/x"}},
		"hard_link_to_etc":     {{"etc/x", "x", 0, ""}, {"usr/bin/x", "", tar.TypeLink, "etc/x"}},
	} {
		if _, err := filter(t, tarOf(t, entries), rootEdit{usr: true}); !errors.Is(err, ErrRoot) {
			t.Errorf("%s: filterRoot = %v, want ErrRoot", name, err)
		}
	}
}

// What feeds the watchdog is found in the factory of a /usr, too.
func TestWatchdogOfUsr(t *testing.T) {
	w := config.Watchdog{Seconds: 30, Handover: true}
	text := tarOf(t, []entry{{"share/factory/etc/systemd/system.conf.d/w.conf", "[Manager]\nRuntimeWatchdogSec=30s\n", 0, ""}})
	for _, usr := range []bool{true, false} {
		both, verdict := whileWriting(io.Discard, w, usr)
		if _, err := both.Write(text); err != nil {
			t.Fatal(err)
		}
		if err := verdict(); (err == nil) != usr {
			t.Errorf("/usr %t: %v", usr, err)
		}
	}
}

// The partitions of a /usr have its labels and types, and the UUIDs that the
// configuration names; all others are random.
func TestLayoutOfUsr(t *testing.T) {
	id := func(n int) string { return "3f2b8a60-1c4d-4e5f-8a9b-0c1d2e3f4a5" + string(rune('0'+n)) }
	naming := (&config.Root{Source: config.SourceUsrVerity, Partitions: config.PartitionsPartUUIDs, PartUUIDs: config.PartUUIDs{
		A: config.SlotPartUUIDs{Data: id(1), Hash: id(2), Signature: id(3)},
		B: config.SlotPartUUIDs{Data: id(4), Hash: id(5), Signature: id(6)},
	}}).Naming()
	need := needs{root: mib, verity: func(int64) int64 { return mib }, naming: naming}
	parts, size, err := layout(Sizes{}, need, []string{"a", "b"})
	if err != nil {
		t.Fatal(err)
	}
	disk, err := os.Create(filepath.Join(t.TempDir(), "disk"))
	if err != nil {
		t.Fatal(err)
	}
	defer disk.Close()
	if err := disk.Truncate(size); err != nil {
		t.Fatal(err)
	}
	if err := writeTable(disk, size, parts, attributesOf(naming, []string{"a", "b"}, nil), rand.Reader); err != nil {
		t.Fatal(err)
	}
	table, err := gpt.Read(disk, size, sectorSize)
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, slot := range []string{"a", "b"} {
		for part, kind := range []string{gpt.TypeUsr, gpt.TypeUsrVerity, gpt.TypeUsrSig} {
			n++
			p, err := table.ByUUID(guid.Must(id(n)))
			if err != nil || p.Name != (gpt.Naming{Usr: true}).Label(slot, gpt.Part(part)) || p.Type.String() != kind || p.Attributes != gpt.ReadOnly {
				t.Errorf("UUID %d: %+v, %v; want %s, type %s, read-only", n, p, err, naming.Label(slot, gpt.Part(part)), kind)
			}
		}
	}
}

// Slot b's kernel must find what slot a's finds.
func TestSlotsOfTwoLayouts(t *testing.T) {
	for key, other := range map[string]config.Root{
		"":                        {},
		"root.source":             {Source: config.SourceUsrVerity},
		"root.partitions":         {Partitions: config.PartitionsPartUUIDs},
		"root.partuuids":          {PartUUIDs: config.PartUUIDs{A: config.SlotPartUUIDs{Data: "x"}}},
		"root.verity.tree_at_mib": {Verity: config.Verity{TreeAtMiB: 64}},
	} {
		err := sameLayout(config.Root{}, other)
		if (err == nil) != (key == "") || err != nil && (!errors.Is(err, ErrOptions) || !strings.Contains(err.Error(), key)) {
			t.Errorf("%s: %v", key, err)
		}
	}
}

// Partitions that the command line names are hints for a disk of systemd-repart.
func TestCmdlineNamesPartitions(t *testing.T) {
	const line = "systemd.verity_root_data=PARTLABEL=kiosk_1 systemd.verity_root_hash=PARTLABEL=kiosk_1_verity"
	for partitions, ok := range map[string]bool{config.PartitionsDiscoverable: true, config.PartitionsLabels: false} {
		c := &config.Config{Trust: config.Trust{Cmdline: config.CmdlineMeasured}, Root: config.Root{Partitions: partitions}}
		got, err := withCmdline(c, line, nil)
		if (err == nil) != ok || ok && got.Wanted() != (gpt.Wanted{Data: "PARTLABEL=kiosk_1", Tree: "PARTLABEL=kiosk_1_verity"}) {
			t.Errorf("%s: %v", partitions, err)
		}
	}
	c := &config.Config{Trust: config.Trust{Cmdline: config.CmdlineMeasured}, Root: config.Root{Source: config.SourceUsrVerity, Partitions: config.PartitionsDiscoverable}}
	if _, err := withCmdline(c, line, nil); !errors.Is(err, cmdline.ErrHint) {
		t.Errorf("partitions of a root for a /usr: %v, want %v", err, cmdline.ErrHint)
	}
}

// The word of the command line for the root hash is the layout's.
func TestCmdlineOfUsr(t *testing.T) {
	hash := bytes.Repeat([]byte{0xab}, 32)
	text := strings.Repeat("ab", 32)
	for line, ok := range map[string]bool{
		"usrhash=" + text: true, "roothash=" + text: false, "usrhash=" + strings.Repeat("cd", 32): false, "ro": true,
	} {
		c := &config.Config{Trust: config.Trust{Cmdline: config.CmdlineMeasured}, Root: config.Root{Source: config.SourceUsrVerity}}
		got, err := withCmdline(c, line, hash)
		if (err == nil) != ok || !ok && !errors.Is(err, initramfs.ErrInput) || ok && got.Kernel.Cmdline != line {
			t.Errorf("%s: %v", line, err)
		}
	}
}
