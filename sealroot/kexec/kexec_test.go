package kexec

import (
	"bytes"
	"encoding/binary"
	"errors"
	"strings"
	"syscall"
	"testing"

	"sealroot/sealroot/bootset"
	"sealroot/slots"
)

func slot(name string, priority, tries int, successful bool) slots.Slot {
	return slots.Slot{Name: name, Priority: priority, Tries: tries, Successful: successful}
}

func TestBoots(t *testing.T) {
	committed := []slots.Slot{slot("a", 2, 0, true), slot("b", 1, 0, true)}
	trial := []slots.Slot{slot("a", 1, 0, true), slot("b", 2, 3, false)}
	hint := func(armed string) slots.HintState {
		return slots.HintState{Slot: armed, Known: true, Supported: true}
	}
	for _, tt := range []struct {
		name, slot string
		o          slots.Observed
		says       string // "" when it boots
		next       string
	}{
		{"first_of_two_committed", "a", slots.Observed{Slots: committed, Hint: hint("")}, "", "a"},
		{"second_of_two_committed", "b", slots.Observed{Slots: committed, Hint: hint("")}, "slot a comes first", "a"},
		{"on_trial", "b", slots.Observed{Slots: trial, Hint: hint("b"), Armed: "b"}, "on trial", "b"},
		{"beside_a_trial_that_is_armed", "a", slots.Observed{Slots: trial, Hint: hint("b"), Armed: "b"}, "", "b"},
		// There PID 1 would restart into the trial, or count a try of it.
		{"beside_a_trial_that_is_not_armed", "a", slots.Observed{Slots: trial, Hint: hint("")}, "comes first", "b"},
		{"beside_a_trial_that_never_came", "a", slots.Observed{Slots: trial, Hint: hint(""), Armed: "b"}, "comes first", "b"},
		// Else PID 1 would take its coming for a proof that the loader starts it.
		{"its_kernel_was_asked_for", "a", slots.Observed{Slots: committed, Hint: hint("a"), Armed: "a"}, "was asked to load", "a"},
		{"with_tries_that_are_counted", "a", slots.Observed{Slots: []slots.Slot{slot("a", 2, 2, true)}, Refill: 3}, "", "a"},
		{"its_tries_are_used_up", "a", slots.Observed{Slots: []slots.Slot{slot("a", 2, 0, true), slot("b", 1, 1, true)}, Refill: 3}, "slot b comes first", "b"},
		{"marked_bad", "b", slots.Observed{Slots: []slots.Slot{slot("a", 2, 0, true), slot("b", 0, 0, false)}}, "slot a comes first", "a"},
		{"nothing_is_bootable", "a", slots.Observed{Slots: []slots.Slot{slot("a", 0, 0, false)}}, "no slot is bootable", "a"},
		{"no_such_slot", "c", slots.Observed{Slots: committed}, "no such slot", "a"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tt.o.LogReadable = true
			err := Boots(tt.o, tt.slot)
			if tt.says == "" && err != nil || tt.says != "" && (err == nil || !strings.Contains(err.Error(), tt.says) || !errors.Is(err, bootset.ErrRefused) && !errors.Is(err, bootset.ErrUsage)) {
				t.Errorf("Boots() = %v, want %q", err, tt.says)
			}
			if got := Next(tt.o); got != tt.next {
				t.Errorf("Next() = %s, want %s", got, tt.next)
			}
			if err != nil {
				return
			}
			// What PID 1 decides then: this slot, now, and nothing that it arms or sets.
			tt.o.Loaded = tt.slot
			d, err := slots.Decide(tt.o)
			if err != nil || d.Slot != tt.slot || d.Reboot || d.NeedOwnKernel || d.Spends != "" || d.Rearm != "" || d.SetDefault != "" {
				t.Errorf("Decide() = %+v, %v", d, err)
			}
		})
	}
}

// The line is the one that grub.cfg gives a slot (mkinitramfs/grub/grub.cfg), word by
// word, but for the name of the file, which GRUB adds.
func TestLine(t *testing.T) {
	const disk = "11111111-2222-4333-8444-555555555555"
	const rest = "ro gpt panic=10 console=ttyS0 quiet -- x"
	running := "BOOT_IMAGE=/sealroot/a/vmlinuz sealroot.slot=a sealroot.disk=" + disk + " " + rest + " sealroot.reset\n"
	want := "sealroot.slot=b sealroot.disk=" + disk + " " + rest
	for _, line := range []string{running, want, rest} {
		if got, err := Line(line, "b", disk); got != want || err != nil {
			t.Errorf("Line(%q) = %q, %v, want %q", line, got, err, want)
		}
	}
	if got, _ := Line(rest, "a", ""); got != "sealroot.slot=a "+rest {
		t.Errorf("without a partition: %q", got)
	}
	if _, err := Line(strings.Repeat("x", maxLine), "a", ""); !errors.Is(err, bootset.ErrRefused) {
		t.Errorf("a line that x86 would cut: %v", err)
	}
}

// image is the least of a PE file with these sections; what they hold is filled up to
// 512 bytes in the file.
func image(sections map[string]string, order ...string) []byte {
	le := binary.LittleEndian
	head := make([]byte, 512)
	copy(head, "MZ")
	le.PutUint32(head[0x3c:], 64)
	copy(head[64:], "PE\x00\x00")
	le.PutUint16(head[68:], 0x8664)
	le.PutUint16(head[70:], uint16(len(order)))
	var body []byte
	for i, name := range order {
		data := []byte(sections[name])
		at := head[88+40*i:]
		copy(at, name)
		padded := append(data, make([]byte, (512-len(data)%512)%512)...)
		le.PutUint32(at[8:], uint32(len(data)))
		le.PutUint32(at[16:], uint32(len(padded)))
		le.PutUint32(at[20:], uint32(len(head)+len(body)))
		body = append(body, padded...)
	}
	return append(head, body...)
}

func TestFromUKI(t *testing.T) {
	parts := map[string]string{".linux": "kernel\x00\x00", ".initrd": strings.Repeat("initrd", 200), ".cmdline": "ro quiet\x00", ".osrel": "ID=x"}
	uki := image(parts, ".osrel", ".cmdline", ".linux", ".initrd")
	k, err := FromUKI(uki)
	if err != nil || string(k.Image) != parts[".linux"] || string(k.Initrd) != parts[".initrd"] || k.Cmdline != "ro quiet" {
		t.Errorf("FromUKI() = %q, %q, %q, %v", k.Image, k.Initrd, k.Cmdline, err)
	}
	for name, bad := range map[string][]byte{
		"no_initrd": image(parts, ".linux", ".cmdline"), "cut": uki[:len(uki)-1000], "no_pe": []byte("MZ"), "empty": nil,
	} {
		if k, err := FromUKI(bad); !errors.Is(err, errSections) || k.Image != nil || k.Initrd != nil {
			t.Errorf("%s: FromUKI() = %+v, %v", name, k, err)
		}
	}
}

func FuzzFromUKI(f *testing.F) {
	f.Add(image(map[string]string{".linux": "k", ".initrd": "i", ".cmdline": "c"}, ".linux", ".initrd", ".cmdline"))
	f.Fuzz(func(t *testing.T, data []byte) {
		k, err := FromUKI(data)
		if err != nil && (k.Image != nil || k.Initrd != nil || k.Cmdline != "") {
			t.Errorf("an error and %+v", k)
		}
	})
}

func TestExplain(t *testing.T) {
	for _, tt := range []struct {
		err                      error
		disabled, lockdown, says string
		refused                  bool
	}{
		{syscall.ENOSYS, "", "", "CONFIG_KEXEC_FILE", true},
		{syscall.EPERM, "1\n", "[none] integrity confidentiality", "kexec_load_disabled", true},
		{syscall.EPERM, "0\n", "none [integrity] confidentiality", "signed with a key", true},
		{syscall.EPERM, "0\n", "[none] integrity confidentiality", "does not allow", true},
		{syscall.EKEYREJECTED, "", "", "signed with a key", true},
		{syscall.ENOEXEC, "", "", "no kernel", true},
		{syscall.ENOMEM, "", "", "cannot allocate", false},
	} {
		err := explain(tt.err, tt.disabled, tt.lockdown)
		if !strings.Contains(err.Error(), tt.says) || !errors.Is(err, tt.err) || errors.Is(err, bootset.ErrRefused) != tt.refused {
			t.Errorf("%v: %v", tt.err, err)
		}
	}
}

// The kernel takes no file that somebody has open for writing.
func TestInMemory(t *testing.T) {
	want := bytes.Repeat([]byte("kernel"), 1000)
	f, err := inMemory("kernel", want)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	got := make([]byte, len(want))
	if _, err := f.ReadAt(got, 0); err != nil || !bytes.Equal(got, want) {
		t.Errorf("it reads otherwise: %v", err)
	}
	if _, err := f.WriteAt([]byte("x"), 0); err == nil {
		t.Error("it is open for writing")
	}
}
