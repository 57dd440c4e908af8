// Package balloon is about what an ext4 volume has given back: blocks that a file
// in it, a balloon, holds without anything ever written to them, so that the outer
// file system need not keep room for them. It has the arithmetic of such ranges,
// the judgment of a balloon's extents, and the record of the ranges beside
// encrypted.img; it makes no system calls.
package balloon

import (
	"sort"
)

// Range is from byte Start to before byte End.
type Range struct{ Start, End int64 }

// Bytes is its length.
func (r Range) Bytes() int64 { return r.End - r.Start }

// Total is the length of all ranges together, which do not overlap.
func Total(list []Range) int64 {
	var n int64
	for _, r := range list {
		n += r.Bytes()
	}
	return n
}

// Join returns the bytes that are in any of the lists, in order, no two ranges
// touching.
func Join(lists ...[]Range) []Range {
	var all []Range
	for _, l := range lists {
		for _, r := range l {
			if r.Start < r.End {
				all = append(all, r)
			}
		}
	}
	sort.Slice(all, func(i, j int) bool { return all[i].Start < all[j].Start })
	n := 0
	for _, r := range all {
		if n > 0 && r.Start <= all[n-1].End {
			all[n-1].End = max(all[n-1].End, r.End)
			continue
		}
		all[n] = r
		n++
	}
	return all[:n]
}

// Without returns the bytes of list that are not in less.
func Without(list, less []Range) []Range {
	var left []Range
	less = Join(less)
	i := 0
	for _, r := range Join(list) {
		for i < len(less) && less[i].End <= r.Start {
			i++
		}
		for j := i; j < len(less) && less[j].Start < r.End; j++ {
			if less[j].Start > r.Start {
				left = append(left, Range{r.Start, less[j].Start})
			}
			r.Start = less[j].End
		}
		if r.Start < r.End {
			left = append(left, r)
		}
	}
	return left
}

// Largest returns the n largest ranges of a list, in order, and the others.
func Largest(list []Range, n int) (large, rest []Range) {
	list = Join(list)
	if len(list) <= n {
		return list, nil
	}
	bySize := append([]Range(nil), list...)
	sort.Slice(bySize, func(i, j int) bool { return bySize[i].Bytes() > bySize[j].Bytes() })
	return Join(bySize[:n]), Join(bySize[n:])
}

// Both returns the bytes that are in both lists.
func Both(a, b []Range) []Range { return Without(a, Without(a, b)) }

// Within returns the bytes of list from start to before end.
func Within(list []Range, start, end int64) []Range {
	return Both(list, []Range{{start, end}})
}

// Up is n rounded up to a whole unit, which is a power of two.
func Up(n, unit int64) int64 { return (n + unit - 1) &^ (unit - 1) }

// Whole returns the bytes of list that are in whole units, which are a power of two.
func Whole(list []Range, unit int64) []Range {
	var whole []Range
	for _, r := range Join(list) {
		if r.Start, r.End = Up(r.Start, unit), r.End&^(unit-1); r.Start < r.End {
			whole = append(whole, r)
		}
	}
	return whole
}

// Around returns all bytes of the units that list has something of.
func Around(list []Range, unit int64) []Range {
	var around []Range
	for _, r := range Join(list) {
		around = append(around, Range{r.Start &^ (unit - 1), Up(r.End, unit)})
	}
	return Join(around)
}

// Shift returns list with by added to all positions.
func Shift(list []Range, by int64) []Range {
	moved := make([]Range, len(list))
	for i, r := range list {
		moved[i] = Range{r.Start + by, r.End + by}
	}
	return moved
}
