package slots

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
)

// parse reads "a 2/3 b 1/0+": priority/tries, + committed.
func parse(t *testing.T, text string) []Slot {
	t.Helper()
	var out []Slot
	f := strings.Fields(text)
	for i := 0; i+1 < len(f); i += 2 {
		s := Slot{Name: f[i], Successful: strings.HasSuffix(f[i+1], "+")}
		if _, err := fmt.Sscanf(strings.TrimSuffix(f[i+1], "+"), "%d/%d", &s.Priority, &s.Tries); err != nil {
			t.Fatal(err)
		}
		out = append(out, s)
	}
	return out
}

func text(s []Slot) string {
	var out []string
	for _, x := range s {
		plus := ""
		if x.Successful {
			plus = "+"
		}
		out = append(out, fmt.Sprintf("%s %d/%d%s", x.Name, x.Priority, x.Tries, plus))
	}
	return strings.Join(out, " ")
}

func TestSlotsTransitions(t *testing.T) {
	begin := func(s []Slot) ([]Slot, error) { return BeginUpdate(s, "b") }
	finish := func(s []Slot) ([]Slot, error) { return FinishUpdate(s, "b", 3) }
	commit := func(s []Slot) ([]Slot, error) { return CommitCounted(s, "b", 0) }
	spend := func(s []Slot) ([]Slot, error) { return Spend(s, "b") }
	bad := func(s []Slot) ([]Slot, error) { return MarkBad(s, "b", ImageFailure) }
	restore := func(above string) func([]Slot) ([]Slot, error) {
		return func(s []Slot) ([]Slot, error) {
			return Restore(s, Failure{Slot: "b", Class: ImageFailure, Above: above}, 0)
		}
	}
	tests := []struct {
		name    string
		do      func([]Slot) ([]Slot, error)
		in      string
		want    string
		wantErr error
	}{
		{name: "spend_takes_one_try", do: spend, in: "a 1/0+ b 2/3", want: "a 1/0+ b 2/2"},
		{name: "spend_leaves_a_committed_slot", do: spend, in: "a 1/0+ b 2/3+", want: "a 1/0+ b 2/3+"},
		{name: "spend_leaves_a_spent_slot", do: spend, in: "a 1/0+ b 2/0", want: "a 1/0+ b 2/0"},
		{name: "commit_ends_the_trial", do: commit, in: "a 1/0+ b 2/2", want: "a 1/0+ b 2/0+"},
		{name: "commit_twice_changes_nothing", do: commit, in: "a 2/0+ b 1/0+", want: "a 2/0+ b 1/0+"},
		{name: "commit_of_a_last_resort_ranks_it", do: commit, in: "a 3/0 b 0/0", want: "a 3/0 b 4/0+"},
		{name: "commit_with_recount_fills_the_tries", do: func(s []Slot) ([]Slot, error) { return CommitCounted(s, "b", 3) }, in: "a 1/0+ b 2/1", want: "a 1/0+ b 2/3+"},
		{name: "commit_with_recount_refills_a_committed_slot", do: func(s []Slot) ([]Slot, error) { return CommitCounted(s, "b", 3) }, in: "a 1/0+ b 2/1+", want: "a 1/0+ b 2/3+"},
		{name: "commit_without_recount_leaves_the_tries_of_a_committed_slot", do: commit, in: "a 1/0+ b 2/1+", want: "a 1/0+ b 2/1+"},
		{name: "commit_refuses_16_tries", do: func(s []Slot) ([]Slot, error) { return CommitCounted(s, "b", 16) }, in: "a 1/0+ b 2/1+", wantErr: ErrTries},
		{name: "recount_takes_one_try_of_a_committed_slot", do: func(s []Slot) ([]Slot, error) { return Recount(s, "b") }, in: "a 1/0+ b 2/3+", want: "a 1/0+ b 2/2+"},
		{name: "recount_of_a_slot_without_tries", do: func(s []Slot) ([]Slot, error) { return Recount(s, "b") }, in: "a 1/0+ b 2/0+", want: "a 1/0+ b 2/0+"},
		{name: "recount_leaves_a_trial", do: func(s []Slot) ([]Slot, error) { return Recount(s, "b") }, in: "a 1/0+ b 2/3", want: "a 1/0+ b 2/3"},
		{name: "give_back_to_a_committed_slot", do: func(s []Slot) ([]Slot, error) { return GiveBack(s, "b") }, in: "a 1/0+ b 2/2+", want: "a 1/0+ b 2/3+"},
		{name: "nothing_is_given_back_to_a_trial", do: func(s []Slot) ([]Slot, error) { return GiveBack(s, "b") }, in: "a 1/0+ b 2/2", want: "a 1/0+ b 2/2"},
		{name: "bad_committed_loses_its_tries", do: bad, in: "a 2/3+ b 3/3+", want: "a 2/3+ b 1/0+"},
		{name: "copy_goes_below_its_source", do: func(s []Slot) ([]Slot, error) { return FinishCopy(s, "a", "b") }, in: "a 3/2+ b 0/0", want: "a 3/2+ b 2/2+"},
		{name: "copy_makes_room", do: func(s []Slot) ([]Slot, error) { return FinishCopy(s, "a", "b") }, in: "a 1/0+ b 0/0", want: "a 2/0+ b 1/0+"},
		{name: "copy_stays_above_older_slots", do: func(s []Slot) ([]Slot, error) { return FinishCopy(s, "a", "b") }, in: "a 2/0+ b 0/0 c 1/0+", want: "a 3/0+ b 2/0+ c 1/0+"},
		{name: "copy_stays_below_a_trial", do: func(s []Slot) ([]Slot, error) { return FinishCopy(s, "a", "b") }, in: "a 14/0+ b 0/0 c 15/3", want: "a 14/0+ b 13/0+ c 15/3"},
		{name: "copy_of_an_uncommitted_slot", do: func(s []Slot) ([]Slot, error) { return FinishCopy(s, "a", "b") }, in: "a 2/2 b 1/0+", wantErr: ErrNotCommitted},
		{name: "copy_to_itself", do: func(s []Slot) ([]Slot, error) { return FinishCopy(s, "b", "b") }, in: "a 2/2 b 1/0+", wantErr: ErrNotCommitted},
		{name: "restore_gives_the_place_back", do: restore("a"), in: "a 2/0+ b 1/0+", want: "a 2/0+ b 3/0+"},
		{name: "restore_gives_tries_with_recount", do: func(s []Slot) ([]Slot, error) {
			return Restore(s, Failure{Slot: "b", Class: ImageFailure, Above: "a"}, 3)
		}, in: "a 2/3+ b 1/0+", want: "a 2/3+ b 3/3+"},
		{name: "restore_stays_below_a_newer_slot", do: restore("a"), in: "a 2/0+ b 1/0+ c 3/0+", want: "a 1/0+ b 2/0+ c 3/0+"},
		{name: "restore_of_a_slot_that_was_not_lowered", do: restore(""), in: "a 2/0+ b 1/0+", want: "a 2/0+ b 1/0+"},
		{name: "restore_behind_a_slot_that_is_on_trial_now", do: restore("a"), in: "a 2/2 b 1/0+", want: "a 2/2 b 1/0+"},
		{name: "restore_leaves_an_uncommitted_slot", do: restore("a"), in: "a 2/0+ b 1/2", want: "a 2/0+ b 1/2"},
		{name: "bad_trial_is_unbootable", do: bad, in: "a 1/0+ b 2/2", want: "a 1/0+ b 0/0"},
		{name: "bad_committed_goes_last", do: bad, in: "a 2/0+ b 3/0+", want: "a 2/0+ b 1/0+"},
		{name: "bad_committed_goes_last_without_room", do: bad, in: "a 1/0+ b 2/0+", want: "a 2/0+ b 1/0+"},
		{name: "bad_committed_goes_behind_priority_0", do: bad, in: "a 0/0+ b 2/0+", want: "a 2/0+ b 1/0+"},
		{name: "bad_committed_keeps_the_order_of_others", do: bad, in: "a 1/0+ b 15/0+ c 14/3", want: "a 2/0+ b 1/0+ c 3/3"},
		{name: "environment_counts_nothing", do: func(s []Slot) ([]Slot, error) { return MarkBad(s, "b", EnvironmentFailure) }, in: "a 1/0+ b 2/2", want: "a 1/0+ b 2/2"},
		{name: "state_counts_nothing", do: func(s []Slot) ([]Slot, error) { return MarkBad(s, "b", StateFailure) }, in: "a 1/0+ b 2/0+", want: "a 1/0+ b 2/0+"},
		{name: "begin_makes_unbootable", do: begin, in: "a 1/0+ b 2/0+", want: "a 1/0+ b 0/0"},
		{name: "begin_refuses_the_last_good_slot", do: begin, in: "a 1/3 b 2/0+", wantErr: ErrLastGood},
		{name: "finish_ranks_first", do: finish, in: "a 2/0+ b 0/0", want: "a 2/0+ b 3/3"},
		{name: "finish_renumbers_at_15", do: finish, in: "a 15/0+ b 0/0 c 9/0", want: "a 2/0+ b 3/3 c 1/0"},
		{name: "finish_refuses_16_tries", do: func(s []Slot) ([]Slot, error) { return FinishUpdate(s, "b", 16) }, in: "a 1/0+ b 0/0", wantErr: ErrTries},
		{name: "finish_refuses_the_last_good_slot", do: finish, in: "a 0/0 b 1/0+", wantErr: ErrLastGood},
		{name: "rollback_of_a_trial", do: func(s []Slot) ([]Slot, error) { return Rollback(s, "b") }, in: "a 1/0+ b 2/2", want: "a 1/0+ b 0/0"},
		{name: "rollback_of_a_committed_slot", do: func(s []Slot) ([]Slot, error) { return Rollback(s, "b") }, in: "a 1/0+ b 2/0+", want: "a 2/0+ b 1/0+"},
		{name: "rollback_without_another", do: func(s []Slot) ([]Slot, error) { return Rollback(s, "b") }, in: "a 1/3 b 2/0+", wantErr: ErrNoOther},
		{name: "unknown_slot", do: commit, in: "a 1/0+", wantErr: ErrUnknownSlot},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			in := parse(t, tt.in)
			got, err := tt.do(in)
			if !errors.Is(err, tt.wantErr) {
				t.Fatalf("got error %v, want %v", err, tt.wantErr)
			}
			if text(got) != tt.want {
				t.Errorf("got %s, want %s", text(got), tt.want)
			}
			if text(in) != tt.in {
				t.Errorf("the slots given were changed to %s", text(in))
			}
		})
	}
}

func TestSlotString(t *testing.T) {
	got := Slot{Name: "b", Priority: 2, Tries: 1}.String()
	if want := "slot b: priority 2, 1 try left, on trial"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestEveryReasonHasAText(t *testing.T) {
	for r, text := range reasonTexts {
		if text == "" || strings.ToLower(text[:1]) != text[:1] && !strings.HasPrefix(text, "TPM") {
			t.Errorf("%s: got text %q", r, text)
		}
	}
	if got := Reason("from-the-future").Text(); got != "from-the-future" {
		t.Errorf("got %q for an unknown reason", got)
	}
}

func TestSlotsDecide(t *testing.T) {
	grub := func(hint string) HintState { return HintState{Slot: hint, Known: true, Supported: true} }
	tests := []struct {
		name string
		o    Observed
		in   string
		// what is to happen
		slot   string
		why    Why
		saved  string
		rearm  string
		reboot bool
		clear  bool
		own    bool
		fell   Reason
	}{
		{name: "committed_writes_nothing", in: "a 2/0+ b 1/0+", o: Observed{Loaded: "a", Hint: grub("")}, slot: "a", why: BecauseCommitted},
		{name: "trial_in_its_own_kernel_spends_and_rearms", in: "a 1/0+ b 2/3", o: Observed{Loaded: "b", Hint: grub(""), Armed: "b"}, slot: "b", why: BecauseTrial, saved: "a 1/0+ b 2/2", rearm: "b"},
		{name: "last_try_is_not_rearmed", in: "a 1/0+ b 2/1", o: Observed{Loaded: "b", Hint: grub(""), Armed: "b"}, slot: "b", why: BecauseTrial, saved: "a 1/0+ b 2/0", clear: true},
		{name: "trial_with_unknown_kernel_and_no_loader", in: "a 1/0+ b 2/3", o: Observed{}, slot: "b", why: BecauseTrial, saved: "a 1/0+ b 2/2"},
		{name: "trial_under_the_others_kernel_and_no_loader", in: "a 1/0+ b 2/3", o: Observed{Loaded: "a"}, slot: "b", why: BecauseTrial, saved: "a 1/0+ b 2/2", own: true},
		{name: "never_armed_reboots_into_the_trial", in: "a 1/0+ b 2/3", o: Observed{Loaded: "a", Hint: grub("")}, slot: "a", why: BecauseCommitted, rearm: "b", reboot: true},
		{name: "armed_but_never_arrived", in: "a 1/0+ b 2/3", o: Observed{Loaded: "a", Hint: grub(""), Armed: "b"}, slot: "a", why: BecauseFallback, saved: "a 1/0+ b 2/2", rearm: "b", fell: KernelNeverReached},
		{name: "never_arrived_for_the_last_time", in: "a 1/0+ b 2/1", o: Observed{Loaded: "a", Hint: grub(""), Armed: "b"}, slot: "a", why: BecauseFallback, saved: "a 1/0+ b 0/0", clear: true, fell: KernelNeverReached},
		{name: "still_armed_means_chosen_by_hand", in: "a 1/0+ b 2/3", o: Observed{Loaded: "a", Hint: grub("b"), Armed: "b"}, slot: "a", why: BecauseCommitted},
		{name: "unreadable_hint_counts_nothing", in: "a 1/0+ b 2/3", o: Observed{Loaded: "a", Hint: HintState{Supported: true}, Armed: "b"}, slot: "a", why: BecauseCommitted},
		{name: "given_up_falls_back", in: "a 1/0+ b 2/0", o: Observed{Loaded: "a", Hint: grub("")}, slot: "a", why: BecauseFallback, fell: NoCommit},
		{name: "given_up_is_told_once", in: "a 1/0+ b 2/0", o: Observed{Loaded: "a", Hint: grub(""), Told: "b no-commit", Failures: map[string]Failure{"b": {Slot: "b", Class: ImageFailure, Reason: NoCommit}}}, slot: "a", why: BecauseCommitted},
		{name: "recount_spends_a_try_of_a_committed_slot", in: "a 2/3+ b 1/3+", o: Observed{Loaded: "a", Hint: grub(""), Refill: 3}, slot: "a", why: BecauseCommitted, saved: "a 2/2+ b 1/3+"},
		{name: "recount_leaves_an_exhausted_slot", in: "a 2/0+ b 1/3+", o: Observed{Loaded: "b", Hint: grub(""), Refill: 3}, slot: "b", why: BecauseFallback, saved: "a 2/0+ b 1/2+", fell: NoCommit},
		{name: "recount_with_all_exhausted_takes_turns", in: "a 2/0+ b 1/0+", o: Observed{Loaded: "a", Refill: 3, Pauses: 1}, slot: "b", why: BecauseLastResort, own: true},
		{name: "recount_with_one_slot_writes_nothing", in: "a 2/0+ b 0/0", o: Observed{Loaded: "a", Hint: grub(""), Refill: 3}, slot: "a", why: BecauseCommitted},
		{name: "kernel_of_nobody_is_foreign", in: "a 2/0+ b 1/0+", o: Observed{Loaded: UnknownKernel, Hint: grub("")}, slot: "a", why: BecauseCommitted, own: true},
		{name: "fall_over_in_the_same_boot", in: "a 1/0+ b 0/0", o: Observed{Loaded: "b", Hint: grub("b"), Armed: "b", Tried: []string{"b"}, Failures: map[string]Failure{"b": {Class: ImageFailure, Reason: Verity}}}, slot: "a", why: BecauseFallback, clear: true, own: true, fell: Verity},
		{name: "last_resort_is_one_that_was_good", in: "a 1/0+ b 2/0", o: Observed{Loaded: "b", Tried: []string{"b"}, Hint: grub("")}, slot: "a", why: BecauseFallback, own: true, fell: NoCommit},
		{name: "last_resort_takes_what_there_is", in: "a 0/0 b 2/0", o: Observed{}, slot: "b", why: BecauseLastResort},
		{name: "all_failed_reboots_after_a_pause", in: "a 1/0+ b 0/0", o: Observed{Tried: []string{"a", "b"}}, slot: "a", why: BecauseLastResort, reboot: true, fell: NoCommit},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			tt.o.Slots, tt.o.LogReadable = parse(t, tt.in), true
			d, err := Decide(tt.o)
			if err != nil {
				t.Fatal(err)
			}
			got := fmt.Sprint(d.Slot, " ", d.Why, " saved:", text(d.Slots), " rearm:", d.Rearm, " reboot:", d.Reboot, " clear:", d.ClearArmed, " own:", d.NeedOwnKernel)
			want := fmt.Sprint(tt.slot, " ", tt.why, " saved:", tt.saved, " rearm:", tt.rearm, " reboot:", tt.reboot, " clear:", tt.clear, " own:", tt.own)
			if got != want {
				t.Errorf("\n got %s\nwant %s", got, want)
			}
			if fell := d.FellBack; (fell == nil) != (tt.fell == "") || fell != nil && fell.Reason != tt.fell {
				t.Errorf("got fell back %v, want reason %q", fell, tt.fell)
			}
			if d.Reboot && d.Why == BecauseLastResort && d.Pause == 0 {
				t.Error("a reboot of the last resort has no pause")
			}
			if a := d.Disagreement; (a != nil) != (tt.own && !tt.reboot) && tt.name != "still_armed_means_chosen_by_hand" && tt.name != "unreadable_hint_counts_nothing" {
				t.Errorf("got disagreement %+v, own kernel needed %v", a, tt.own)
			}
			if tt.why == BecauseCommitted && tt.rearm == "" && !d.Log.Empty() {
				t.Errorf("got log change %+v, want none", d.Log)
			}
		})
	}
}

func TestDecideWithoutSlots(t *testing.T) {
	if d, err := Decide(Observed{}); !errors.Is(err, ErrNoSlot) || d.Slot != "" {
		t.Errorf("got %v, %v, want ErrNoSlot", d, err)
	}
}

func TestUnreadableLogCountsAsArmed(t *testing.T) {
	d, err := Decide(Observed{Slots: parse(t, "a 1/0+ b 2/3"), Loaded: "a", Hint: HintState{Known: true, Supported: true}})
	if err != nil {
		t.Fatal(err)
	}
	if d.LostTry == nil || text(d.Slots) != "a 1/0+ b 2/2" || !d.Log.SetArmed {
		t.Errorf("got %+v, want a lost try and a new record", d)
	}
}

// failing fails where it is told to and writes down what it was asked.
type failing struct {
	err   map[string]error
	trace *[]string
}

func (f failing) do(what string) error {
	*f.trace = append(*f.trace, what)
	return f.err[what]
}
func (f failing) Load() ([]Slot, error) {
	return []Slot{{Name: "a", Priority: 1, Successful: true}, {Name: "b", Priority: 2, Tries: 2}}, nil
}
func (f failing) Save([]Slot) error       { return f.do("save") }
func (f failing) Get() (string, error)    { return "b", nil }
func (f failing) Arm(string) error        { return f.do("arm") }
func (f failing) Clear() error            { return f.do("clear") }
func (f failing) SetDefault(string) error { return f.do("default") }
func (f failing) Record(c LogChange) error {
	if c.SetArmed {
		return f.do("record armed " + c.Armed)
	}
	return f.do("record")
}

func TestApplyOrder(t *testing.T) {
	broken := errors.New("broken")
	d := Decision{Slots: []Slot{{Name: "b"}}, Rearm: "b", Log: LogChange{SetArmed: true, Armed: "b", Failures: []Failure{{}}}}
	tests := []struct {
		name  string
		err   map[string]error
		trace string
		want  error
	}{
		{name: "all_well", trace: "save, arm, record armed b"},
		{name: "store_fails", err: map[string]error{"save": broken}, trace: "save", want: ErrStore},
		{name: "hint_fails", err: map[string]error{"arm": broken}, trace: "save, arm, record", want: ErrHint},
		{name: "log_fails", err: map[string]error{"record armed b": broken}, trace: "save, arm, record armed b, clear", want: ErrLog},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			var trace []string
			f := failing{tt.err, &trace}
			err := Apply(d, f, f, f)
			if !errors.Is(err, tt.want) || (tt.want != nil && !errors.Is(err, broken)) {
				t.Errorf("got %v, want %v", err, tt.want)
			}
			if got := strings.Join(trace, ", "); got != tt.trace {
				t.Errorf("got %s, want %s", got, tt.trace)
			}
		})
	}
}

func TestCommitOrder(t *testing.T) {
	var trace []string
	f := failing{nil, &trace}
	if err := CommitNow(Commitment{Running: "b", Loaded: "b"}, f, f, f); err != nil {
		t.Fatal(err)
	}
	if want := []string{"record", "save", "default", "clear"}; !slices.Equal(trace, want) {
		t.Errorf("got %v, want %v", trace, want)
	}
	trace = nil
	if err := CommitNow(Commitment{Running: "a", Loaded: "b"}, f, f, f); err != nil {
		t.Fatal(err)
	}
	// a is committed, runs under b's kernel, and b's one-shot is b's affair
	if want := []string{"record", "save"}; !slices.Equal(trace, want) {
		t.Errorf("got %v, want %v", trace, want)
	}
}

// Running by another kernel, a commit arms the one-shot for the slot's own, once,
// and never makes a kernel the default that did not reach PID 1.
func TestCommitUnderAnotherKernel(t *testing.T) {
	for _, tt := range []struct {
		name  string
		c     Commitment
		slots string
		hint  string
		armed string // afterwards
		def   string
		kept  Reason // the failure that the log still has
	}{
		{name: "asks_for_its_own", c: Commitment{Running: "a", Loaded: "b"}, slots: "a 2/0+ b 1/0+", armed: "a", def: "b"},
		{name: "asks_when_the_kernel_is_nobodys", c: Commitment{Running: "a", Loaded: UnknownKernel}, slots: "a 2/0+ b 1/0+", armed: "a", def: "b"},
		{name: "own_kernel_becomes_the_default", c: Commitment{Running: "a", Loaded: "a"}, slots: "a 2/0+ b 1/0+", def: "a"},
		{name: "nobody_told", c: Commitment{Running: "a"}, slots: "a 2/0+ b 1/0+", def: "a"},
		{name: "not_for_a_stand_in", c: Commitment{Running: "a", Loaded: "b"}, slots: "a 1/0+ b 2/0+", def: "b"},
		{name: "not_while_a_trial_waits", c: Commitment{Running: "a", Loaded: "b"}, slots: "a 1/0+ b 2/2", hint: "b", def: "b"},
		{name: "not_for_a_kernel_that_never_came", c: Commitment{Running: "a", Loaded: "b", Failures: map[string]Failure{"a": {Slot: "a", Class: ImageFailure, Reason: KernelNeverReached}}},
			slots: "a 2/0+ b 1/0+", def: "b", kept: KernelNeverReached},
	} {
		t.Run(tt.name, func(t *testing.T) {
			d := &disk{n: 2}
			copy(d.slot[:], parse(t, tt.slots))
			d.hint, d.def, d.readable = tt.hint, "b", true
			d.fail[0] = tt.c.Failures["a"]
			if err := CommitNow(tt.c, fakeStore{d}, fakeLoader{d}, fakeLog{d}); err != nil {
				t.Fatal(err)
			}
			if d.def != tt.def || d.armed != tt.armed || tt.armed != "" && d.hint != tt.armed || d.fail[0].Reason != tt.kept {
				t.Errorf("default %q, armed %q, hint %q, failure %q; want %q, %q, and %q", d.def, d.armed, d.hint, d.fail[0].Reason, tt.def, tt.armed, tt.kept)
			}
			writes := d.writes
			if err := CommitNow(tt.c, fakeStore{d}, fakeLoader{d}, fakeLog{d}); err != nil || tt.armed == "" && d.writes != writes {
				t.Errorf("a second commit: %v, %d writes", err, d.writes-writes)
			}
		})
	}
}

// A slot that a check lowered gets its place back when it boots well; one that a
// person lowered does not.
func TestCommitRestores(t *testing.T) {
	for reason, want := range map[Reason]string{Verity: "a 2/0+ b 3/0+", Manual: "a 2/0+ b 1/0+"} {
		d := &disk{n: 2}
		copy(d.slot[:], parse(t, "a 2/0+ b 1/0+"))
		d.readable = true
		c := Commitment{Running: "b", Loaded: "b", Failures: map[string]Failure{"b": {Slot: "b", Class: ImageFailure, Reason: reason, Above: "a"}}}
		if err := CommitNow(c, fakeStore{d}, nil, fakeLog{d}); err != nil || text(d.slots()) != want {
			t.Errorf("%s: got %s, %v, want %s", reason, text(d.slots()), err, want)
		}
	}
}
