package boot

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"sealroot/init/config"
	"sealroot/mount/mounttest"
	"sealroot/state"
	"sealroot/state/luks2"
)

// A prebuilt volume is replaced at a first boot, and nowhere else: not on a machine
// that has had a volume, as the TPM or the partition remembers, whoever puts one
// there; and not where the configuration makes none.
func TestPrebuiltVolume(t *testing.T) {
	never := func(s *sealed, b *boot) { b.cfg.State.Create = config.CreateNever }
	for _, tt := range []struct {
		name     string
		change   func(s *sealed, b *boot)
		lines    []string // what is typed
		replaced bool
		says     string // the error, or a warning
	}{
		{"first_boot", func(*sealed, *boot) {}, nil, true, unix.EUCLEAN.Error()},
		{"TPM_remembers", func(s *sealed, b *boot) {
			writeMarks(s, b)
			if err := os.Remove(filepath.Join(s.outer.Name(), markName)); err != nil {
				t.Fatal(err)
			}
		}, nil, false, "the TPM remembers"},
		// The control: what stood in the way was the TPM.
		{"TPM_was_made_to_forget", func(s *sealed, b *boot) {
			writeMarks(s, b)
			if err := errors.Join(os.Remove(filepath.Join(s.outer.Name(), markName)), b.forgetMark(t.Context())); err != nil {
				t.Fatal(err)
			}
		}, nil, true, unix.EUCLEAN.Error()},
		{"partition_is_marked", func(s *sealed, b *boot) {
			writeMarks(s, b)
			if err := b.forgetMark(t.Context()); err != nil {
				t.Fatal(err)
			}
		}, nil, false, "marked as provisioned"},
		// After an update from never: what is in use opens, as it did.
		{"partition_is_marked_and_a_person", func(s *sealed, b *boot) { writeMarks(s, b) }, []string{"open sesame"}, false, "is not replaced, as the state partition is marked"},
		{"never", never, nil, false, errLocked.Error()},
		{"never_and_a_person", never, []string{"open sesame"}, false, "every copy of that image has the same keys"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := newSealed(t, false)
			h := s.prebuild()
			b := s.firstBoot(tt.lines)
			tt.change(s, b)
			err := b.openVolume(t.Context())
			if said := err.Error() + strings.Join(b.report.Warnings, "\n"); !strings.Contains(said, tt.says) {
				t.Errorf("openVolume() = %v, warnings %q, want %q", err, b.report.Warnings, tt.says)
			}
			// Made or not, a volume that was not mounted has no name.
			now := s.header()
			if used := tt.lines != nil; now.UUID() != h.UUID() || state.IsKept(now) != used || (state.PrebuiltOf(now) == nil) != used {
				t.Errorf("the file is volume %s, marked as in use: %v, want %v", now.UUID(), state.IsKept(now), used)
			}
			if made := len(b.pin.id) != 0 && string(b.pin.id) != string(s.id); made != tt.replaced {
				t.Errorf("a volume was made: %v, want %v", made, tt.replaced)
			}
		})
	}
}

// A machine has used a prebuilt volume, and the file alone is put on another one, whose
// image makes volumes and where nothing remembers one: it is never taken for empty.
func TestKeptVolumeIsNotReplaced(t *testing.T) {
	s := newSealed(t, false)
	s.prebuild()
	for _, tt := range []struct {
		create string
		lines  []string
		says   string
	}{
		{config.CreateNever, []string{"open sesame"}, unix.EUCLEAN.Error()},
		{config.CreateFirstBoot, nil, errLocked.Error()},
		{config.CreateFirstBoot, []string{"open sesame"}, unix.EUCLEAN.Error()},
	} {
		b := s.firstBoot(tt.lines)
		b.cfg.State.Create = tt.create
		if why, err := b.provisioned(t.Context()); why != "" || err != nil {
			t.Fatalf("provisioned() = %q, %v, want nothing that remembers", why, err)
		}
		err := b.openVolume(t.Context())
		if made := len(b.pin.id) != 0 && string(b.pin.id) != string(s.id); made || !strings.Contains(err.Error(), tt.says) {
			t.Errorf("create %s: openVolume() = %v, want %s; a volume was made: %v", tt.create, err, tt.says, made)
		}
		if said := strings.Join(b.report.Warnings, "\n"); !strings.Contains(said, "every copy of that image has the same keys") {
			t.Errorf("create %s: warnings %q", tt.create, said)
		}
	}
}

// prebuild makes the machine's volume one that came with the image.
func (s *sealed) prebuild() *luks2.Header {
	s.t.Helper()
	h, err := s.header().Retire([]int{tpmKeyslot}, nil)
	token, failed := state.Prebuilt{Reserved: 200 << 20}.Token()
	if err = errors.Join(err, failed); err == nil {
		h, err = h.AddToken(7, token)
	}
	if err != nil {
		s.t.Fatal(err)
	}
	s.write(h)
	return h
}

// firstBoot is a boot that may make a volume; what is made or opened ends where it
// would be mounted.
func (s *sealed) firstBoot(lines []string) *boot {
	s.t.Helper()
	b := s.boot(&person{lines: lines})
	b.cfg.State.Create, b.cfg.State.Recovery = config.CreateFirstBoot, config.RecoveryNone
	b.sys.Mounter, b.volume.outer = &mounttest.Recorder{FailAt: 1, FailWith: unix.EUCLEAN}, s.outer
	return b
}
