package boot

import (
	"testing"

	"golang.org/x/sys/unix"

	"sealroot/init/config"
	"sealroot/init/report"
	"sealroot/slots"
)

// An image that cannot be opened under another slot's initramfs, which may be made
// for another file system or another place of the tree, is not bad for that: a
// committed slot would be lost. (In slots, the walk over slots whose kernels fit
// only themselves has what follows.)
func TestImageUnderAnotherSlotsInitramfs(t *testing.T) {
	mounting := imageError(slots.Mount, "cannot mount: %w", unix.EINVAL)
	for _, tc := range []struct {
		name    string
		loaded  string
		foreign bool
		verity  string // what dm-verity says
		err     error
		want    slots.Reason
	}{
		{"own", "b", false, "V", mounting, slots.Mount},
		{"nobody_says_whose", "", false, "V", mounting, slots.Mount},
		{"another_slots", "a", true, "V", mounting, slots.WrongKernel},
		{"none_of_ours", slots.UnknownKernel, true, "V", mounting, slots.WrongKernel},
		{"another_slots_superblock", "a", true, "", imageError(slots.Verity, "cannot use the superblock"), slots.WrongKernel},
		{"another_slots_and_a_wrong_block", "a", true, "C", mounting, slots.Mount},
		{"another_slots_and_a_wrong_block_read", "a", true, "C", imageError(slots.Mount, "%s", "bad block"), slots.Mount},
		{"another_slots_and_below_the_floor", "a", true, "V", imageError(slots.RollbackFloor, "old"), slots.RollbackFloor},
		{"another_slots_and_another_product", "a", true, "V", imageError(slots.WrongImage, "other"), slots.WrongImage},
		{"another_slots_and_the_disk", "a", true, "V", environmentError(slots.IOError, "slow"), slots.IOError},
	} {
		t.Run(tc.name, func(t *testing.T) {
			b := &boot{cfg: &config.Config{}, sys: &System{Verity: fakeVerity{status: tc.verity}}, report: &report.Report{}}
			b.slots.observed.Loaded = tc.loaded
			class, reason := classOf(b.blameInitramfs(t.Context(), "b", tc.foreign, tc.err))
			if reason != tc.want || (class == slots.ImageFailure) != (reason != slots.WrongKernel && reason != slots.IOError) {
				t.Errorf("class %s, reason %s; want reason %s", class, reason, tc.want)
			}
		})
	}
}
