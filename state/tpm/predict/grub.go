package predict

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"maps"
	"strings"

	"sealroot/state/tpm/pcrsig"
)

// PCRs that EFI GRUB with its module tpm extends (GRUB manual, "Measured Boot").
const (
	PCRGRUBCommands = 8
	PCRGRUBFiles    = 9
)

// GRUB is how EFI GRUB comes to load a kernel on one machine. It hands Linux no event
// log: without Secure Boot, GRUB 2.06 jumps into the kernel past the code that would
// keep it. So its grub.cfg is gone through once more instead, and believed only where
// that gives the PCRs of the present boot (LocateGRUB).
type GRUB struct {
	Script    []byte // grub.cfg
	Disk      string // GRUB's name of the boot disk, as hd0
	Partition int    // number of the partition with the slots' boot files
	CmdPath   string // what GRUB was started from: its variable cmdpath
	PartUUID  string // of the partition, as GRUB spells it

	// loaded is the slot of the present boot, and measured what went into PCR 8 for it;
	// "" before LocateGRUB.
	loaded   string
	measured []string
}

// BootFiles are the SHA-256 digests of a slot's files.
type BootFiles struct{ Kernel, Initrd [32]byte }

// Values predicts PCR 8 and 9, in bank sha256, of a boot in which a slot's kernel is
// loaded. They are those of its trial and, once it is committed, of every boot:
// another result is an ErrGRUB.
func (g GRUB) Values(slot string, files BootFiles) (pcrsig.Values, error) {
	values, _, err := g.boot(slot, files)
	return values, err
}

// boot is Values, and what goes into PCR 8.
func (g GRUB) boot(slot string, files BootFiles) (_ pcrsig.Values, measured []string, err error) {
	list, err := parseScript(g.Script)
	if err != nil {
		return nil, nil, err
	}
	var both [2]pcrsig.Values
	for i, env := range []map[string]string{
		{"sealroot_default": slot, "sealroot_once": ""},
		{"sealroot_default": "", "sealroot_once": slot},
	} {
		if both[i], measured, err = g.bootWith(list, env, slot, files); err != nil {
			return nil, nil, err
		}
	}
	if !maps.EqualFunc(both[0], both[1], bytes.Equal) {
		return nil, nil, fmt.Errorf("%w: slot %s has other PCRs on trial than as the default", ErrGRUB, slot)
	}
	return both[0], measured, nil
}

func (g GRUB) bootWith(list []statement, env map[string]string, slot string, files BootFiles) (_ pcrsig.Values, measured []string, err error) {
	esp := fmt.Sprintf("(%s,gpt%d)", g.Disk, g.Partition)
	s := scriptRun{
		vars: map[string]string{"grub_platform": "efi", "cmdpath": g.CmdPath}, env: env, partUUID: g.PartUUID,
		there: func(path string) bool { return path == esp+"/sealroot/grubenv" },
	}
	how, err := s.all(list)
	if err != nil {
		return nil, nil, err
	}
	dir := slotDir + slot
	if how != boots || len(s.files) != 2 || s.files[0] != dir+"/vmlinuz" || s.files[1] != dir+"/initrd" {
		return nil, nil, fmt.Errorf("%w: grub.cfg loads %q for slot %s", ErrGRUB, s.files, slot)
	}
	if g.loaded != "" {
		if err := sameCommands(g.measured, s.measured, g.loaded, slot); err != nil {
			return nil, nil, err
		}
	}
	values := pcrsig.Values{PCRGRUBFiles: extendBy(extendBy(make([]byte, 32), files.Kernel), files.Initrd)}
	v := make([]byte, 32)
	for _, text := range s.measured {
		v = extendBy(v, sha256.Sum256([]byte(text)))
	}
	values[PCRGRUBCommands] = v
	return values, s.measured, nil
}

// slotDir holds the folders with the slots' boot files.
const slotDir = "/sealroot/"

// sameCommands compares what grub.cfg gives for a slot with what the PCRs of this boot
// have vouched for, of slot loaded: only the name of the slot may be another. The PCRs
// say nothing of what grub.cfg does for any other slot, and whoever writes to the disk
// may have put another command line there. Errors are ErrGRUB.
func sameCommands(vouched, measured []string, loaded, slot string) error {
	if len(vouched) != len(measured) {
		return fmt.Errorf("%w: grub.cfg runs %d commands for slot %s, and %d for slot %s", ErrGRUB, len(measured), slot, len(vouched), loaded)
	}
	for i, line := range vouched {
		was, is := strings.Split(line, " "), strings.Split(measured[i], " ")
		same := len(was) == len(is)
		for n := 0; same && n < len(was); n++ {
			// A name alone may also be one of a list in which the slot is looked for.
			same = is[n] == ofSlot(was[n], loaded, slot) || was[n] == loaded && is[n] == loaded
		}
		if !same {
			return fmt.Errorf("%w: grub.cfg does %.200q for slot %s, and %.200q for slot %s", ErrGRUB, measured[i], slot, line, loaded)
		}
	}
	return nil
}

// ofSlot is a word of a command as it is for another slot.
func ofSlot(word, from, to string) string {
	const option = "sealroot.slot="
	rest, below := strings.CutPrefix(word, slotDir+from+"/")
	switch {
	case below:
		return slotDir + to + "/" + rest
	case word == from, word == option+from:
		return strings.TrimSuffix(word, from) + to
	}
	return word
}

// extendBy is one extend of a PCR in bank sha256.
func extendBy(value []byte, digest [32]byte) []byte {
	sum := sha256.Sum256(append(bytes.Clone(value), digest[:]...))
	return sum[:]
}

// maxDisks is how many of GRUB's disks are tried.
const maxDisks = 16

// LocateGRUB finds out what GRUB called its disk and its program in the present boot:
// what gives the PCRs 8 and 9 that are there, bank sha256, for the slot that was loaded.
// What it returns has values for another slot only where grub.cfg does the same for it.
// g.Disk and g.CmdPath are not used. Errors are ErrGRUB.
func LocateGRUB(g GRUB, slot string, files BootFiles, present pcrsig.Values) (GRUB, error) {
	g.loaded, g.measured = "", nil
	got := pcrsig.Values{}
	for n := range maxDisks {
		g.Disk = fmt.Sprintf("hd%d", n)
		for _, dir := range []string{"/EFI/BOOT", "/efi/boot", "/EFI/boot", ""} {
			g.CmdPath = fmt.Sprintf("(%s,gpt%d)%s", g.Disk, g.Partition, dir)
			values, measured, err := g.boot(slot, files)
			if err != nil {
				return GRUB{}, err
			}
			got = values
			if bytes.Equal(values[PCRGRUBCommands], present[PCRGRUBCommands]) && bytes.Equal(values[PCRGRUBFiles], present[PCRGRUBFiles]) {
				g.loaded, g.measured = slot, measured
				return g, nil
			}
		}
	}
	if !bytes.Equal(got[PCRGRUBFiles], present[PCRGRUBFiles]) {
		return GRUB{}, fmt.Errorf("%w: PCR 9 of this boot is not that of the kernel and initramfs of slot %s as they are now", ErrGRUB, slot)
	}
	return GRUB{}, fmt.Errorf("%w: PCR 8 of this boot is not what its grub.cfg gives for slot %s", ErrGRUB, slot)
}

// PartUUIDIn is how GRUB spelt the partition in a kernel command line of ours; "" when
// it has none.
func PartUUIDIn(cmdline string) string {
	for _, w := range strings.Fields(cmdline) {
		if uuid, ok := strings.CutPrefix(w, "sealroot.disk="); ok {
			return uuid
		}
	}
	return ""
}
