package prebuilt

import (
	"context"
	"crypto/aes"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/crypto/xts"

	"sealroot/slots/gpt"
	"sealroot/slots/guid"
	"sealroot/state"
	"sealroot/state/layout"
	"sealroot/state/luks2"
)

func tool(t *testing.T, name string, args ...string) string {
	t.Helper()
	out, err := exec.Command(name, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// newDisk is an image with one partition, and with one for the state of so many MiB.
func newDisk(t *testing.T, stateMiB int) *os.File {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "disk image"))
	if err == nil {
		err = f.Truncate(int64(8+stateMiB) << 20)
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.Close() })
	tool(t, "sgdisk", "-n", "1:2048:+4M", "-c", "1:root-a", f.Name())
	if stateMiB > 0 {
		tool(t, "sgdisk", "-n", fmt.Sprintf("2:12288:+%dM", stateMiB), "-t", "2:"+gpt.TypeState, "-c", "2:state", f.Name())
		tool(t, "mke2fs", "-q", "-F", "-t", "ext4", "-b", "4096", "-m", "0", "-E", "nodiscard,offset=6291456", f.Name(), fmt.Sprintf("%dk", stateMiB<<10))
	}
	return f
}

func TestMakeJudged(t *testing.T) {
	for _, tt := range []struct {
		name     string
		stateMiB int
		o        Options
		made     Made
		debris   bool // an unfinished partition, as a run that was ended leaves it
		empty    bool // before anything was written to it
	}{
		{"added", 0, Options{Partition: 300 << 20}, Made{Added: true, Partition: 300 << 20}, false, false},
		{"there_already", 300, Options{}, Made{Partition: 300 << 20}, false, false},
		{"reserve", 300, Options{Reserve: 140 << 20}, Made{Partition: 300 << 20, Reserved: 140 << 20}, false, false},
		{"unfinished", 300, Options{}, Made{Partition: 300 << 20}, true, false},
		{"unfinished_and_empty", 300, Options{}, Made{Partition: 300 << 20}, true, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			disk := newDisk(t, tt.stateMiB)
			if tt.debris {
				tool(t, "sgdisk", "-A", "2:set:48", disk.Name())
			}
			if tt.empty {
				tool(t, "fallocate", "-z", "-o", "6291456", "-l", "300MiB", disk.Name())
			}
			key, err := luks2.GenerateRecoveryKey(rand.Reader)
			if err != nil {
				t.Fatal(err)
			}
			tt.o.Rand, tt.o.Recovery, tt.o.Escrow = rand.Reader, key, []byte("a message")
			made, err := Make(t.Context(), disk, tt.o)
			if err != nil {
				t.Fatal(err)
			}
			if made.Added != tt.made.Added || made.Partition != tt.made.Partition || tt.made.Reserved != 0 && made.Reserved != tt.made.Reserved || made.Reserved < made.Partition*4/10 {
				t.Errorf("made %+v, want %+v", made, tt.made)
			}
			if out := tool(t, "sfdisk", "-V", disk.Name()); !strings.Contains(out, "No errors detected") || strings.Contains(out, "PMBR") {
				t.Errorf("sfdisk -V: %s", out)
			}
			info, err := disk.Stat()
			if err != nil {
				t.Fatal(err)
			}
			table, err := gpt.Read(disk, info.Size(), sectorSize)
			if err != nil {
				t.Fatal(err)
			}
			p, err := table.ByName(gpt.LabelState)
			if err != nil || p.Unfinished() || p.Type != guid.Must(gpt.TypeState) || table.Size(p) != tt.made.Partition {
				t.Fatalf("partition %+v, %v", p, err)
			}
			device := fmt.Sprintf("%s?offset=%d", disk.Name(), table.Offset(p))
			tool(t, "e2fsck", "-fn", device)
			judgeVolume(t, device, key, made)
			if out := tool(t, "debugfs", "-R", "cat "+layout.Escrow, device); !strings.HasSuffix(out, "a message") {
				t.Errorf("the escrow: %q", out)
			}
			// Once more: what is there is not touched.
			if _, err := Make(t.Context(), disk, Options{Rand: rand.Reader}); !errors.Is(err, ErrThere) {
				t.Errorf("a second volume: %v, want ErrThere", err)
			}
		})
	}
}

// judgeVolume: all of the file is reserved, cryptsetup opens it by the key alone, and
// what is decrypted, with noise where nothing was written, is a file system.
func judgeVolume(t *testing.T, device string, key []byte, made Made) {
	t.Helper()
	stat := tool(t, "debugfs", "-R", "stat "+layout.Image, device)
	var blocks int64
	_, count, _ := strings.Cut(stat, "Blockcount: ")
	if _, err := fmt.Sscan(count, &blocks); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(stat, "Size: 17179869184") || !strings.Contains(stat, "Mode:  0600") || blocks < made.Reserved/512 || blocks > made.Reserved/512+80 {
		t.Errorf("want 16 GiB in size and %d bytes reserved:\n%s", made.Reserved, stat)
	}
	cmd := exec.Command("debugfs", "-R", "cat "+layout.Image, device)
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	volume := make([]byte, made.Reserved)
	if err == nil {
		_, err = io.ReadFull(out, volume)
	}
	if err != nil {
		t.Fatal(err)
	}
	cmd.Process.Kill()
	cmd.Wait() // killed on purpose
	path, keyFile := filepath.Join(t.TempDir(), "volume"), filepath.Join(t.TempDir(), "key")
	if err := errors.Join(os.WriteFile(path, volume, 0o600), os.WriteFile(keyFile, key, 0o600)); err != nil {
		t.Fatal(err)
	}
	tool(t, "cryptsetup", "open", "--test-passphrase", "--key-file", keyFile, path)
	if dump := tool(t, "cryptsetup", "luksDump", path); !strings.Contains(dump, made.UUID) || !strings.Contains(dump, "sealroot-prebuilt") || strings.Contains(dump, "1: luks2") {
		t.Errorf("luksDump:\n%s", dump)
	}
	if err := os.WriteFile(keyFile, append([]byte("x"), key[1:]...), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := exec.Command("cryptsetup", "open", "--test-passphrase", "--key-file", keyFile, path).Run(); err == nil {
		t.Error("another key opens it")
	}
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	h, err := luks2.Read(f, made.Reserved)
	if err != nil {
		t.Fatal(err)
	}
	if p := state.PrebuiltOf(h); p == nil || p.Reserved != made.Reserved {
		t.Errorf("PrebuiltOf() = %+v, want %d", p, made.Reserved)
	}
	volumeKey, _, err := h.Authorize(key, luks2.NewBudget(nil))
	if err != nil {
		t.Fatal(err)
	}
	c, err := xts.NewCipher(aes.NewCipher, volumeKey)
	if err != nil {
		t.Fatal(err)
	}
	data := volume[h.DataOffset():]
	for at := 0; at < len(data); at += 4096 {
		c.Decrypt(data[at:at+4096], data[at:at+4096], uint64(at/512))
	}
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	tool(t, "e2fsck", "-fn", path)
	if names := tool(t, "debugfs", "-R", "ls -p /", path); !strings.Contains(names, "/040700/0/0/.sealroot/") {
		t.Errorf("the volume holds\n%s", names)
	}
}

// A volume that nobody can open is made where no key is asked for.
func TestMakeWithoutKey(t *testing.T) {
	disk := newDisk(t, 300)
	if _, err := Make(t.Context(), disk, Options{Rand: rand.Reader}); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "volume")
	cmd := exec.Command("sh", "-c", `debugfs -R "cat encrypted.img" "$0?offset=6291456" | head -c 33554432 >"$1"`, disk.Name(), path)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if dump := tool(t, "cryptsetup", "luksDump", path); strings.Contains(dump, "0: luks2") {
		t.Errorf("luksDump:\n%s", dump)
	}
}

// btrfsInPlace puts a btrfs into the state partition of newDisk, as that of a machine is.
func btrfsInPlace(t *testing.T, disk *os.File) {
	t.Helper()
	image := filepath.Join(t.TempDir(), "btrfs")
	tool(t, "truncate", "-s", "300M", image)
	tool(t, "mkfs.btrfs", "-q", "-K", image)
	tool(t, "dd", "if="+image, "of="+disk.Name(), "bs=1M", "seek=6", "conv=notrunc", "status=none")
}

// content is a digest of what a disk begins with, all that such a btrfs has written.
func content(t *testing.T, disk *os.File) [sha256.Size]byte {
	t.Helper()
	sum := sha256.New()
	if _, err := io.Copy(sum, io.NewSectionReader(disk, 0, 100<<20)); err != nil {
		t.Fatal(err)
	}
	return [sha256.Size]byte(sum.Sum(nil))
}

func TestMakeRefuses(t *testing.T) {
	for _, tt := range []struct {
		name     string
		stateMiB int
		change   func(t *testing.T, disk *os.File)
		o        Options
		want     error
	}{
		{"no_partition_and_no_room", 0, nil, Options{}, gpt.ErrNoRoom},
		{"too_small_a_partition", 0, nil, Options{Partition: 20 << 20}, gpt.ErrNoRoom},
		{"a_size_for_one_that_is_there", 300, nil, Options{Partition: 300 << 20}, gpt.ErrHasState},
		{"too_small_for_a_volume", 100, nil, Options{}, state.ErrNoRoom},
		{"more_than_there_is", 300, nil, Options{Reserve: 290 << 20}, state.ErrNoRoom},
		{"marked", 300, func(t *testing.T, disk *os.File) {
			tool(t, "debugfs", "-w", "-R", "write /dev/null "+layout.Provisioned, disk.Name()+"?offset=6291456")
		}, Options{}, ErrThere},
		{"marked_and_unfinished", 300, func(t *testing.T, disk *os.File) {
			tool(t, "debugfs", "-w", "-R", "write /dev/null "+layout.Provisioned, disk.Name()+"?offset=6291456")
			tool(t, "sgdisk", "-A", "2:set:48", disk.Name())
		}, Options{}, ErrThere},
		// What debugfs cannot read is not empty for that.
		{"damaged_and_unfinished", 300, func(t *testing.T, disk *os.File) {
			if _, err := disk.WriteAt(make([]byte, 4096), 6<<20); err != nil {
				t.Fatal(err)
			}
			tool(t, "sgdisk", "-A", "2:set:48", disk.Name())
		}, Options{}, state.ErrNotEmpty},
		{"another_file_system_and_unfinished", 300, func(t *testing.T, disk *os.File) {
			tool(t, "fallocate", "-z", "-o", "6291456", "-l", "300MiB", disk.Name())
			if _, err := disk.WriteAt([]byte("LUKS\xba\xbe"), 6<<20); err != nil {
				t.Fatal(err)
			}
			tool(t, "sgdisk", "-A", "2:set:48", disk.Name())
		}, Options{}, state.ErrNotEmpty},
		{"btrfs", 300, btrfsInPlace, Options{}, ErrBtrfs},
		{"btrfs_and_unfinished", 300, func(t *testing.T, disk *os.File) {
			btrfsInPlace(t, disk)
			tool(t, "sgdisk", "-A", "2:set:48", disk.Name())
		}, Options{}, state.ErrNotEmpty},
		{"no_table", 0, func(t *testing.T, disk *os.File) {
			if err := errors.Join(disk.Truncate(0), disk.Truncate(8<<20)); err != nil {
				t.Fatal(err)
			}
		}, Options{}, gpt.ErrNoTable},
		{"something_else_there", 0, func(t *testing.T, disk *os.File) {
			if _, err := disk.WriteAt([]byte("LUKS\xba\xbe"), 6<<20); err != nil {
				t.Fatal(err)
			}
		}, Options{Partition: 300 << 20}, state.ErrNotEmpty},
	} {
		t.Run(tt.name, func(t *testing.T) {
			disk := newDisk(t, tt.stateMiB)
			if tt.change != nil {
				tt.change(t, disk)
			}
			tt.o.Rand = rand.Reader
			btrfs := strings.HasPrefix(tt.name, "btrfs")
			var before [sha256.Size]byte
			if btrfs {
				before = content(t, disk)
			}
			if made, err := Make(t.Context(), disk, tt.o); !errors.Is(err, tt.want) || made != (Made{}) {
				t.Errorf("Make() = %+v, %v, want %v", made, err, tt.want)
			}
			if btrfs && content(t, disk) != before {
				t.Error("the partition has changed")
			}
		})
	}
	t.Run("no_programs", func(t *testing.T) {
		if _, err := (tools{"debugfs": "/nonexistent/debugfs"}).run(context.Background(), "debugfs", "", nil); err == nil {
			t.Error("a program that is not there runs")
		}
	})
}
