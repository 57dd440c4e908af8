package volume

import (
	"bytes"
	"crypto/rand"
	"errors"
	"slices"
	"strings"
	"testing"

	"sealroot/init/report"
	"sealroot/state/enrol"
	"sealroot/state/luks2"
)

const uuid = "11111111-2222-4333-8444-555555555555"

// header has a keyslot, and its token, of each kind that is given.
func header(t *testing.T, kinds ...Kind) *luks2.Header {
	t.Helper()
	key := make([]byte, 64)
	rand.Read(key) // never fails
	h, err := luks2.Format(luks2.FormatParams{UUID: uuid, VolumeKey: key, Rand: rand.Reader})
	for i, kind := range kinds {
		if err != nil {
			break
		}
		pass := []byte{byte(i), 1, 2, 3}
		switch kind {
		case Recovery:
			h, err = enrol.Add(h, i, key, pass, luks2.RecoveryToken(i), rand.Reader)
		case Manage:
			h, err = enrol.Add(h, i, key, pass, enrol.ManageToken(i), rand.Reader)
		case Passphrase:
			h, err = h.AddKeyslot(i, key, pass, luks2.KDF{Type: luks2.KDFArgon2id, Time: 1, MemoryKiB: 64, CPUs: 1}, rand.Reader)
		default:
			h, err = h.AddKeyslot(i, key, pass, luks2.RandomSecretKDF(), rand.Reader)
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	return h
}

func TestDescribe(t *testing.T) {
	image := func(kinds ...Kind) *Image {
		return &Image{Header: header(t, kinds...), Bytes: 16 << 30, Reserved: 1 << 29}
	}
	open := report.Report{State: report.State{UUID: uuid, Unlocked: "passphrase"}}
	full := open
	full.State.ReadOnly = "no room; free space"
	for _, c := range []struct {
		name  string
		facts Facts
		text  string // is in what a person reads
		check func(d Description) bool
	}{
		{"asks", Facts{Report: open, Image: image(Recovery), People: true}, "asks for a key", func(d Description) bool {
			return d.NextBoot == "asks" && d.Recovery == "enrolled" && len(d.ToDo) == 0
		}},
		{"nobody_is_asked", Facts{Report: open, Image: image(Recovery)}, "nothing opens", func(d Description) bool { return d.NextBoot == "locked" }},
		{"manage_key_alone_opens_nothing", Facts{Report: open, Image: image(Manage), People: true, ManageFile: true}, "manage", func(d Description) bool {
			return d.NextBoot == "locked" && d.ManageKey == "kept"
		}},
		{"key_file", Facts{Report: open, Image: image(Unknown), KeyFile: true}, "looks for the key file", func(d Description) bool { return d.NextBoot == "key-file" }},
		{"passphrase_or_key_file_and_no_recovery_key", Facts{Report: open, Image: image(Passphrase, Unknown), KeyFile: true}, "recovery key  none", func(d Description) bool { return len(d.ToDo) == 0 }},
		{"key_file_alone", Facts{Report: open, Image: image(Unknown), KeyFile: true}, "recovery key  none", func(d Description) bool { return len(d.ToDo) == 0 }},
		{"escrowed", Facts{Report: open, Image: image(Recovery), Escrow: true}, "escrowed", func(d Description) bool { return d.Recovery == "escrowed" }},
		{"no_recovery_key", Facts{Report: open, Image: image(Unknown)}, "--new", func(d Description) bool { return d.Recovery == "none" && len(d.ToDo) == 1 }},
		{"full_partition", Facts{Report: full, Image: image(Passphrase), ReadOnlyMount: true},
			"no room", func(d Description) bool { return strings.HasPrefix(d.ReadOnly, "no room") && len(d.Problems) == 1 }},
		{"full_partition_repaired", Facts{Report: full, Image: image(Passphrase)}, "open", func(d Description) bool { return d.ReadOnly == "" && len(d.Problems) == 0 }},
		{"full_partition_not_known", Facts{Report: full, Image: image(Passphrase), MountErr: errors.New("input/output error")},
			"not known whether it still is: input/output error", func(d Description) bool { return strings.HasPrefix(d.ReadOnly, "no room") && len(d.Problems) == 1 }},
		{"not_known", Facts{Report: open, Image: image(Passphrase), MountErr: errors.New("input/output error")}, "open", func(d Description) bool { return d.ReadOnly == "" && len(d.Problems) == 0 }},
		{"damaged", Facts{Report: open, Image: image(Passphrase), ReadOnlyMount: true}, "kernel log", func(d Description) bool { return d.ReadOnly != "" }},
		{"exchanged_on_the_disk", Facts{Report: report.Report{State: report.State{UUID: "other"}}, Image: image(Passphrase)}, "problem", func(d Description) bool { return len(d.Problems) == 1 }},
		{"no_volume", Facts{Report: report.Report{State: report.State{Unlocked: "none"}}}, "none", func(d Description) bool { return d.Volume == "none" && len(d.Problems) == 0 }},
	} {
		t.Run(c.name, func(t *testing.T) {
			d := Look{}.Describe(t.Context(), c.facts)
			var text bytes.Buffer
			if err := d.Write(&text); err != nil || !c.check(d) || !strings.Contains(text.String(), c.text) {
				t.Errorf("%+v, %v\n%s", d, err, text.String())
			}
		})
	}
}

func TestRemove(t *testing.T) {
	h := header(t, Recovery, Manage, Passphrase)
	if got := Left(h, Ways{}); !slices.Equal(got, []string{"a recovery key", "a passphrase", "the manage key"}) {
		t.Errorf("Left() = %q", got)
	}
	for _, c := range []struct {
		remove []int
		want   error
	}{
		{[]int{0}, nil}, {[]int{0, 1}, nil}, {[]int{2}, nil},
		{[]int{0, 2}, luks2.ErrLastKeyslot}, {[]int{0, 1, 2}, luks2.ErrLastKeyslot},
		{[]int{7}, ErrNothing}, {[]int{0, 7}, ErrNothing}, {nil, ErrNothing},
	} {
		n, err := Remove(h, c.remove, Ways{})
		if !errors.Is(err, c.want) || err == nil && len(Keyslots(n))+len(c.remove) != 3 {
			t.Errorf("Remove(%v): %v, want %v", c.remove, err, c.want)
		}
	}
	// What nobody knows counts where PID 1 looks for a key file.
	for keyFile, want := range map[bool]error{false: luks2.ErrLastKeyslot, true: nil} {
		if _, err := Remove(header(t, Recovery, Unknown), []int{0}, Ways{KeyFile: keyFile}); !errors.Is(err, want) {
			t.Errorf("an unknown keyslot is left, key file %v: %v, want %v", keyFile, err, want)
		}
	}
}
