package balance

import (
	"fmt"
	"math"
	"time"
)

// Inodes are how many files a file system has room for, whatever is free of its bytes. ext4
// gets more of them only with new block groups behind its end. The zero value is of a file
// system without that bound.
type Inodes struct {
	All, Free int64
	// PerGroup come at once, for GroupBytes behind the end: the first of them already with
	// FirstBytes, of which RestBytes still go into the last group that is there.
	PerGroup, GroupBytes, FirstBytes, RestBytes int64
}

// bytesEach is how many bytes of the file system come with each inode.
func (i Inodes) bytesEach() int64 {
	if i.PerGroup <= 0 {
		return 0
	}
	return i.GroupBytes / i.PerGroup
}

// files is what is free for files, as a side of its own: each counts for the bytes that come
// with its inode. So the stated rate is one of files as well.
func (l Limits) files(h History, s Sizes) side {
	each := s.Inodes.bytesEach()
	if each == 0 {
		return side{free: math.MaxInt64}
	}
	f := side{free: s.Inodes.Free * each, keep: keepInside(s.Outer), rate: h.fileRate * each}
	f.need = max(f.keep, l.head(f.rate, h, s))
	return f
}

// behind is how much can be added behind the end of the volume until the next boot.
func (s Sizes) behind() int64 {
	if s.Device == 0 {
		return math.MaxInt64
	}
	return s.Device - s.Inner - s.Balloons
}

// extendable tells whether the volume may have more inodes in this boot.
func (s Sizes) extendable() bool {
	return s.Inodes.bytesEach() > 0 && s.behind() >= s.Inodes.FirstBytes
}

// bound is why the volume can have no more than to the end of its device, in words that "than"
// may follow.
func (s Sizes) bound() string {
	if s.Largest {
		return "with a device as large as the partition it can have no more"
	}
	return "until the next boot it can have no more"
}

// FewInodes tells whether a file system on a partition of so many bytes, or that of the
// partition itself, is short of inodes for a writer at the stated rate, as Decide has it of
// the volume.
func (l Limits) FewInodes(outer int64, i Inodes) bool {
	return l.files(History{}, Sizes{Outer: outer, Inodes: i}).short()
}

// lacks adds to the reason of a decision about bytes that the volume is short of inodes.
func (l Limits) lacks(h History, s Sizes, now time.Time) string {
	f := l.files(h, s)
	switch pause := h.extendPause(now); {
	case !f.short():
		return ""
	case !s.extendable():
		return "; " + s.shortOfInodes(f) + "; " + s.bound()
	case pause > 0:
		return fmt.Sprintf("; %s; the last %s failed, the next is in %v", s.shortOfInodes(f), Extend, pause.Round(time.Second))
	}
	return "; " + s.shortOfInodes(f)
}

func (s Sizes) shortOfInodes(f side) string {
	return fmt.Sprintf("the volume is short of inodes, %d of %d are free and %d needed", s.Inodes.Free, s.Inodes.All, f.need/s.Inodes.bytesEach())
}

// extend decides for a volume that is short of inodes. What is taken back from balloons would
// bring none, so it grows behind its end; what it has too much of bytes then it gives back
// by the rules for those. Where the partition has not the room for that, the volume makes it:
// it gives back first, which takes no inode from it. With less room than the next inodes
// take it comes nearer to them, in steps. After one that failed no room is made before the
// next is due: the rules for bytes would take it back meanwhile.
func (l Limits) extend(in, out side, h History, s Sizes, now time.Time) Decision {
	f := l.files(h, s)
	if !f.short() || !s.extendable() || h.extendPause(now) > 0 {
		return none("")
	}
	files := (f.need + max(f.need, step(s)) - f.free) / s.Inodes.bytesEach()
	more := (files+s.Inodes.PerGroup-1)/s.Inodes.PerGroup - 1 // groups behind the first
	goal := min(s.Inodes.FirstBytes+max(0, more)*s.Inodes.GroupBytes, s.behind())
	room, spare := out.free-out.need, in.free-in.need
	if room+spare < goal {
		room, spare = out.free-out.keep, in.free-in.keep
	}
	spare = min(spare, s.Inner-l.Min)
	if l.Max > 0 {
		room = min(room, l.Max-s.Inner)
	}
	forth := min(room, goal)
	if forth < s.Inodes.FirstBytes {
		forth = min(forth, s.Inodes.RestBytes)
	}
	unit := max(s.Unit, align)
	back := min(spare, goal-room) / unit * unit
	forth = forth / align * align
	switch {
	case room < goal && back >= smallest(s) && l.GiveBack && h.pause(Shrink, true, now) == 0:
		return Decision{Action: Shrink, Size: s.Inner - back, Reason: s.shortOfInodes(f) + "; first it makes room for more"}
	case forth >= min(smallest(s), goal/align*align):
		return Decision{Action: Extend, Size: s.Inner + forth, Reason: s.shortOfInodes(f)}
	}
	return none("")
}
