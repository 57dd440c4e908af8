package boot

import (
	"crypto/rand"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"sealroot/init/config"
	"sealroot/init/report"
	"sealroot/mount"
	"sealroot/mount/mounttest"
	"sealroot/slots"
	"sealroot/state"
	"sealroot/state/layout"
	"sealroot/state/reset"
	"sealroot/state/tpm"
)

// A request from outside is anybody's: it takes a person at the console who says
// yes, and a key of the volume or a configuration that does without.
func TestResetFromOutside(t *testing.T) {
	for _, tt := range []struct {
		name   string
		reset  string // state.reset
		create string
		lines  []string // what is typed
		trial  bool
		by     state.ResetBy // 0: nothing is changed
		says   string        // a warning
	}{
		{"nobody_there", config.ResetAuthenticated, "", nil, false, 0, "not agreed to"},
		{"no", config.ResetAuthenticated, "", []string{"no", "open sesame"}, false, 0, "not agreed to"},
		{"y_is_not_yes", config.ResetPresence, "", []string{"y"}, false, 0, "not agreed to"},
		{"yes_alone", config.ResetAuthenticated, "", []string{"yes"}, false, 0, "nothing was changed"},
		{"yes_and_wrong_keys", config.ResetAuthenticated, "", []string{"yes", "a", "b", "c", "open sesame"}, false, 0, "3 wrong entries"},
		{"yes_and_a_key", config.ResetAuthenticated, "", []string{"yes", "a", "open sesame"}, false, state.ResetByKey, ""},
		{"presence", config.ResetPresence, "", []string{"yes"}, false, state.ResetByPresence, ""},
		{"presence_of_nobody", config.ResetPresence, "", nil, false, 0, "not agreed to"},
		{"never", config.ResetNever, "", []string{"yes", "open sesame"}, false, 0, "state.reset is never"},
		{"nothing_would_be_made", config.ResetPresence, config.CreateNever, []string{"yes"}, false, 0, "state.create is never"},
		{"on_trial", config.ResetPresence, "", []string{"yes"}, true, 0, "on trial"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b, _ := testBoot(&person{lines: tt.lines}, config.State{
				Unlock: []string{config.UnlockPassphrase}, OnFailure: []string{config.FailurePrompt},
				Create: config.CreateFirstBoot, Reset: tt.reset,
			})
			if tt.create != "" {
				b.cfg.State.Create = tt.create
			}
			if tt.trial {
				b.report.Slot.Trial = true
				b.slots.observed.Slots = []slots.Slot{{Name: "a", Priority: 15, Successful: true}}
			}
			b.cmd.Reset = true
			// What goes on ends where the volume would be mounted.
			b.sys.Devices, b.sys.Mounter = &fakeDevices{t: t}, &mounttest.Recorder{FailAt: 1, FailWith: unix.EUCLEAN}
			b.volume.outer = outerWithVolume(t)
			err := b.openVolume(t.Context())
			by, begun, _ := state.ResetBegun(b.volume.outer)
			if restarts := errors.Is(err, errReboot); restarts != (tt.by != 0) || begun != restarts || by != tt.by {
				t.Errorf("openVolume() = %v; begun %v by %v, want by %v", err, begun, by, tt.by)
			}
			if said := strings.Join(b.report.Warnings, "\n"); !strings.Contains(said, tt.says) {
				t.Errorf("warnings %q, want %q", said, tt.says)
			}
			if begun {
				return
			}
			// The volume is whole: it opens as ever, without the word.
			v, err := state.Open(b.volume.outer, &fakeDevices{t: t}, state.Oversized, func(l *state.LockedVolume) ([]byte, error) {
				return l.Header.Unlock(1, []byte("open sesame"))
			})
			if err != nil {
				t.Fatalf("the volume does not open any more: %v", err)
			}
			v.Close()
		})
	}
}

// Nothing is destroyed where the new volume would have no room, and btrfs needs more of it.
func TestResetNeedsRoom(t *testing.T) {
	for kind, begins := range map[state.Filesystem]bool{state.Ext4: true, state.Btrfs: false} {
		t.Run(string(kind), func(t *testing.T) {
			b, _ := testBoot(&person{lines: []string{"yes"}}, config.State{
				Unlock: []string{config.UnlockPassphrase}, OnFailure: []string{config.FailurePrompt},
				Create: config.CreateFirstBoot, Reset: config.ResetPresence, Filesystem: string(kind),
			})
			b.cmd.Reset = true
			b.sys.Devices, b.sys.Mounter = &fakeDevices{t: t}, &mounttest.Recorder{FailAt: 1, FailWith: unix.EUCLEAN}
			dir := t.TempDir()
			if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=300M"); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { // volumeIn closes its directory first
				if err := unix.Unmount(dir, 0); err != nil {
					t.Error(err)
				}
			})
			b.volume.outer = volumeIn(t, dir)
			err := b.openVolume(t.Context())
			_, begun, _ := state.ResetBegun(b.volume.outer)
			said := strings.Join(b.report.Warnings, "\n")
			if errors.Is(err, errReboot) != begins || begun != begins || strings.Contains(said, state.ErrNoRoom.Error()) == begins {
				t.Errorf("openVolume() = %v, begun %v, want %v; warnings %q", err, begun, begins, said)
			}
		})
	}
}

// The running system's request lies in the volume. One that is refused is gone, so
// that it does not come true some day.
func TestResetRequested(t *testing.T) {
	const uuid = "6b5d1e3c-4a55-4f0e-9d7c-2f8f1d0a9b11"
	for _, tt := range []struct {
		name   string
		text   string
		change func(b *boot)
		asked  bool
		stays  bool
		why    string
	}{
		{"none", "", nil, false, false, ""},
		{"asked", string(reset.Format(uuid, false)), nil, true, true, ""},
		{"of_a_copied_volume", string(reset.Format("11111111-2222-4333-8444-aaaaaaaaaaaa", false)), nil, false, false, "not a request"},
		{"never", string(reset.Format(uuid, false)), func(b *boot) { b.cfg.State.Reset = config.ResetNever }, false, false, "never"},
		{"create_never", string(reset.Format(uuid, false)), func(b *boot) { b.cfg.State.Create = config.CreateNever }, false, false, "state.create"},
		{"not_our_volume", string(reset.Format(uuid, false)), func(b *boot) { b.report.State.Pinned = report.PinnedNo }, false, false, errOtherVolume.Error()},
		{"TPM_is_broken", string(reset.Format(uuid, false)), func(b *boot) { b.cfg.State.Unlock = []string{config.UnlockTPM2} }, false, false, "TPM"},
		{"keep_home", string(reset.Format(uuid, true)), nil, true, true, ""},
		{"keep_home_without_a_new_volume", string(reset.Format(uuid, true)), func(b *boot) { b.cfg.State.Create = config.CreateNever }, true, true, ""},
		{"keep_home_of_a_copied_volume", string(reset.Format("11111111-2222-4333-8444-aaaaaaaaaaaa", true)), nil, false, false, "not a request"},
		{"keep_home_never", string(reset.Format(uuid, true)), func(b *boot) { b.cfg.State.Reset = config.ResetNever }, false, false, "never"},
		{"keep_home_not_our_volume", string(reset.Format(uuid, true)), func(b *boot) { b.report.State.Pinned = report.PinnedNo }, false, false, errOtherVolume.Error()},
		{"on_trial", string(reset.Format(uuid, false)), func(b *boot) {
			b.report.Slot.Trial = true
			b.slots.observed.Slots = []slots.Slot{{Name: "a", Priority: 15, Successful: true}}
		}, false, true, ""},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b, _ := testBoot(&person{}, config.State{Unlock: []string{config.UnlockPassphrase}, Create: config.CreateFirstBoot, Reset: config.ResetAuthenticated})
			if tt.change != nil {
				tt.change(b)
			}
			b.volume.outer = outerWithVolume(t)
			path := filepath.Join(t.TempDir(), reset.File)
			if err := os.Mkdir(filepath.Dir(path), 0o700); err != nil {
				t.Fatal(err)
			}
			if tt.text != "" {
				if err := os.WriteFile(path, []byte(tt.text), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			root, err := mount.OpenRoot(filepath.Dir(filepath.Dir(path)))
			if err != nil {
				t.Fatal(err)
			}
			defer root.Close()
			asked, keepHome, err := b.requested(t.Context(), root, uuid)
			if asked != tt.asked || keepHome != (asked && strings.HasPrefix(tt.name, "keep_home")) || (err != nil) != (tt.why != "") || err != nil && !strings.Contains(err.Error(), tt.why) {
				t.Errorf("requested() = %v, %v, want %v, %q", asked, err, tt.asked, tt.why)
			}
			if _, err := os.Lstat(path); (err == nil) != tt.stays {
				t.Errorf("the request: %v, want there %v", err, tt.stays)
			}
		})
	}
}

// A cut behind every step of a reset: the volume still opens by the TPM, or the next
// boot finishes the reset and is a first boot then. And who can only write to the
// disk gets no first boot out of a mark of theirs: the TPM remembers.
func TestResetCutBetweenSteps(t *testing.T) {
	steps := []struct {
		name string
		run  func(s *sealed, b *boot) error
	}{
		{"nothing", func(*sealed, *boot) error { return nil }},
		{"TPM_mark_removed", func(s *sealed, b *boot) error { return b.forgetMark(s.t.Context()) }},
		{"destroyed", func(s *sealed, b *boot) error {
			return state.BeginReset(s.outer, state.ResetBySystem, rand.Reader)
		}},
		{"pins_removed", func(s *sealed, b *boot) error { return b.tpm.dev.RemoveIdentities(s.t.Context()) }},
		{"partition_mark_removed", func(s *sealed, b *boot) error { return os.Remove(filepath.Join(s.outer.Name(), markName)) }},
		{"file_removed", func(s *sealed, b *boot) error { return os.Remove(filepath.Join(s.outer.Name(), state.ImageName)) }},
	}
	for last := range steps {
		t.Run(steps[last].name, func(t *testing.T) {
			s := newSealed(t, false)
			b := s.boot(&person{})
			writeMarks(s, b)
			for _, step := range steps[:last+1] {
				if err := step.run(s, b); err != nil {
					t.Fatal(err)
				}
			}
			finished(s, last >= 2)
		})
	}
	t.Run("forged_on_the_disk", func(t *testing.T) {
		s := newSealed(t, false)
		b := s.boot(&person{})
		writeMarks(s, b)
		if err := state.BeginReset(s.outer, state.ResetBySystem, rand.Reader); err != nil {
			t.Fatal(err)
		}
		b = s.boot(&person{})
		b.volume.outer = s.outer
		done, err := b.resetFirst(t.Context())
		if why, _ := b.provisioned(t.Context()); !done || err == nil || !strings.Contains(err.Error(), "the TPM remembers") || why == "" {
			t.Errorf("resetFirst() = %v, %v, provisioned %q; want a refusal", done, err, why)
		}
		if err := b.forgetMark(t.Context()); err != nil {
			t.Fatal(err)
		}
		finished(s, true) // the control
	})
}

// writeMarks sets both marks "provisioned".
func writeMarks(s *sealed, b *boot) {
	s.t.Helper()
	b.volume.outer = s.outer
	b.setMarks(s.t.Context(), &state.Volume{Header: s.header()})
	if why, err := b.tpmRemembers(s.t.Context()); why == "" || err != nil {
		s.t.Fatalf("the TPM remembers %q, %v", why, err)
	}
}

// finished is the next boot: the volume opens, or with reset nothing is left of it
// that keeps a first boot away.
func finished(s *sealed, reset bool) {
	s.t.Helper()
	b := s.boot(&person{})
	b.volume.outer, b.cfg.State.Create = s.outer, config.CreateFirstBoot
	by, begun, err := state.ResetBegun(s.outer)
	if err != nil {
		s.t.Fatal(err)
	}
	if !reset {
		if err := s.open(b); err != nil || begun || b.report.State.Unlocked != config.UnlockTPM2 {
			s.t.Errorf("open: %v, begun %v, unlocked by %q", err, begun, b.report.State.Unlocked)
		}
		return
	}
	if begun {
		if err := b.finishReset(s.t.Context(), by); err != nil {
			s.t.Fatal(err)
		}
		if b.report.State.Reset != state.ResetBySystem.String() {
			s.t.Errorf("the report says %q", b.report.State.Reset)
		}
	}
	why, err := b.provisioned(s.t.Context())
	if there, _ := state.Exists(s.outer, state.ImageName); why != "" || err != nil || there {
		s.t.Errorf("provisioned: %q, %v; the file is there: %v", why, err, there)
	}
	policy, err := b.statePolicy()
	if err != nil {
		s.t.Fatal(err)
	}
	if id, err := b.tpm.dev.ReadIdentity(s.t.Context(), policy); begun && !errors.Is(err, tpm.ErrUnpinned) {
		s.t.Errorf("the TPM still has %x pinned: %v", id, err)
	}
}

// What a volume says whose journal was not replayed may have been taken back since.
func TestRequestWaitsForTheJournal(t *testing.T) {
	b, _ := testBoot(&person{}, config.State{})
	v := &state.Volume{Unreplayed: unix.ENOSPC}
	if err := b.obeyRequest(t.Context(), v); err != nil || !strings.Contains(strings.Join(b.report.Warnings, "\n"), "waits until the journal") {
		t.Errorf("obeyRequest() = %v, warnings %q", err, b.report.Warnings)
	}
}

// What holds homes stays, be it bound by its name or by binds.extra.
func TestKeepsHome(t *testing.T) {
	b, _ := testBoot(&person{}, config.State{})
	names := map[string]bool{
		"home": true, "home-anna": true, `home-an\x2dna`: true, "homes": false, "data": false, "var": false, "var-home": false, ".home": false, "etc": false, "lost+found": false, "home-..-etc": false,
	}
	check := func() {
		t.Helper()
		for name, want := range names {
			if got := b.keepsHome(name); got != want {
				t.Errorf("keepsHome(%q) = %v, want %v", name, got, want)
			}
		}
	}
	check()
	b.cfg.Binds.Extra = []config.ExtraBind{
		{From: "encrypted/homes", To: "/home"}, {From: "encrypted/data/kiosk", To: "/home/kiosk"},
		{From: "encrypted/var/x", To: "/homework"}, {From: "var/home", To: "/home/beside"}, {From: "encrypted/srv", To: "/srv/home"},
	}
	names["homes"], names["data"], names["srv"] = true, true, false
	check()
}

// A request that cannot be carried out is refused, once, and does not cost the boot its
// volume; one that was begun is not.
func TestSetAsideRefused(t *testing.T) {
	for name, tt := range map[string]struct {
		random io.Reader
		folder bool // of a boot before
		fails  bool
		stays  bool // the request, and what is in the volume
		says   string
	}{
		"obeyed":        {rand.Reader, false, false, false, "FACTORY RESET"},
		"cannot_begin":  {strings.NewReader(""), false, false, true, "is refused: cannot move all out of the way, nothing was moved"},
		"begun_earlier": {strings.NewReader(""), true, true, true, ""},
		"goes_on":       {rand.Reader, true, false, false, "FACTORY RESET"},
	} {
		t.Run(name, func(t *testing.T) {
			b, _ := testBoot(&person{}, config.State{})
			b.sys.Rand = tt.random
			root := openTestDir(t)
			err := errors.Join(os.Mkdir(filepath.Join(root.Name(), filepath.Dir(reset.File)), 0o700), os.Mkdir(filepath.Join(root.Name(), "var"), 0o700),
				os.WriteFile(filepath.Join(root.Name(), reset.File), nil, 0o600))
			if tt.folder {
				err = errors.Join(err, os.Mkdir(filepath.Join(root.Name(), layout.Removed+"1"), 0o700))
			}
			if err != nil {
				t.Fatal(err)
			}
			err = b.setAside(root)
			if said := strings.Join(b.report.Warnings, "\n"); (err != nil) != tt.fails || !strings.Contains(said, tt.says) || (b.report.State.Reset != "") == tt.stays {
				t.Errorf("setAside() = %v, warnings %q, report %q", err, said, b.report.State.Reset)
			}
			there, _ := state.Exists(root, "var")
			request, _ := state.Exists(root, reset.File)
			if there != tt.stays || request != tt.fails {
				t.Errorf("/var is there: %v, the request: %v", there, request)
			}
		})
	}
}
