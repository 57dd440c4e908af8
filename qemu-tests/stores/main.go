// Command stores runs the conformance suite of the slots' stores inside a guest:
// against the firmware's real variables and a real FAT file system.
//
//	stores efi | efi-read-only | efi-full | grubenv-darch | grubenv-rauc | bls
package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"sealroot/slots"
	"sealroot/slots/efi"
	"sealroot/slots/efi/efivarfs"
	"sealroot/slots/gpt"
	"sealroot/slots/storetest"
)

const (
	varsDir = "/sys/firmware/efi/efivars"
	fatDir  = "/run/stores"
)

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: stores KIND")
		os.Exit(2)
	}
	r := &result{}
	done := make(chan struct{})
	go func() { // Fatalf ends a goroutine, not the program
		defer close(done)
		r.run(os.Args[1])
	}()
	<-done
	if r.failed {
		os.Exit(1)
	}
	fmt.Println("ok")
}

// result is the suite's T.
type result struct{ failed bool }

var _ storetest.T = (*result)(nil)

func (r *result) Helper() { /* a guest's log names no lines */ }

func (r *result) Logf(format string, args ...any) { fmt.Printf(format+"\n", args...) }

func (r *result) Errorf(format string, args ...any) {
	r.failed = true
	r.Logf(format, args...)
}

func (r *result) Fatalf(format string, args ...any) {
	r.Errorf(format, args...)
	runtime.Goexit()
}

func (r *result) run(kind string) {
	if !strings.HasPrefix(kind, "efi") {
		if err := mountESP(); err != nil {
			r.Fatalf("%v", err)
		}
		defer func() {
			if err := unix.Unmount(fatDir, 0); err != nil {
				r.Errorf("cannot unmount the EFI system partition: %v", err)
			}
		}()
		s, err := storetest.Folder(fatDir, kind)
		if err != nil {
			r.Fatalf("%v", err)
		}
		storetest.Run(r, s)
		return
	}
	if err := mountVars(); err != nil {
		r.Fatalf("%v", err)
	}
	vars := efivarfs.Dir(varsDir)
	switch kind {
	case "efi-read-only":
		r.readOnly(vars)
	case "efi-full":
		r.full(vars)
	default:
		storetest.Run(r, storetest.RealEFI(vars, 40))
	}
}

func mountVars() error {
	var fs unix.Statfs_t
	if err := unix.Statfs(varsDir, &fs); err != nil {
		return fmt.Errorf("cannot find the EFI variables: %w", err)
	}
	if fs.Type == unix.EFIVARFS_MAGIC {
		return nil
	}
	return unix.Mount("efivarfs", varsDir, "efivarfs", 0, "")
}

// mountESP mounts the EFI system partition as PID 1 does, and checks that FAT is
// what the test gets.
func mountESP() error {
	nodes, err := filepath.Glob("/sys/class/block/*/uevent")
	if err != nil {
		return err
	}
	for _, name := range nodes {
		text, err := os.ReadFile(name)
		if err != nil || !slices.Contains(strings.Split(string(text), "\n"), "PARTNAME="+gpt.LabelESP) {
			continue
		}
		if err := os.MkdirAll(fatDir, 0o755); err != nil {
			return err
		}
		node := "/dev/" + filepath.Base(filepath.Dir(name))
		if err := unix.Mount(node, fatDir, "vfat", unix.MS_DIRSYNC, ""); err != nil {
			return fmt.Errorf("cannot mount %s: %w", node, err)
		}
		var fs unix.Statfs_t
		if err := unix.Statfs(fatDir, &fs); err != nil || fs.Type != unix.MSDOS_SUPER_MAGIC {
			return fmt.Errorf("%s is a file system of type %#x, %v", fatDir, fs.Type, err)
		}
		return nil
	}
	return errors.New("no EFI system partition")
}

// good is the state that a refusing firmware is to keep.
func good() []slots.Slot {
	return []slots.Slot{{Name: "a", Priority: 1, Successful: true}, {Name: "b"}}
}

// refused saves while the firmware refuses: an error, and the old state stays.
func (r *result) refused(m storetest.Medium, want error) {
	err := m.Open().Save([]slots.Slot{{Name: "b", Priority: 2, Tries: 3}})
	if !errors.Is(err, want) {
		r.Errorf("Save: got %v, want %v", err, want)
	}
	if now, err := m.Open().Load(); err != nil || !slices.Equal(now, good()) {
		r.Errorf("after a refused Save: %v, %v, want %v", now, err, good())
	}
	if err := m.Open().Save(good()); err != nil {
		r.Errorf("Save of what is so already: %v", err)
	}
	fmt.Printf("refused: %v\n", err)
}

func (r *result) begin(vars efi.Vars) storetest.Medium {
	m := storetest.RealEFI(vars, 1).New()
	if err := m.Open().Save(good()); err != nil {
		r.Fatalf("Save: %v", err)
	}
	return m
}

func (r *result) readOnly(vars efi.Vars) {
	m := r.begin(vars)
	if err := unix.Mount("", varsDir, "", unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
		r.Fatalf("cannot make the EFI variables read-only: %v", err)
	}
	r.refused(m, unix.EROFS)
	if err := unix.Mount("", varsDir, "", unix.MS_REMOUNT, ""); err != nil {
		r.Fatalf("cannot make the EFI variables writable: %v", err)
	}
}

// full fills the firmware's flash until it takes nothing any more.
func (r *result) full(vars efi.Vars) {
	m := r.begin(vars)
	var filled []string
	for size := 16 << 10; size > 0; size /= 4 {
		for len(filled) < 500 {
			name := fmt.Sprintf("SealrootFill%03d", len(filled))
			if vars.Write(name, efi.Sealroot, 7, make([]byte, size)) != nil {
				break
			}
			filled = append(filled, name)
		}
	}
	fmt.Printf("%d variables fill the firmware\n", len(filled))
	r.refused(m, unix.ENOSPC)
	for _, name := range filled {
		if err := vars.Delete(name, efi.Sealroot); err != nil {
			r.Errorf("cannot delete %s: %v", name, err)
		}
	}
	want := []slots.Slot{good()[0], {Name: "b", Priority: 2, Tries: 3}}
	if err := m.Open().Save(want); err != nil {
		fmt.Printf("with room again: %v (firmware that reclaims only at a restart)\n", err)
	}
}
