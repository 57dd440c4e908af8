package sharing

import (
	"fmt"
	"io"
	"strings"

	"sealroot/sealroot/terminal"
	"sealroot/state/balance"
	"sealroot/state/layout"
)

// Sides are what partition and volume have, in bytes, for a person or a program.
type Sides struct {
	Partition     int64  `json:"partition_bytes"`      // size of its file system
	PartitionFree int64  `json:"partition_free_bytes"` // what df shows of it
	KeepFree      int64  `json:"keep_free_bytes"`      // what the volume never takes of that
	Reserved      int64  `json:"reserved_bytes"`       // what encrypted.img has of it
	Volume        int64  `json:"volume_bytes"`         // of the file system in the volume, what is in use or free
	VolumeFree    int64  `json:"volume_free_bytes"`
	GivenBack     int64  `json:"given_back_bytes"`         // in balloons, and not reserved
	InBalloons    int64  `json:"in_balloons_bytes"`        // df of the volume counts them as used
	Spare         int64  `json:"spare_bytes"`              // what the volume could give back now
	Gap           int64  `json:"gap_bytes"`                // of the volume's file system, not reserved
	Copied        int64  `json:"copied_bytes"`             // of encrypted.img, what btrfs outside does not write in place
	Moving        int64  `json:"moving_bytes"`             // what writes to the volume may need outside while a scrub or balance runs there
	Spanned       int64  `json:"spanned_bytes"`            // of the device, by that file system
	Device        string `json:"device"`                   // oversized or classic
	DeviceBytes   int64  `json:"device_bytes"`             // of the decrypted device
	AutoResize    string `json:"auto_resize"`              // off, grow or both
	StatedRate    int64  `json:"stated_rate"`              // bytes per second
	Decisions     []Past `json:"decisions"`                // the oldest first
	Now           string `json:"now"`                      // what would be done now, in words
	LimitsProblem string `json:"limits_problem,omitempty"` // what is wrong with the limits' file

	// How many files there is room for; all are 0 of a file system without such a bound.
	VolumeInodes        int64 `json:"volume_inodes"`
	VolumeInodesFree    int64 `json:"volume_inodes_free"`
	PartitionInodes     int64 `json:"partition_inodes"`
	PartitionInodesFree int64 `json:"partition_inodes_free"`

	few bool // inodes on either side: balance.Limits.FewInodes
}

// Bar draws the partition as width characters: used in the volume, free in it, used
// beside it, free beside it.
func (s Sides) Bar(width int, ascii bool) string {
	marks := [...]string{"█", "▒", "▓", "░"}
	if ascii {
		marks = [...]string{"#", "-", "=", "."}
	}
	volumeUsed := max(0, s.Reserved-s.VolumeFree)
	parts := [...]int64{volumeUsed, s.VolumeFree, max(0, s.Partition-s.PartitionFree-s.Reserved), s.PartitionFree}
	var total int64
	for _, p := range parts {
		total += p
	}
	if total <= 0 || width <= 0 {
		return ""
	}
	// Each part ends where the sum so far ends: together they have the width.
	var b strings.Builder
	var sum int64
	at := 0
	for i, p := range parts {
		sum += p
		end := int(float64(sum) / float64(total) * float64(width))
		if i == len(parts)-1 {
			end = width
		}
		b.WriteString(strings.Repeat(marks[i], end-at))
		at = end
	}
	return b.String()
}

// leastBar and mostBar bound the width of the bar.
const (
	leastBar = 20
	mostBar  = 100
)

// Write writes them for a person whose terminal has so many columns.
func (s Sides) Write(to io.Writer, columns int, ascii bool) error {
	bar := s.Bar(min(max(columns-2, leastBar), mostBar), ascii)
	marks := "█ used and ▒ free in the volume, ▓ used and ░ free beside it"
	if ascii {
		marks = "# used and - free in the volume, = used and . free beside it"
	}
	var b strings.Builder
	fmt.Fprintf(&b, "\nspace of the state partition, %s\n[%s]\n%s\n", balance.Text(s.Partition), bar, marks)
	fmt.Fprintf(&b, "volume     %s, %s free, %s reserved for it\n", balance.Text(s.Volume), balance.Text(s.VolumeFree), balance.Text(s.Reserved))
	fmt.Fprintf(&b, "beside it  %s free, of which the volume leaves %s\n", balance.Text(s.PartitionFree), balance.Text(s.KeepFree))
	if s.InBalloons > 0 {
		fmt.Fprintf(&b, "balloons   %s, of which %s are given back; df counts them as used in the volume, nothing is there\n", balance.Text(s.InBalloons), balance.Text(s.GivenBack))
	}
	if s.few {
		fmt.Fprintf(&b, "FEW INODES %s in the volume, %s beside it: so many more files, whatever is free\n",
			inodesText(s.VolumeInodes, s.VolumeInodesFree), inodesText(s.PartitionInodes, s.PartitionInodesFree))
	}
	if s.Gap > 0 {
		fmt.Fprintf(&b, "NOT RESERVED %s of the volume: sealroot state repair\n", balance.Text(s.Gap))
	}
	if s.Copied > 0 {
		fmt.Fprintf(&b, "NOT RESERVED %s of the volume: a snapshot was made of /state/%s; delete it, restart, sealroot state repair\n", balance.Text(s.Copied), layout.ImageSubvolume)
	}
	if s.Moving > 0 {
		fmt.Fprintf(&b, "MOVING     a scrub or balance of /state runs: until it ends, what is written to the volume may need %s beside it\n", balance.Text(s.Moving))
		if s.PartitionFree < s.Moving {
			fmt.Fprintf(&b, "           %s are free there, and with none WRITES FAIL: end it (btrfs scrub cancel /state, btrfs balance cancel /state)\n", balance.Text(s.PartitionFree))
		}
	}
	fmt.Fprintf(&b, "could give %s\n", balance.Text(s.Spare))
	if s.Device == "classic" {
		fmt.Fprintf(&b, "devices    %s\n", s.devices())
	}
	fmt.Fprintf(&b, "automatic  %s\n", s.automatic())
	if s.LimitsProblem != "" {
		fmt.Fprintf(&b, "WRONG LIMITS the defaults are shown; the service only reserves what the volume spans, until this is right: %s\n", terminal.Printable(s.LimitsProblem))
	}
	for _, p := range s.Decisions {
		text := fmt.Sprintf("%s %s", p.Action, balance.Text(p.Bytes))
		if p.Bytes == 0 {
			text = string(p.Action)
		}
		text += ": " + p.Reason
		if p.Error != "" {
			text += "; failed: " + p.Error
		}
		fmt.Fprintf(&b, "%s  %s\n", p.Time.Format("2006-01-02 15:04:05"), terminal.Printable(text))
	}
	_, err := io.WriteString(to, b.String())
	return err
}

func inodesText(all, free int64) string {
	if all == 0 {
		return "any number"
	}
	return fmt.Sprintf("%d of %d", free, all)
}

func (s Sides) devices() string {
	if more := s.DeviceBytes - s.Spanned; more > 0 {
		return fmt.Sprintf("%s larger than the volume's file system until a resize with a key, or the next boot", balance.Text(more))
	}
	return "as large as the volume's file system (state.device: classic); another size takes a key"
}

func (s Sides) automatic() string {
	switch s.AutoResize {
	case "grow", "both":
		return fmt.Sprintf("%s, for writers up to %d MiB/s; now: %s", s.AutoResize, s.StatedRate>>20, s.Now)
	}
	return "off (state.auto_resize of the image's configuration)"
}
