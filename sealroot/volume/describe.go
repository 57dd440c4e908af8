package volume

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/tabwriter"

	"sealroot/init/report"
	"sealroot/sealroot/sharing"
	"sealroot/state/luks2"
)

// Schema is the version of Description's JSON form, docs/state.schema.json.
const Schema = 1

// Description is what `sealroot state status` tells.
type Description struct {
	Schema int `json:"schema"`
	// Volume: open, locked (there is one, and this boot runs without it), none, or
	// unusable.
	Volume   string `json:"volume"`
	UUID     string `json:"uuid,omitempty"`
	Bytes    int64  `json:"bytes,omitempty"`          // of the file: mostly a hole
	Reserved int64  `json:"reserved_bytes,omitempty"` // on the partition
	// ReadOnly is why nothing can be written to the volume.
	ReadOnly string   `json:"read_only,omitempty"`
	ThisBoot ThisBoot `json:"this_boot"`
	// NextBoot: by-itself, key-file, asks, locked or unknown.
	NextBoot string    `json:"next_boot"`
	Keyslots []Keyslot `json:"keyslots"`
	Tokens   []Token   `json:"tokens"`
	// Recovery: none, enrolled, escrowed, waiting-to-be-shown.
	Recovery string `json:"recovery"`
	Escrow   bool   `json:"escrow"` // the file with the escrowed recovery key is there
	// ManageKey: none, kept, or lost: its keyslot is there and the file is not.
	ManageKey string `json:"manage_key"`
	// Space is what partition and volume have; nil where no volume is open.
	Space    *sharing.Sides `json:"space,omitempty"`
	Problems []string       `json:"problems"`
	ToDo     []string       `json:"to_do"`
}

// ThisBoot is how PID 1 opened the volume.
type ThisBoot struct {
	Unlocked string   `json:"unlocked"`
	Keyslot  int      `json:"keyslot"`
	Token    int      `json:"token"` // -1: none
	Attempts []string `json:"attempts"`
}

// Facts are what a description is made from.
type Facts struct {
	Report report.Report
	// Image is nil when it cannot be read, which Err says.
	Image *Image
	Err   error
	// ReadOnlyMount: the file system inside is mounted read-only. MountErr: why that is
	// not known.
	ReadOnlyMount bool
	MountErr      error
	// KeyWaits, Escrow and ManageFile tell which files are there.
	KeyWaits, Escrow, ManageFile bool
	// KeyFile: PID 1 looks for a key file.
	KeyFile bool
	// People: PID 1 asks for a key when the TPM does not open the volume.
	People bool
}

// Describe makes the description; the TPM is asked about each of its tokens.
func (l Look) Describe(ctx context.Context, f Facts) Description {
	s := f.Report.State
	d := Description{
		Schema: Schema, Volume: "open", UUID: s.UUID, NextBoot: "unknown", Recovery: "none", ManageKey: "none", Escrow: f.Escrow,
		ThisBoot: ThisBoot{s.Unlocked, s.Keyslot, s.Token, append([]string{}, s.Attempts...)},
		Keyslots: []Keyslot{}, Tokens: []Token{}, Problems: []string{}, ToDo: []string{},
	}
	if f.Report.Degraded {
		d.Volume = "locked"
	}
	if f.Image == nil {
		d.unreadable(f)
		return d
	}
	h := f.Image.Header
	if d.Volume == "open" && h.UUID() != s.UUID {
		d.Problems = append(d.Problems, fmt.Sprintf("the volume on the disk is %s, the one that is open is %s", h.UUID(), s.UUID))
	}
	d.UUID, d.Bytes, d.Reserved = h.UUID(), f.Image.Bytes, f.Image.Reserved
	d.Keyslots, d.Tokens = Keyslots(h), l.Tokens(ctx, h)
	d.NextBoot = nextBoot(d, f)
	d.recovery(f)
	d.manage(f)
	d.readOnly(f)
	d.advise(h, f)
	d.rollKey(f.Report.TPM.RecordKeys)
	return d
}

func (d *Description) unreadable(f Facts) {
	switch {
	case f.Report.State.Unlocked == "none", f.Report.State.Unlocked == "plain":
		d.Volume = "none"
	default:
		d.Volume = "unusable"
		d.Problems = append(d.Problems, f.Err.Error())
	}
}

// nextBoot says what the next boot of this image will do.
func nextBoot(d Description, f Facts) string {
	prospects := map[Prospect]bool{}
	for _, t := range d.Tokens {
		prospects[t.NextBoot] = true
	}
	switch {
	case prospects[Yes]:
		return "by-itself"
	case f.KeyFile:
		return "key-file"
	case prospects[NotKnown]:
		return "unknown"
	case prospects[NeedsPerson]:
		return "asks"
	case f.People && slices.ContainsFunc(d.Keyslots, func(k Keyslot) bool { return k.Kind != TPM2 && k.Kind != Manage }):
		return "asks"
	}
	return "locked"
}

func (d *Description) has(kind Kind) bool {
	return slices.ContainsFunc(d.Keyslots, func(k Keyslot) bool { return k.Kind == kind })
}

func (d *Description) recovery(f Facts) {
	if !d.has(Recovery) {
		return
	}
	switch {
	case f.KeyWaits:
		d.Recovery = report.RecoveryWaiting
		d.ToDo = append(d.ToDo, "sealroot state recovery-key shows the recovery key; write it down")
	case f.Escrow:
		d.Recovery = report.RecoveryEscrowed
	default:
		d.Recovery = report.RecoveryEnrolled
	}
}

func (d *Description) manage(f Facts) {
	switch {
	case !d.has(Manage):
	case f.ManageFile || d.Volume != "open":
		d.ManageKey = "kept"
	default:
		d.ManageKey = "lost"
		d.ToDo = append(d.ToDo, "the manage key is gone: sealroot state rekey makes a new one, sealroot state remove manage takes its keyslot away")
	}
}

func (d *Description) readOnly(f Facts) {
	atBoot := f.Report.State.ReadOnly
	switch {
	case d.Volume != "open":
		return
	case f.MountErr != nil && atBoot != "":
		d.ReadOnly = atBoot
		d.Problems = append(d.Problems, fmt.Sprintf("the volume was read-only at the boot, and it is not known whether it still is: %v", f.MountErr))
		return
	case !f.ReadOnlyMount: // what was the matter at the boot is mended
		return
	}
	d.ReadOnly = cmp.Or(atBoot,
		"its file system is mounted read-only: the kernel does that when it finds it damaged (see the kernel log, and the warnings of this boot in sealroot status)")
	d.Problems = append(d.Problems, "the volume is read-only")
}

func (d *Description) advise(h *luks2.Header, f Facts) {
	if h.Interrupted() {
		d.Problems = append(d.Problems, "a change of the header was cut short: the next one completes it")
	}
	sealed, opens := false, false
	for _, t := range d.Tokens {
		sealed = sealed || t.Policy != ""
		opens = opens || t.NextBoot == Yes || t.NextBoot == NeedsPerson || t.NextBoot == NotKnown
		if t.OpensNow {
			d.Problems = append(d.Problems, fmt.Sprintf("token %d: the running system can have its key from the TPM", t.ID))
		}
	}
	if sealed && !opens {
		d.ToDo = append(d.ToDo, "the TPM will not open the volume: sealroot state enroll binds it anew, once this boot has the volume and its way of booting is the one to keep")
	}
	if !WithoutTPM(d.Keyslots, f.KeyFile) {
		d.ToDo = append(d.ToDo, "when the TPM is lost, so is the state: sealroot state recovery-key --new enrols a recovery key")
	}
}

// rollKey says how the rolling over of the PCR policy key goes on; records are the
// previous keys that records of the TPM lie under.
func (d *Description) rollKey(records []string) {
	waits := len(records) > 0
	for _, t := range d.Tokens {
		if t.PreviousKey {
			waits = false
			d.ToDo = append(d.ToDo, fmt.Sprintf("token %d is sealed under a previous PCR policy key: once every slot holds an image with the present one, sealroot state enroll seals to that", t.ID))
		}
	}
	if waits {
		d.ToDo = append(d.ToDo, "the TPM's records of this machine are under a previous PCR policy key: they move when the TPM opens the volume at the next boot of a committed slot; restart before you install an image without that key")
	}
}

// Write writes the description for a person.
func (d Description) Write(to io.Writer) error {
	w := tabwriter.NewWriter(to, 0, 0, 2, ' ', 0)
	row := func(name, format string, args ...any) {
		fmt.Fprintf(w, "%s\t%s\n", name, fmt.Sprintf(format, args...))
	}
	row("volume", "%s %s", d.Volume, d.UUID)
	if d.Reserved > 0 {
		row("size", "%d MiB reserved", d.Reserved>>20)
	}
	if d.ReadOnly != "" {
		row("read-only", "%s", d.ReadOnly)
	}
	row("this boot", "%s", d.ThisBoot.text())
	for _, a := range d.ThisBoot.Attempts {
		row("tried before", "%s", a)
	}
	row("next boot", "%s", map[string]string{
		"by-itself": "the TPM opens the volume", "key-file": "looks for the key file", "asks": "asks for a key or PIN", "locked": "nothing opens the volume", "unknown": "not known",
	}[d.NextBoot])
	row("recovery key", "%s", map[string]string{
		"none": "none", "enrolled": "enrolled", "escrowed": "enrolled, escrowed (sealroot state escrow)", "waiting-to-be-shown": "enrolled, NOT SHOWN YET",
	}[d.Recovery])
	row("manage key", "%s", d.ManageKey)
	for _, k := range d.Keyslots {
		row(fmt.Sprintf("keyslot %d", k.ID), "%s, %s%s", k.Kind, k.KDF, tokensText(k.Tokens))
	}
	for _, t := range d.Tokens {
		row(fmt.Sprintf("token %d", t.ID), "%s", t.text())
	}
	for _, p := range d.Problems {
		row("problem", "%s", p)
	}
	for _, t := range d.ToDo {
		row("to do", "%s", t)
	}
	return w.Flush()
}

func (b ThisBoot) text() string {
	switch b.Unlocked {
	case "tpm2":
		return fmt.Sprintf("opened by the TPM, keyslot %d, token %d", b.Keyslot, b.Token)
	case "created":
		return "made the volume"
	case "recovery-key", "passphrase", "key-file":
		return fmt.Sprintf("opened with a %s, keyslot %d", strings.ReplaceAll(b.Unlocked, "-", " "), b.Keyslot)
	case "degraded":
		return "runs without the volume"
	}
	return b.Unlocked
}

func tokensText(ids []int) string {
	if len(ids) == 0 {
		return ""
	}
	return ", token " + ints(ids)
}

func (t Token) text() string {
	text := t.Type
	if len(t.Keyslots) > 0 {
		text += ", keyslot " + ints(t.Keyslots)
	}
	if t.Policy != "" {
		text += ", needs " + t.Policy
	}
	if t.PreviousKey {
		text += ", by a previous policy key"
	}
	switch t.NextBoot {
	case Yes:
		text += "; opens the next boot"
	case NeedsPerson:
		text += "; opens the next boot with its PIN"
	case No:
		text += "; does NOT open the next boot: " + t.Why
	case NotKnown:
		text += "; whether it opens the next boot is not known: " + t.Why
	}
	if t.OpensNow {
		text += "; OPENS NOW"
	}
	return text
}
