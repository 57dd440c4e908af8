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
// there; and not where the configuration makes none. It is never opened.
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
		// Who has the image has its key: a person with that is not asked for it.
		{"partition_is_marked_and_a_person", func(s *sealed, b *boot) { writeMarks(s, b) }, []string{"open sesame"}, false, "marked as provisioned"},
		{"never", never, nil, false, "so that none is made"},
		{"never_and_a_person", never, []string{"open sesame"}, false, "every copy of that image has its keys"},
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
			if now := s.header(); now.UUID() != h.UUID() || state.PrebuiltOf(now) == nil {
				t.Errorf("the file is volume %s, prebuilt %v", now.UUID(), state.PrebuiltOf(now))
			}
			if b.report.State.Unlocked != "" {
				t.Errorf("it was unlocked by %s", b.report.State.Unlocked)
			}
			if made := len(b.pin.id) != 0 && string(b.pin.id) != string(s.id); made != tt.replaced {
				t.Errorf("a volume was made: %v, want %v", made, tt.replaced)
			}
		})
	}
}

// The control: without the mark the same person with the same key opens the volume.
func TestNoPrebuiltVolumeIsOpened(t *testing.T) {
	s := newSealed(t, false)
	prebuilt := s.prebuild()
	for _, marked := range []bool{true, false} {
		if !marked {
			h, err := prebuilt.RemoveToken(7)
			if err != nil {
				t.Fatal(err)
			}
			s.write(h)
		}
		b := s.firstBoot([]string{"open sesame"})
		b.cfg.State.Create = config.CreateNever
		err := b.openVolume(t.Context())
		if opened := b.report.State.Unlocked != ""; opened == marked || errors.Is(err, state.ErrPrebuilt) != marked {
			t.Errorf("marked %v: openVolume() = %v, opened: %v", marked, err, opened)
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
