package qemutests

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"sealroot/qemu-tests/writes"
	"sealroot/slots"
	"sealroot/slots/bootlog"
	"sealroot/slots/gpt"
	"sealroot/slots/grubenv"
	"sealroot/verity"
	"sealroot/verity/signature"
)

// hostBoots goes through the boots of a machine with GRUB and the store gpt on
// the host, on disks that power cuts may have left: what GRUB's configuration
// does with the environment block, then the decisions of PID 1, by its own code.
type hostBoots struct {
	size     int64 // of the disk
	grubenv  int64 // where GRUB's environment block is, which never moves
	trust    string
	judged   map[[32]byte]error // slot contents that veritysetup has judged
	verified int
}

// section is a part of a disk, as the device that a format's code wants.
type section struct {
	disk         *writes.Disk
	offset, size int64
}

func (s section) ReadAt(b []byte, off int64) (int, error) {
	return io.NewSectionReader(s.disk, s.offset, s.size).ReadAt(b, off)
}

func (s section) WriteAt(b []byte, off int64) (int, error) {
	if off < 0 || off+int64(len(b)) > s.size {
		return 0, errors.New("a write outside of its section")
	}
	return s.disk.WriteAt(b, s.offset+off)
}

func (s section) Sync() error { return nil }

func newHostBoots(t *testing.T, disk *Disk) *hostBoots {
	t.Helper()
	info, err := os.Stat(disk.Path)
	if err != nil {
		t.Fatal(err)
	}
	environment, found := disk.grubenvOffset(t)
	if !found {
		t.Fatal("no environment block on the ESP")
	}
	return &hostBoots{
		size: info.Size(), grubenv: environment,
		trust: filepath.Join(keysDir(t), "image.crt"), judged: map[[32]byte]error{},
	}
}

// mostBoots is more than it can take until a slot runs.
const mostBoots = 6

// boot boots until a slot is started, which must hold a good image. The disk
// changes as a machine's would.
func (h *hostBoots) boot(d *writes.Disk) (slot string, boots int, err error) {
	for boots = 1; boots <= mostBoots; boots++ {
		decision, err := h.once(d)
		if err != nil {
			return "", boots, err
		}
		if decision.Reboot {
			continue
		}
		return decision.Slot, boots, h.good(d, decision.Slot)
	}
	return "", boots, fmt.Errorf("no slot runs after %d boots", mostBoots)
}

// once is one boot up to the decision.
func (h *hostBoots) once(d *writes.Disk) (slots.Decision, error) {
	table, err := gpt.Read(d, h.size, sectorSize)
	if err != nil {
		return slots.Decision{}, err
	}
	list, err := table.Slots(gpt.Naming{})
	if err != nil {
		return slots.Decision{}, err
	}
	part, err := table.ByName(gpt.LabelLog)
	if err != nil {
		return slots.Decision{}, err
	}
	log := bootlog.Log{Dev: section{d, table.Offset(part), table.Size(part)}}
	hint := grubenv.Hint{File: section{d, h.grubenv, grubenv.Size}}
	loaded, err := h.grub(hint)
	if err != nil {
		return slots.Decision{}, err
	}
	o := slots.Observed{Slots: list, Loaded: loaded, LogReadable: true,
		Hint: slots.HintState{Known: true, Supported: true}}
	record, err := log.Load()
	if err != nil {
		return slots.Decision{}, err // two copies: no power cut destroys both
	}
	o.Armed, o.Failures, o.Pauses = record.Armed, record.SlotFailures(), record.Pauses
	decision, err := slots.Decide(o)
	if err != nil {
		return slots.Decision{}, err
	}
	return decision, slots.Apply(decision, gpt.Store{Dev: d, Size: h.size, SectorSize: sectorSize}, hint, log)
}

// grub is what our grub.cfg does: the one-shot is cleared and followed once,
// else the default, else slot a. An environment that GRUB cannot read is none.
func (h *hostBoots) grub(hint grubenv.Hint) (loaded string, err error) {
	block := make([]byte, grubenv.Size)
	if _, err := hint.File.ReadAt(block, 0); err != nil {
		return "", err
	}
	loaded = "a"
	env, err := grubenv.Parse(block)
	if errors.Is(err, grubenv.ErrFormat) {
		return loaded, nil
	}
	if err != nil {
		return "", err
	}
	if v, _ := env.Get(grubenv.Default); v == "b" {
		loaded = v
	}
	if once, _ := env.Get(grubenv.Once); once == "a" || once == "b" {
		loaded = once
	}
	return loaded, hint.Clear()
}

// good has veritysetup judge what a slot holds, against a root hash whose
// signature our own code verifies. Equal contents are judged once.
func (h *hostBoots) good(d *writes.Disk, slot string) error {
	table, err := gpt.Read(d, h.size, sectorSize)
	if err != nil {
		return err
	}
	var parts [3]section
	content := make([]byte, 0, 3*32+1)
	for i, label := range []string{gpt.RootLabel(slot), gpt.VerityLabel(slot), gpt.SigLabel(slot)} {
		p, err := table.ByName(label)
		if err != nil {
			return err
		}
		parts[i] = section{d, table.Offset(p), table.Size(p)}
		digest := d.Digest(parts[i].offset, parts[i].size)
		content = append(content, digest[:]...)
	}
	key := sha256.Sum256(append(content, slot...))
	if judged, ok := h.judged[key]; ok {
		return judged
	}
	h.verified++
	err = judgeSlot(parts[0], parts[1], parts[2], h.trust)
	if err != nil {
		err = fmt.Errorf("slot %s: %w", slot, err)
	}
	h.judged[key] = err
	return err
}

// judgeSlot runs veritysetup on copies of the image and its hash tree.
func judgeSlot(root, tree, sig io.ReaderAt, trust string) error {
	text, err := os.ReadFile(trust)
	if err != nil {
		return err
	}
	certificates, err := signature.ParseCertificates(text)
	if err != nil {
		return err
	}
	signed, err := signature.Read(sig)
	if err != nil {
		return err
	}
	hash, _, err := signature.Verify(signed, certificates)
	if err != nil {
		return err
	}
	p, err := verity.ReadSuperblock(tree)
	if err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "sealroot-judge")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	var paths [2]string
	for i, part := range []struct {
		r    io.ReaderAt
		size int64
	}{{root, p.DataSize()}, {tree, p.HashSize()}} {
		data := make([]byte, part.size)
		if _, err := part.r.ReadAt(data, 0); err != nil {
			return err
		}
		paths[i] = filepath.Join(dir, fmt.Sprint(i))
		if err := os.WriteFile(paths[i], data, 0o600); err != nil {
			return err
		}
	}
	if output, err := runTool("veritysetup", "verify", paths[0], paths[1], fmt.Sprintf("%x", hash)); err != nil {
		return fmt.Errorf("veritysetup verify: %w: %s", err, strings.TrimSpace(output))
	}
	return nil
}
