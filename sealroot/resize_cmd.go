package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math"
	"strconv"
	"strings"

	"sealroot/init/config"
	"sealroot/init/report"
	"sealroot/sealroot/bootset"
	"sealroot/state"
	"sealroot/state/balance"
	"sealroot/state/luks2"
	"sealroot/state/resize"
)

// resized is what state resize and state repair tell programs, in bytes.
type resized struct {
	Before resizedSizes `json:"before"`
	After  resizedSizes `json:"after"`
}

type resizedSizes struct {
	Reserved      int64 `json:"reserved_bytes"`
	OverCommitted int64 `json:"over_committed_bytes"`
	GivenBack     int64 `json:"given_back_bytes"`
	InBalloons    int64 `json:"in_balloons_bytes"`
	Free          int64 `json:"free_bytes"`
	StateFree     int64 `json:"state_free_bytes"`
	Min           int64 `json:"min_bytes"`
	Max           int64 `json:"max_bytes"`
	ReadOnly      bool  `json:"read_only"`
}

func sizesOf(s resize.Sizes) resizedSizes {
	return resizedSizes{s.Reserved, s.OverCommitted, s.GivenBack, s.InBalloons, s.InnerFree, s.OuterFree, s.MinReserved, s.MaxReserved, s.ReadOnly}
}

// resizeState gives the volume another share of the state partition. With state.device
// classic that may take a key of the volume, for its devices change.
func resizeState(c *command) action {
	a := authorityOptions(c, "passphrase-file")
	return func(ctx context.Context, words []string) error {
		v, err := c.openToResize(nil)
		if err != nil {
			return err
		}
		defer func() { v.Close() }()
		before, err := v.Measure()
		if err != nil {
			return err
		}
		want, err := wantedSize(words[0], before)
		if err != nil {
			return err
		}
		if before.Classic && (before.NeedsKey(want) || a.given()) {
			key, err := c.resizeKey(ctx, a)
			if err != nil {
				return err
			}
			defer clear(key)
			other, err := c.openToResize(func(*luks2.Header) ([]byte, error) { return bytes.Clone(key), nil })
			if err != nil {
				return err
			}
			v, err = other, v.Close()
			if err != nil {
				return err
			}
		}
		after, err := v.ResizeTo(ctx, func(now resize.Sizes) int64 {
			before = now // somebody else may have resized since
			want, _ := wantedSize(words[0], now)
			return want
		})
		if err == nil {
			err = v.Sync() // nobody who resizes waits for that
		}
		err = c.tellResized(before, after, err)
		if cfg, cerr := c.env.configuration(); cerr == nil && after.Spanned != 0 {
			if text := howLong(cfg.State.AutoResize, c.env.Limits, after.Reserved-before.Reserved); text != "" {
				c.say("%s", text)
			}
		}
		return err
	}
}

// howLong says for how long a size lasts that more bytes of the partition were given, and
// what keeps it, where sealroot-state.service shares the space by the file of limits.
func howLong(auto, limits string, more int64) string {
	service := "sealroot-state.service (state.auto_resize: " + auto + ")"
	switch {
	case more < 0 && (auto == config.AutoResizeGrow || auto == config.AutoResizeBoth):
		return service + " makes the volume larger again, within 10 s, once it has less than half of its share of the free space; max: SIZE in " + limits + " prevents that"
	case more > 0 && auto == config.AutoResizeBoth: // grow keeps what it has
		return service + " takes space back at once where the partition is short of it, and where that has less than half of its share after ten minutes; min: SIZE in " + limits + " prevents that"
	}
	return ""
}

// resizeKey is the volume key, by what allows other commands to change keyslots.
func (c *command) resizeKey(ctx context.Context, a authority) ([]byte, error) {
	im, err := c.readHeader(ctx)
	if err != nil {
		return nil, err
	}
	key, err := c.allow(ctx, a, im.Header)
	if err != nil {
		return nil, fmt.Errorf("cannot resize the volume: with state.device classic its devices change, which takes its key: %w", err)
	}
	return key, nil
}

// repairState reserves what the volume spans, the way out of a read-only one.
func repairState(c *command) action {
	return func(ctx context.Context, _ []string) error {
		v, err := c.openToResize(nil)
		if err != nil {
			return err
		}
		defer v.Close()
		before, err := v.Measure()
		if err != nil {
			return err
		}
		after, err := c.repairVolume(ctx, v)
		return c.tellResized(before, after, err)
	}
}

func (c *command) repairVolume(ctx context.Context, v resize.Resizer) (resize.Sizes, error) {
	s, err := v.Repair(ctx)
	if err != nil && !errors.Is(err, resize.ErrOverCommitted) || !s.ReadOnly {
		return s, err
	}
	// Where there is no room, a writable one can do without.
	r, err := c.booted()
	if err == nil && r.Degraded && r.State.UUID != "" {
		err = fmt.Errorf("cannot make the volume writable: this boot has found it damaged, %s says why: %w", report.Degraded, bootset.ErrRefused)
	}
	if err != nil {
		return s, err
	}
	return v.MakeWritable()
}

// openToResize opens the volume of this boot; key may be nil.
func (c *command) openToResize(key resize.Key) (Resizer, error) {
	r, err := c.booted()
	if err != nil {
		return nil, err
	}
	cfg, err := c.env.configuration()
	if err != nil {
		return nil, err
	}
	v, err := c.env.Volume(state.DeviceSize(cfg.State.Device), key)
	return v, refusedResize(notOpen(r, err))
}

// notOpen adds to the error of a volume that is not open how a boot without it gets it.
func notOpen(r report.Report, err error) error {
	if r.Degraded && errors.Is(err, resize.ErrNotOpen) {
		return fmt.Errorf("%w; this boot is degraded: sealroot state unlock opens it, or restart, and open it at the prompt", err)
	}
	return err
}

// tellResized tells what came of it, also where it went wrong.
func (c *command) tellResized(before, after resize.Sizes, err error) error {
	if after.Spanned != 0 {
		c.result.Data = resized{sizesOf(before), sizesOf(after)}
		c.say("%s", sizesText(before, after))
	}
	return refusedResize(err)
}

// refusedResize gives errors that are no failure the exit status of what is refused.
func refusedResize(err error) error {
	for _, refused := range []error{resize.ErrNotOpen, resize.ErrTooSmall, resize.ErrTooLarge, resize.ErrNoRoom, resize.ErrReadOnly, resize.ErrBusy, resize.ErrFrozen, resize.ErrFragmented, resize.ErrCopied, resize.ErrNoKey, resize.ErrWrongKey} {
		if errors.Is(err, refused) && !errors.Is(err, bootset.ErrRefused) {
			return fmt.Errorf("%w: %w", err, bootset.ErrRefused)
		}
	}
	return err
}

// sizesText is for a person.
func sizesText(before, after resize.Sizes) string {
	var b strings.Builder
	if before.Reserved == after.Reserved {
		fmt.Fprintf(&b, "the volume has %s, as before", balance.Text(after.Reserved))
	} else {
		fmt.Fprintf(&b, "the volume has %s, it had %s", balance.Text(after.Reserved), balance.Text(before.Reserved))
	}
	fmt.Fprintf(&b, "; free in it %s, beside it %s", balance.Text(after.InnerFree), balance.Text(after.OuterFree))
	if after.InBalloons > 0 {
		fmt.Fprintf(&b, "; %s in balloons, of which %s are given back, count as used in df", balance.Text(after.InBalloons), balance.Text(after.GivenBack))
	}
	if after.OverCommitted > 0 {
		fmt.Fprintf(&b, "; %s that it spans are NOT reserved", balance.Text(after.OverCommitted))
	}
	if after.Copied > 0 {
		fmt.Fprintf(&b, "; %s of it are written elsewhere since a snapshot was made, and are NOT reserved", balance.Text(after.Copied))
	}
	if after.ReadOnly {
		b.WriteString("; it is read-only")
	}
	return b.String()
}

// wantedSize reads what is asked for: max, min, 20G, +2G, -1G, or 50% of the state
// partition's file system.
func wantedSize(text string, s resize.Sizes) (int64, error) {
	bad := fmt.Errorf("%w: size %q, want max, min, 20G, 500M, +2G, -1G or 50%%", errUsage, text)
	switch text {
	case "max":
		return resize.Largest, nil
	case "min":
		return resize.Smallest, nil
	}
	number, sign := text, byte(0)
	if strings.HasPrefix(text, "+") || strings.HasPrefix(text, "-") {
		sign, number = text[0], text[1:]
	}
	if of, ok := strings.CutSuffix(number, "%"); ok {
		n, err := strconv.ParseFloat(of, 64)
		if err != nil || sign != 0 || !(n > 0 && n <= 100) {
			return 0, bad
		}
		return int64(float64(s.OuterTotal) / 100 * n), nil
	}
	unit := float64(1)
	if n := len(number); n > 0 {
		if i := strings.IndexByte("KMGT", number[n-1]); i >= 0 {
			unit, number = float64(int64(1)<<(10*(i+1))), number[:n-1]
		}
	}
	n, err := strconv.ParseFloat(number, 64)
	if n *= unit; err != nil || !(n >= 1 && n < math.MaxInt64/4) || strings.ContainsAny(number, "+-eExXpPnN_") {
		return 0, bad
	}
	switch sign {
	case '+':
		return s.Reserved + int64(n), nil
	case '-':
		return s.Reserved - int64(n), nil
	}
	return int64(n), nil
}
