package main

import (
	"crypto/sha256"
	"encoding/json"
	"errors"
	"maps"
	"os"
	"slices"
	"strings"
	"testing"

	"sealroot/init/config"
	"sealroot/init/report"
	"sealroot/sealroot/bootset"
	"sealroot/sealroot/install"
	"sealroot/slots"
	"sealroot/slots/manifest"
	"sealroot/state/enrol"
	"sealroot/state/tpm"
	"sealroot/state/tpm/predict"
)

// script is a grub.cfg in small.
const script = `load_env --skip-sig --file env sealroot_once sealroot_default
for slot in $sealroot_once $sealroot_default; do
  if linux /sealroot/$slot/vmlinuz sealroot.slot=$slot; then
    if initrd /sealroot/$slot/initrd; then
      boot
    fi
  fi
done
`

// onGRUB is a machine whose state is sealed to what EFI GRUB measures.
type onGRUB struct {
	*sealed
	*fake
	held map[string]string // kernel and initramfs of each slot, in a word
	// signed is what the slots' manifests name.
	signed   map[string]string
	firmware string // what PCR 7 tells
}

func (g *onGRUB) Tries() int             { return 3 }
func (g *onGRUB) Replicates(string) bool { return false }
func (g *onGRUB) Install(changed func(place, slot string)) (install.Machine, error) {
	set, err := g.BootSet(changed)
	return install.Machine{Machine: set}, err
}

func filesCalled(word string) predict.BootFiles {
	return predict.BootFiles{Kernel: sha256.Sum256([]byte("kernel " + word)), Initrd: sha256.Sum256([]byte("initrd " + word))}
}

func (g *onGRUB) GRUB() (predict.GRUB, map[string]predict.BootFiles, error) {
	files := map[string]predict.BootFiles{}
	for slot, word := range g.held {
		files[slot] = filesCalled(word)
	}
	return predict.GRUB{Script: []byte(script), Partition: 2}, files, nil
}

// Manifest is a slot's, whose signature nobody doubts.
func (g *onGRUB) Manifest(slot, trust string) (manifest.Manifest, error) {
	if trust == "" {
		g.t.Error("no folder with certificates")
	}
	if g.signed[slot] == "" {
		return manifest.Manifest{}, errors.New("no signed manifest")
	}
	return set(g.signed[slot]), nil
}

// start boots a slot as far as the hand-over: what GRUB says to the TPM is written
// out here, and tells whether the TPM opens the volume.
func (g *onGRUB) start(slot string) (opens bool) {
	g.t.Helper()
	g.sealed.boot(g.firmware, false)
	word := g.held[slot]
	for _, e := range []struct {
		pcr  int
		text string
	}{
		{8, "load_env --skip-sig --file env sealroot_once sealroot_default"},
		{8, "linux /sealroot/" + slot + "/vmlinuz sealroot.slot=" + slot},
		{8, "/sealroot/" + slot + "/vmlinuz sealroot.slot=" + slot},
		{9, "kernel " + word},
		{8, "initrd /sealroot/" + slot + "/initrd"},
		{9, "initrd " + word},
		{8, "boot"},
	} {
		if err := tpm.New(g.tpm).Extend(g.t.Context(), e.pcr, []byte(e.text)); err != nil {
			g.t.Fatal(err)
		}
	}
	opens = g.opensByTPM()
	g.sealed.close()
	g.report.Slot.Name, g.report.Slot.Loaded = slot, slot
	return opens
}

// newOnGRUB is such a machine, which runs slot a; only the recovery key opens more.
func newOnGRUB(t *testing.T) *onGRUB {
	t.Helper()
	g := &onGRUB{sealed: newSealed(t), firmware: "A", held: map[string]string{"a": "1", "b": "old"}}
	g.signed = maps.Clone(g.held)
	g.fake = &fake{list: []slots.Slot{{Name: "a", Priority: 2, Successful: true}, {Name: "b"}}}
	g.config.Boot.Loader, g.config.Trust.MeasurePCR = config.LoaderGRUB, 13
	g.config.State.TPM2.PCRs = []int{8, 9}
	g.report.BootPath, g.report.Schema, g.report.Name = string(enrol.GRUBEFI), report.Schema, "kiosk"
	g.env.Open = func(Where) (Machine, error) { return g, nil }
	g.start("a")
	g.ok("state", "enroll", "--recovery-key-file", g.file(string(g.recovery)))
	if !g.start("a") {
		t.Fatal("control: slot a does not open its own state")
	}
	return g
}

func (g *onGRUB) command() *command {
	g.status() // writes report and configuration
	return &command{env: g.env, stdout: &strings.Builder{}, stderr: &strings.Builder{}}
}

// set is the manifest of a set with such files.
func set(word string) manifest.Manifest {
	f := filesCalled(word)
	return manifest.Manifest{Version: word, RootHash: make([]byte, 32), Sealed: "pcrs 8 9", Parts: []manifest.Part{
		{Name: manifest.Kernel, SHA256: f.Kernel}, {Name: manifest.Initrd, SHA256: f.Initrd},
	}}
}

// install is what the command does about the state when a set goes into a slot.
func (g *onGRUB) install(slot, word, recoveryKey string) error {
	none := ""
	c, u := g.command(), update{}
	defer u.close()
	before := g.header().SequenceID()
	if err := u.decide(g.t.Context(), c, g, *g.report, authority{&recoveryKey, &none}, slot, set(word)); err != nil {
		if g.header().SequenceID() != before {
			g.t.Error("the header was changed by what was refused")
		}
		return err
	}
	if err := u.ready(g.t.Context(), c); err != nil {
		return err
	}
	g.held[slot] = word
	i := slices.IndexFunc(g.list, func(s slots.Slot) bool { return s.Name == slot })
	g.list[i] = slots.Slot{Name: slot, Priority: 3, Tries: 3}
	return nil
}

// commit commits the slot that runs.
func (g *onGRUB) commit() {
	g.t.Helper()
	i := slices.IndexFunc(g.list, func(s slots.Slot) bool { return s.Name == g.report.Slot.Name })
	g.list[i].Successful, g.list[i].Tries = true, 0
	c := g.command()
	c.dropUnused(g.t.Context(), target{machine: g, report: *g.report})
}

func (g *onGRUB) tokens() int { return len(g.header().TokensOfType(tpm.TokenType)) }

func TestUpdateOfAStateSealedToItsImage(t *testing.T) {
	g := newOnGRUB(t)
	if g.held["b"] = "2"; g.start("b") {
		t.Fatal("control: another image opens the state, and nothing was prepared")
	}
	g.held["b"] = "old"
	g.start("a")
	if err := g.install("b", "2", ""); !errors.Is(err, bootset.ErrRefused) || !strings.Contains(err.Error(), "state.manage_key") {
		t.Errorf("without a key: %v, want a refusal with the remedy", err)
	}
	key := g.file(string(g.recovery))
	for n, step := range []struct{ slot, other string }{{"b", "a"}, {"a", "b"}, {"b", "a"}, {"a", "b"}} {
		if err := g.install(step.slot, "version "+string(rune('2'+n)), key); err != nil {
			t.Fatal(err)
		}
		if !g.start(step.slot) {
			t.Fatalf("update %d: the trial does not open the state", n)
		}
		g.commit()
		for _, slot := range []string{step.slot, step.other, step.slot} {
			if !g.start(slot) {
				t.Errorf("update %d: committed, slot %s does not open the state", n, slot)
			}
		}
		if got := g.tokens(); got != 2 {
			t.Errorf("update %d: %d tokens are left, want those of two slots", n, got)
		}
	}
	if !g.cryptsetup(g.recovery) {
		t.Error("cryptsetup refuses the recovery key after it")
	}
}

// Images that are installed over each other without a commit do not fill the header.
func TestAbandonedUpdatesLeaveNoToken(t *testing.T) {
	g := newOnGRUB(t)
	key := g.file(string(g.recovery))
	for _, word := range []string{"2", "3", "4", "4", "5"} {
		if err := g.install("b", word, key); err != nil {
			t.Fatal(err)
		}
		if got := g.tokens(); got > 3 {
			t.Errorf("%d tokens after version %s", got, word)
		}
	}
	if !g.start("b") || !g.start("a") {
		t.Error("a slot does not open the state")
	}
	g.commit()
	if got := g.tokens(); got != 2 {
		t.Errorf("%d tokens are left, want those of two slots", got)
	}
}

// Where PCRs moved that no image moves, nobody knows which come back: no token goes.
func TestTokensStayWhereOtherPCRsMoved(t *testing.T) {
	g := newOnGRUB(t)
	key := g.file(string(g.recovery))
	g.config.State.TPM2.PCRs = []int{7, 8, 9}
	g.ok("state", "enroll", "--recovery-key-file", key)
	if err := g.install("b", "2", key); err != nil {
		t.Fatal(err)
	}
	if g.firmware = "B"; g.start("b") {
		t.Fatal("control: the state opens although PCR 7 is another")
	}
	g.commit()
	g.firmware = "A"
	if !g.start("b") || !g.start("a") {
		t.Error("a slot does not open the state when PCR 7 is back")
	}
}

func TestPrepareUpdateOfASlot(t *testing.T) {
	g := newOnGRUB(t)
	trust := certificates(t)
	args := []string{"state", "prepare-update", "--trust", trust, "--recovery-key-file", g.file(string(g.recovery)), "--json"}
	for _, already := range []bool{false, true} {
		out := g.ok(args...)
		fitsResult(t, out)
		var r struct {
			Slot string   `json:"slot"`
			Data prepared `json:"data"`
		}
		if err := json.Unmarshal([]byte(out), &r); err != nil || r.Slot != "b" || r.Data.Already != already {
			t.Errorf("%+v, %v, want slot b, already %v", r, err, already)
		}
	}
	if !g.start("b") || !g.start("a") {
		t.Error("a slot does not open the state")
	}
	// Somebody writes files of their own into the slot: what was signed counts.
	g.held["b"] = "theirs"
	g.signed["b"] = "3"
	g.ok(args...)
	if g.start("b") {
		t.Error("files that nobody signed open the state")
	}
	g.start("a")
	for _, c := range []struct {
		name   string
		change func()
		args   []string
		code   int
		want   string
	}{
		{"no_such_slot", nil, []string{"--slot", "c"}, exitUsage, "--slot"},
		{"no_set", nil, []string{g.file("")}, exitBad, "manifest.json"},
		{"degraded", func() { g.report.Degraded = true }, nil, exitRefused, "no encrypted volume"},
		{"not_signed", func() { g.report.Degraded = false; g.signed["b"] = "" }, nil, exitRefused, "no signed manifest"},
		{"other_boot", func() { g.signed["b"] = "2"; g.held["a"] = "changed" }, nil, exitRefused, "PCR 9 of this boot"},
		{"other_pcrs", func() { g.held["a"] = "1"; g.config.State.TPM2.PCRs = []int{8, 9, 13} }, nil, exitRefused, "only [8 9] can"},
		{"signed_pcr_11", func() { g.config.State.TPM2.Policy = config.PolicySignedPCR11And4 }, nil, exitRefused, "the TPM's record"},
	} {
		if c.change != nil {
			c.change()
		}
		before := g.header().SequenceID()
		code, _, errs := g.run(append([]string{"state", "prepare-update", "--trust", trust}, c.args...)...)
		if code != c.code || !strings.Contains(errs, c.want) || g.header().SequenceID() != before {
			t.Errorf("%s: exit status %d, %q; want %d with %q, and no change", c.name, code, errs, c.code, c.want)
		}
	}
}

// The manage key needs nobody; a copy of the running slot has commands of its own too.
func TestCopyOfTheRunningSlotOpensTheState(t *testing.T) {
	g := newOnGRUB(t)
	c := g.command()
	if err := c.prepareCopy(t.Context(), g, *g.report, "trust", "b"); err != nil || len(c.result.Messages) != 1 || !strings.Contains(c.result.Messages[0], "WARNING") {
		t.Errorf("without a key: %v, %q, want a warning", err, c.result.Messages)
	}
	g.config.State.ManageKey = true
	g.ok("state", "rekey", "--recovery-key-file", g.file(string(g.recovery)))
	if _, err := os.Stat(g.env.manageKey()); err != nil {
		t.Fatal(err)
	}
	if err := g.command().prepareCopy(t.Context(), g, *g.report, "trust", "b"); err != nil {
		t.Error(err)
	}
	g.held["b"] = g.held["a"]
	if !g.start("b") || !g.start("a") {
		t.Error("a slot does not open the state")
	}
}
