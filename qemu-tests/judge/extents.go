package judge

import (
	"errors"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// extent is one of a file, in bytes.
type extent struct {
	start, end int64 // in the file
	physical   int64 // on its device
	unwritten  bool  // reserved, and reads as zeros
}

// extentLine is one of filefrag's table, in blocks: logical from and to, physical
// from and to, length, where the extent was expected, flags.
var extentLine = regexp.MustCompile(`^ *\d+: +(\d+)\.\. *(\d+): +(\d+)\.\. *(\d+): +(\d+):(?: +\d+:)? *(\S*)$`)

// extents asks filefrag for what the file system holds for a file.
func extents(path string) ([]extent, error) {
	f, err := os.Open(path)
	if err == nil {
		err = f.Sync() // FIEMAP tells of no room for what is in memory only
		f.Close()
	}
	if err != nil {
		return nil, err
	}
	text, err := run("filefrag", "-v", fmt.Sprintf("-b%d", block), path)
	if err != nil {
		return nil, err
	}
	return parseExtents(text)
}

func parseExtents(text string) ([]extent, error) {
	var list []extent
	count := -1
	for line := range strings.Lines(text) {
		line = strings.TrimRight(line, "\n")
		if found := regexp.MustCompile(`: (\d+) extents? found$`).FindStringSubmatch(line); found != nil {
			count, _ = strconv.Atoi(found[1])
			continue
		}
		m := extentLine.FindStringSubmatch(line)
		if m == nil {
			if strings.Contains(line, "..") {
				return nil, fmt.Errorf("cannot read filefrag's line %q", line)
			}
			continue
		}
		var n [5]int64
		for i := range n {
			var err error
			if n[i], err = strconv.ParseInt(m[i+1], 10, 50); err != nil {
				return nil, fmt.Errorf("cannot read filefrag's line %q: %w", line, err)
			}
		}
		flags := strings.Split(m[6], ",")
		if bad := slices.IndexFunc(flags, func(f string) bool {
			return !slices.Contains([]string{"", "last", "eof", "unwritten", "merged"}, f)
		}); bad >= 0 || n[1]-n[0]+1 != n[4] || n[3]-n[2]+1 != n[4] {
			return nil, fmt.Errorf("cannot go by filefrag's line %q", line)
		}
		list = append(list, extent{n[0] * block, (n[1] + 1) * block, n[2] * block, slices.Contains(flags, "unwritten")})
	}
	if count < 0 || count > 0 && len(list) == 0 {
		return nil, fmt.Errorf("cannot read what filefrag says: %s", strings.TrimSpace(text))
	}
	return list, nil
}

// written is what was written to a sparse file for which nothing is reserved. It waits
// for no disk.
func written(path string) (set, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var s set
	for end := int64(0); ; {
		start, err := unix.Seek(int(f.Fd()), end, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			return joined(s), nil // a hole up to the end
		}
		if err == nil {
			end, err = unix.Seek(int(f.Fd()), start, unix.SEEK_HOLE)
		}
		if err != nil {
			return nil, fmt.Errorf("cannot find what was written to %s: %w", path, err)
		}
		s = append(s, piece{start, end})
	}
}

// set is a set of bytes: pieces in order that do not touch.
type set []piece

type piece struct{ start, end int64 }

// newSet is the set of the file's bytes in list.
func newSet(list []extent) set {
	var s set
	for _, e := range list {
		s = append(s, piece{e.start, e.end})
	}
	return joined(s)
}

// joined are the same bytes as a set.
func joined(s set) set {
	slices.SortFunc(s, func(a, b piece) int { return int(a.start/block - b.start/block) })
	var all set
	for _, p := range s {
		if n := len(all); n > 0 && p.start <= all[n-1].end {
			all[n-1].end = max(all[n-1].end, p.end)
			continue
		}
		all = append(all, p)
	}
	return all
}

func (s set) bytes() (n int64) {
	for _, p := range s {
		n += p.end - p.start
	}
	return n
}

func (s set) without(less set) set {
	var left set
	for _, p := range s {
		for _, l := range less {
			if l.end <= p.start || l.start >= p.end {
				continue
			}
			if l.start > p.start {
				left = append(left, piece{p.start, l.start})
			}
			p.start = min(l.end, p.end)
		}
		if p.start < p.end {
			left = append(left, p)
		}
	}
	return left
}

func (s set) both(other set) set { return s.without(s.without(other)) }
