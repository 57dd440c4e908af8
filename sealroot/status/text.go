package status

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"sealroot/init/config"
	"sealroot/init/report"
	"sealroot/slots"
)

// Text is the form for a person.
func (s Status) Text() string {
	var b strings.Builder
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	row := func(name, format string, args ...any) {
		fmt.Fprintf(w, "%s\t%s\n", name, printable(fmt.Sprintf(format, args...)))
	}
	if s.report != nil {
		s.bootRows(row)
		s.stateRows(row)
	}
	if s.Disk != "" {
		row("disk", "%s, not this machine's; slots kept in %s, started by %s", s.Disk, cmp.Or(s.Store, "?"), cmp.Or(s.Loader, "?"))
	}
	if f := s.LastFallback; f != nil && (s.report == nil || s.report.FellBack == nil) {
		when := ""
		if f.Recorded != "" {
			when = " (recorded " + f.Recorded + ")"
		}
		row("last fallback", "from slot %s: %s%s", f.From, f.Reason, when)
	}
	if s.Next != "" {
		row("next boot", "%s", s.next())
	}
	w.Flush()
	s.pcrTable(&b)
	s.slotTable(&b)
	s.bootTable(&b)
	if s.report != nil {
		s.list(&b, "failures of this boot", failures(s.report.Failures))
		s.list(&b, "warnings", s.report.Warnings)
	}
	s.list(&b, "problems", s.Problems)
	s.list(&b, "to do", s.ToDo)
	return b.String()
}

func (s Status) bootRows(row func(name, format string, args ...any)) {
	r := s.report
	row("product", "%s %s, %s build, init %s", cmp.Or(r.Name, "?"), cmp.Or(r.Version, "?"), cmp.Or(r.Build, "?"), cmp.Or(r.Program, "?"))
	running := fmt.Sprintf("slot %s, %s %s, Linux %s", r.Slot.Name, cmp.Or(r.Root.ImageID, "image"), r.Root.ImageVersion, r.Root.KernelRelease)
	if r.Slot.Loaded != "" && r.Slot.Loaded != r.Slot.Name {
		running += " (on " + kernelOf(r.Slot.Loaded) + ")"
	}
	row("running", "%s", running)
	row("because", "%s", because(r))
	if r.FellBack != nil {
		row("fell back", "from slot %s: %s", r.FellBack.From, r.FellBack.Reason)
	}
	if d := r.Disagreement; d != nil {
		row("disagreement", "the boot loader loaded %s, slot %s should run: %s", kernelOf(d.Loaded), d.Wanted, d.Why)
	}
	row("boot path", "%s: %s", cmp.Or(r.BootPath, "unknown"), meaning(r))
	row("boot disk", "%s, found by %s", r.Disk.Device, foundBy(r.Disk.FoundBy))
	if s.Store != "" {
		row("slots kept in", "%s, started by %s", s.Store, cmp.Or(s.Loader, "?"))
	}
	of := ""
	if r.Root.Role == string(config.RoleUsr) {
		of = " (of /usr)"
	}
	row("root hash", "%s%s", r.Root.RootHash, of)
	source := r.Root.HashSource
	if cert := r.Root.Certificate; cert != "" && !strings.Contains(source, cert) {
		source += ", certificate " + cert
	}
	row("vouched for by", "%s", source)
	for _, l := range leftOut(*r) {
		row("layer", "%s LEFT OUT: %s", l.Name, l.Why)
	}
	if len(r.Stages) > 0 {
		row("time in init", "%s", timing(r.Stages))
	}
}

// because says in words why this slot runs.
func because(r *report.Report) string {
	switch slots.Why(r.Slot.Reason) {
	case slots.BecauseCommitted:
		return "it is committed"
	case slots.BecauseTrial:
		return fmt.Sprintf("it is on trial: %s before this boot, %s after it", tries(r.Slot.TriesBefore), tries(r.Slot.TriesAfter))
	case slots.BecauseFallback:
		return "another slot failed, this one stands in for it"
	case slots.BecauseLastResort:
		return "no slot is bootable, this one is the last resort"
	}
	return cmp.Or(r.Slot.Reason, "unknown")
}

func tries(n int) string {
	if n == 1 {
		return "1 try"
	}
	return fmt.Sprintf("%d tries", n)
}

// meaning says what a row of the table of boot paths protects on this machine.
func meaning(r *report.Report) string {
	switch r.BootPath {
	case report.PathUKISecureBoot:
		return "the firmware vouches for what boots; a thief who edits the disk cannot read the state, exchange the image, or have a state of his own run"
	case report.PathUKI:
		return "the TPM tells what boots; a thief who edits the disk cannot read the state, but can run something else"
	case report.PathGRUBEFI:
		const measures = "GRUB measures what boots (PCR 8 and 9)"
		switch {
		case sealedToGRUB(r):
			return measures + " and the state is sealed to that: an exchanged initramfs or command line does not get the key, another boot loader that repeats what GRUB measures does"
		case r.State.Unlocked == report.UnlockedDegraded:
			return measures + "; the TPM did not open the state for it, and verity protects against accidents, not against a thief who edits the disk"
		}
		return measures + ", but nothing here is sealed to that: as on a BIOS machine, verity protects against accidents, not against a thief who edits the disk"
	case report.PathKexec:
		return "the kernel that ran before started this one (sealroot kexec): nobody vouches for what boots, and the TPM is closed until the machine restarts"
	case report.PathUnmeasured:
		return "nobody vouches for what boots: verity protects against accidents, not against a thief who edits the disk"
	}
	return "not known to this version of sealroot"
}

func foundBy(how string) string {
	switch how {
	case report.FoundByLoader:
		return "what the boot loader told"
	case report.FoundAlone:
		return "being the only disk with slots"
	}
	return cmp.Or(how, "unknown means")
}

func (s Status) stateRows(row func(name, format string, args ...any)) {
	r := s.report
	row("state", "%s", unlocked(r.State))
	if len(r.State.Attempts) > 0 {
		row("tried before", "%s", strings.Join(r.State.Attempts, "; "))
	}
	switch s.Recovery {
	case RecoveryNone:
		row("recovery key", "none")
	case RecoveryEnrolled:
		row("recovery key", "enrolled")
	case RecoveryEscrowed:
		row("recovery key", "enrolled, escrowed (sealroot state escrow)")
	case RecoveryWaiting:
		row("recovery key", "enrolled, NOT SHOWN YET")
	default:
		row("recovery key", "%s", cmp.Or(string(s.Recovery), "unknown"))
	}
	if s.Floor != nil {
		row("rollback floor", "%s", s.Floor.text())
	}
	if !r.TPM.Present {
		row("TPM", "none")
		return
	}
	policy := "not used for the state"
	if sealed(r) {
		policy = "state sealed" + pcrs(" to PCR ", r.TPM.PCRs)
		if r.TPM.Policy != "" {
			policy += ", policy " + r.TPM.Policy
		}
		if r.TPM.PIN {
			policy += ", with a PIN"
		}
	}
	closed := "NOT CLOSED: the running system could unseal the state again"
	if len(r.TPM.Capped) > 0 {
		closed = pcrs("closed: PCR ", r.TPM.Capped) + " in " + strings.Join(r.TPM.Banks, ", ")
	}
	row("TPM", "%s; %s", policy, closed)
	if sealed(r) && r.TPM.Policy == config.PolicySignedPCR11And4 {
		row("updates", "%s holds PCR 4, which is of one unified kernel image: the state has to be enrolled anew for every other", r.TPM.Policy)
	}
	if sealed(r) && accepted(r) {
		// PID 1 seals there only by the exception.
		what := "whatever is started"
		if sealedToGRUB(r) {
			what = "whatever repeats what GRUB measured"
		}
		row("exception", "%s: the TPM unlocks the state for %s; who takes the machine and edits its disk can read it", config.AcceptTheft, what)
	}
}

// accepted says that nobody vouches for what the TPM gives the key to, nor a person
// for it with a PIN.
func accepted(r *report.Report) bool {
	if r.TPM.PIN && (r.BootPath == report.PathUnmeasured || r.BootPath == report.PathGRUBEFI) {
		return false
	}
	literal := config.TPM2{PCRs: r.TPM.PCRs}
	return r.BootPath == report.PathUnmeasured || r.BootPath == report.PathGRUBEFI ||
		r.TPM.Policy == config.PolicyPCRs && !literal.LiteralBacked(r.BootPath == report.PathUKISecureBoot)
}

// sealedToGRUB says that the policy of the state's key holds what EFI GRUB measures:
// its commands and the files it read.
func sealedToGRUB(r *report.Report) bool {
	return r.BootPath == report.PathGRUBEFI && slices.Contains(r.TPM.PCRs, 8) && slices.Contains(r.TPM.PCRs, 9)
}

// sealed says that the TPM holds a key of the state.
func sealed(r *report.Report) bool {
	return r.TPM.Policy != "" || len(r.TPM.PCRs) > 0 || r.State.Unlocked == report.UnlockedTPM2
}

func unlocked(s report.State) string {
	var text string
	switch s.Unlocked {
	case report.UnlockedTPM2:
		text = "unlocked by the TPM"
	case report.UnlockedKeyFile:
		text = "unlocked by the key file"
	case report.UnlockedPlain:
		return "NOT ENCRYPTED, as the configuration has it: whoever has the disk reads and changes it"
	case report.UnlockedRecoveryKey:
		text = "unlocked with the recovery key"
	case report.UnlockedPassphrase:
		text = "unlocked with a passphrase"
	case report.UnlockedCreated:
		return "created in this boot" + size(s)
	case report.UnlockedNone:
		return "none: everything is in memory, as the configuration has it"
	case report.UnlockedDegraded:
		return "NOT OPEN: this boot is degraded"
	default:
		return cmp.Or(s.Unlocked, "none")
	}
	if s.Keyslot >= 0 {
		text += fmt.Sprintf(", keyslot %d", s.Keyslot)
	}
	if s.Token >= 0 {
		text += fmt.Sprintf(", token %d", s.Token)
	}
	return text + size(s)
}

func size(s report.State) string {
	if s.ReservedBytes <= 0 {
		return ""
	}
	return fmt.Sprintf(", %d MiB reserved", s.ReservedBytes>>20)
}

func pcrs(before string, list []int) string {
	if len(list) == 0 {
		return ""
	}
	var words []string
	for _, n := range list {
		words = append(words, fmt.Sprint(n))
	}
	return before + strings.Join(words, ", ")
}

// next says which slot the next boot is for.
func (s Status) next() string {
	for _, v := range s.Slots {
		if v.Name != s.Next {
			continue
		}
		if v.State == slots.Trial.String() {
			return fmt.Sprintf("slot %s, on trial, %s left", v.Name, tries(v.Tries))
		}
		return fmt.Sprintf("slot %s, %s", v.Name, v.State)
	}
	return "slot " + s.Next
}

func (s Status) slotTable(b *strings.Builder) {
	if len(s.Slots) == 0 {
		return
	}
	b.WriteString("\n")
	w := tabwriter.NewWriter(b, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "  slot\tstate\tpriority\ttries\tsuccessful\tversion\tlast failure")
	for _, v := range s.Slots {
		mark, failure := " ", "-"
		if v.Running {
			mark = "*"
		}
		if f := v.LastFailure; f != nil {
			failure = f.Text
			if f.Detail != "" {
				failure += ": " + f.Detail
			}
		}
		successful := 0
		if v.Successful {
			successful = 1
		}
		fmt.Fprintf(w, "%s %s\t%s\t%d\t%d\t%d\t%s\t%s\n", mark, v.Name, v.State, v.Priority, v.Tries,
			successful, cmp.Or(printable(v.Version), "-"), failure)
	}
	w.Flush()
}

func (s Status) list(b *strings.Builder, title string, items []string) {
	if len(items) == 0 {
		return
	}
	fmt.Fprintf(b, "\n%s:\n", title)
	for _, item := range items {
		fmt.Fprintf(b, "  - %s\n", printable(item))
	}
}

func failures(list []report.Failure) []string {
	var out []string
	for _, f := range list {
		text := f.Stage
		if f.Slot != "" {
			text += ", slot " + f.Slot
		}
		out = append(out, fmt.Sprintf("%s: %s (%s)", text, f.Error, f.Class))
	}
	return out
}

func duration(us int64) string {
	return (time.Duration(us) * time.Microsecond).Round(time.Millisecond).String()
}

// timing is the whole time and the stage that took most of it.
func timing(stages []report.Stage) string {
	first, last, top := stages[0].Start, stages[0].End, stages[0]
	for _, s := range stages {
		first, last = min(first, s.Start), max(last, s.End)
		if s.End-s.Start > top.End-top.Start {
			top = s
		}
	}
	return fmt.Sprintf("%s, most of it %s (%s)", duration(last-first), top.Name, duration(top.End-top.Start))
}
