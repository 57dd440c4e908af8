// Package status is what `sealroot status` tells: gathered from the boot report
// and the live slots by New, a pure function, and written as text or JSON.
package status

import (
	"encoding/json"
	"fmt"
	"slices"
	"sort"
	"strings"
	"time"

	"sealroot/init/report"
	"sealroot/sealroot/boots"
	"sealroot/sealroot/hooks"
	"sealroot/sealroot/terminal"
	"sealroot/sealroot/volume"
	"sealroot/slots"
	"sealroot/slots/bootlog"
)

// Schema is the version of the JSON form.
const Schema = 1

// Recovery is what is known of the recovery key.
type Recovery string

// The values of Recovery; "" is unknown.
const (
	RecoveryNone     Recovery = report.RecoveryNone
	RecoveryEnrolled Recovery = report.RecoveryEnrolled
	RecoveryEscrowed Recovery = report.RecoveryEscrowed
	RecoveryWaiting  Recovery = report.RecoveryWaiting
)

// Input is what was read; each part may be missing, with the reason.
type Input struct {
	Report    []byte // boot.json
	ReportErr error
	Slots     []slots.Slot
	SlotsErr  error
	Log       bootlog.Record
	LogErr    error
	// Boots are the reports of the last boots that are kept.
	Boots    []boots.Report
	BootsErr error
	// Versions are those of the slots' images, by slot; hints.
	Versions    map[string]string
	VersionsErr error
	Store       string // where the slots are kept, and who starts them
	Loader      string
	Refill      int // tries that a commit gives, with boot.recount
	// Disk is set for a disk that is not this machine's: then there is no report.
	Disk string
	// KeyKept: the recovery key is still kept on this machine.
	KeyKept bool
	KeyErr  error
	// Keyslots are those of a volume that had no recovery key at its boot; nil: unread.
	Keyslots []volume.Keyslot
	KeyFile  bool // PID 1 looks for a key file
	// FloorAsked is the rollback floor that was asked for.
	FloorAsked int
	FloorErr   error
	Ran        hooks.Ran // the system that ran last, which is this one once its unit has run
	RanErr     error
	PCRs       *PCRs // nil: nobody asked
	// LayersToDo is what a person should do about the layers.
	LayersToDo []string
}

// Slot is a live slot.
type Slot struct {
	Name        string   `json:"name"`
	State       string   `json:"state"` // committed, on trial, given up, not bootable
	Priority    int      `json:"priority"`
	Tries       int      `json:"tries"`
	Successful  bool     `json:"successful"`
	Running     bool     `json:"running"`
	Version     string   `json:"version,omitempty"` // of the running slot's image, or as the manifest says
	LastFailure *Failure `json:"last_failure,omitempty"`
}

// Failure is why a slot failed the last time, from the boot log.
type Failure struct {
	Slot   string `json:"slot"`
	Class  string `json:"class"`
	Reason string `json:"reason"` // the code
	Text   string `json:"text"`   // for a person
	Detail string `json:"detail,omitempty"`
	BootID string `json:"boot_id,omitempty"`
}

// Status is what is told. Boot is boot.json as it is.
type Status struct {
	Schema       int             `json:"schema"`
	Boot         json.RawMessage `json:"boot"`             // null when there is none
	Disk         string          `json:"disk,omitempty"`   // a disk that is not this machine's
	Store        string          `json:"store,omitempty"`  // where the slots are kept
	Loader       string          `json:"loader,omitempty"` // who starts them
	Slots        []Slot          `json:"slots"`
	Next         string          `json:"next,omitempty"`  // slot that the next boot is for
	Armed        string          `json:"armed,omitempty"` // slot the one-shot was armed for
	LastFailures []Failure       `json:"last_failures"`
	LastFallback *LastFallback   `json:"last_fallback,omitempty"`
	Boots        []Boot          `json:"boots"` // the last ones, the oldest first
	Recovery     Recovery        `json:"recovery,omitempty"`
	Floor        *Floor          `json:"rollback_floor,omitempty"` // with trust.rollback_floor
	PCRs         []PCR           `json:"pcrs,omitempty"`           // with --pcrs
	HooksFailed  *HooksFailed    `json:"hooks_failed,omitempty"`   // after a rollback
	Problems     []string        `json:"problems"`                 // what could not be read
	ToDo         []string        `json:"to_do"`

	report     *report.Report // nil when there is none
	withoutTPM bool           // something is known to open the volume when the TPM does not
}

// HooksFailed are the image's hooks that failed in its first boot after a rollback.
type HooksFailed struct {
	FromSlot    string   `json:"from_slot"`
	FromVersion string   `json:"from_version"`
	Failed      []string `json:"failed"` // name, what happened, last line of the output
}

// New puts together what was read. It never fails: what is missing is among
// the problems.
func New(in Input) Status {
	s := Status{
		Schema: Schema, Boot: json.RawMessage("null"), Disk: in.Disk, Store: in.Store, Loader: in.Loader,
		Slots: []Slot{}, LastFailures: []Failure{}, Boots: []Boot{}, Problems: []string{}, ToDo: []string{},
	}
	s.readReport(in)
	s.readSlots(in)
	s.readBoots(in)
	s.readRecovery(in)
	s.readFloor(in)
	s.readHooks(in)
	s.readPCRs(in.PCRs)
	s.readToDo(in.LayersToDo)
	return s
}

// Booted says whether sealroot booted this system.
func (s Status) Booted() bool { return s.report != nil }

func (s *Status) problem(format string, args ...any) {
	s.Problems = append(s.Problems, printable(fmt.Sprintf(format, args...)))
}

func (s *Status) readReport(in Input) {
	if in.Disk != "" {
		return // another machine's
	}
	if in.ReportErr != nil {
		s.problem("no boot report: %v", in.ReportErr)
		return
	}
	var r report.Report
	if err := json.Unmarshal(in.Report, &r); err != nil {
		s.problem("cannot read the boot report: %v", err)
		return
	}
	if r.Schema != report.Schema {
		s.problem("the boot report has schema %d, this program knows %d: some of it may be missing here", r.Schema, report.Schema)
	}
	s.report, s.Boot = &r, json.RawMessage(in.Report)
}

func (s *Status) readSlots(in Input) {
	failures := map[string]Failure{}
	if in.LogErr != nil {
		s.problem("no boot log: %v", in.LogErr)
	} else {
		s.Armed = printable(in.Log.Armed)
		for name, f := range in.Log.Failures {
			f := Failure{
				Slot: printable(name), Class: printable(string(f.Class)), Reason: printable(string(f.Reason)),
				Text: printable(f.Reason.Text()), Detail: printable(f.Detail), BootID: printable(f.BootID),
			}
			failures[name] = f
			s.LastFailures = append(s.LastFailures, f)
		}
		sort.Slice(s.LastFailures, func(i, j int) bool { return s.LastFailures[i].Slot < s.LastFailures[j].Slot })
	}
	if in.SlotsErr != nil {
		s.problem("no slots: %v", in.SlotsErr)
		return
	}
	if in.VersionsErr != nil {
		s.problem("not all versions: %v", in.VersionsErr)
	}
	for _, v := range in.Slots {
		row := Slot{Name: v.Name, State: v.State().String(), Priority: v.Priority, Tries: v.Tries, Successful: v.Successful}
		row.Version = printable(in.Versions[v.Name])
		if s.report != nil && s.report.Slot.Name == v.Name {
			row.Running, row.Version = true, s.report.Root.ImageVersion
		}
		if f, ok := failures[v.Name]; ok {
			row.LastFailure = &f
			if v.Successful && !row.Running && f.Class == string(slots.ImageFailure) {
				// It keeps "successful" for the time when nothing better is
				// left; "committed" would read as if it were fine.
				row.State = "bad, last choice"
			}
		}
		s.Slots = append(s.Slots, row)
	}
	if d, err := slots.Decide(slots.Observed{Slots: in.Slots, LogReadable: true, Refill: in.Refill}); err == nil {
		s.Next = d.Slot
	}
}

// readRecovery corrects what PID 1 reported by what happened since.
func (s *Status) readRecovery(in Input) {
	if s.report == nil {
		return
	}
	s.Recovery = Recovery(s.report.State.Recovery)
	if in.KeyErr != nil {
		s.problem("cannot look for the recovery key: %v", in.KeyErr)
	} else if in.KeyKept {
		s.Recovery = RecoveryWaiting
	} else if s.Recovery == RecoveryWaiting || slices.ContainsFunc(in.Keyslots, func(k volume.Keyslot) bool { return k.Kind == volume.Recovery }) {
		s.Recovery = RecoveryEnrolled
	}
	s.withoutTPM = volume.WithoutTPM(in.Keyslots, in.KeyFile)
}

func (s *Status) readHooks(in Input) {
	if in.RanErr != nil {
		s.problem("no word of hooks: %v", in.RanErr)
	}
	if len(in.Ran.Failed) == 0 || s.report == nil || in.Ran.RootHash != s.report.Root.RootHash || in.Ran.Slot != s.report.Slot.Name {
		return
	}
	f := HooksFailed{FromSlot: printable(in.Ran.From.Slot), FromVersion: printable(in.Ran.From.Version)}
	for _, text := range in.Ran.Failed {
		f.Failed = append(f.Failed, printable(text))
	}
	s.HooksFailed = &f
}

// readToDo lists what a person should do, the most urgent first.
func (s *Status) readToDo(layers []string) {
	if s.report == nil {
		return
	}
	todo := func(text string) { s.ToDo = append(s.ToDo, text) }
	if s.report.Degraded {
		todo("this boot is degraded: the state is not open, and what is written now is lost at the next boot")
	}
	if s.report.Slot.Reason == string(slots.BecauseLastResort) {
		todo("no slot is bootable: install an image into the other slot")
	}
	if f := s.HooksFailed; f != nil {
		todo(fmt.Sprintf("after the rollback from slot %s (%s) hooks of this image failed: %s; put right what they say, then sealroot post-rollback --again",
			f.FromSlot, f.FromVersion, strings.Join(f.Failed, "; ")))
	}
	switch s.Recovery {
	case RecoveryWaiting:
		todo("the recovery key was never shown: run sealroot state recovery-key and write it down")
	case RecoveryNone:
		if !s.withoutTPM {
			todo("no recovery key is enrolled: when the TPM refuses, the state is lost")
		}
	}
	if list := s.differs(); len(list) > 0 {
		todo(pcrs("what was measured is not what this image gives: PCR ", list))
	}
	if len(s.Slots) > 0 {
		s.committedCopies(todo)
	}
	if s.Floor != nil && s.Floor.todo() != "" {
		todo(s.Floor.todo())
	}
	s.ToDo = append(s.ToDo, layers...)
}

func (s *Status) committedCopies(todo func(string)) {
	for _, v := range s.Slots {
		if v.Running && v.State == slots.Trial.String() {
			text := fmt.Sprintf("slot %s is on trial: run sealroot commit to keep it", v.Name)
			if n := s.report.CommitDeadlineSeconds; n > 0 {
				limit := strings.TrimSuffix((time.Duration(n) * time.Second).String(), "m0s")
				if n%60 == 0 {
					limit += "m"
				}
				text += ", within " + limit + " of the boot"
			}
			todo(text)
		}
		if v.Running && v.State == slots.Spent.String() {
			todo(fmt.Sprintf("slot %s has used its last try: run sealroot commit to keep it, the next boot leaves it", v.Name))
		}
	}
}

// printable replaces what could play with a terminal: the boot log is on the
// disk, where anyone may have written it.
func printable(text string) string { return terminal.Printable(text) }

// JSON is the machine's form, indented, with a final newline.
func (s Status) JSON() ([]byte, error) {
	b, err := json.MarshalIndent(s, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("cannot write the status: %w", err)
	}
	return append(b, '\n'), nil
}
