package cmdline

import (
	"errors"
	"fmt"
	"strings"
)

// ErrHint: a word that names a partition cannot be used; the text says why.
var ErrHint = errors.New("unusable name of a partition")

// Partitions reads which partitions a builder's own line names for the data and the
// hash tree of the image: systemd.verity_root_data= and systemd.verity_root_hash= of
// systemd-veritysetup-generator(8), or those for usr. They come back as
// PARTUUID=<lower case> or PARTLABEL=<label>, "" when not given. Other forms, and the
// words for what role does not say, are ErrHint. PID 1 does not link it.
func Partitions(line, role string) (data, hash string, err error) {
	for _, w := range split(line) {
		rest, ok := strings.CutPrefix(w.name, "systemd.verity_")
		if !ok || w.afterDashes {
			continue
		}
		to := map[string]*string{role + "_data": &data, role + "_hash": &hash}[rest]
		if to == nil {
			return "", "", fmt.Errorf("%w: %s is not for an image of the role %s", ErrHint, w.printable(), role)
		}
		name := partitionName(w.value)
		if name == "" || *to != "" && *to != name {
			return "", "", fmt.Errorf("%w: %s; name one by PARTUUID= or PARTLABEL=", ErrHint, w.printable())
		}
		*to = name
	}
	return data, hash, nil
}

func partitionName(value string) string {
	for _, form := range []struct{ before, as string }{
		{"PARTUUID=", "PARTUUID="}, {"/dev/disk/by-partuuid/", "PARTUUID="},
		{"PARTLABEL=", "PARTLABEL="}, {"/dev/disk/by-partlabel/", "PARTLABEL="},
	} {
		rest, ok := strings.CutPrefix(value, form.before)
		switch {
		case !ok:
		case form.as == "PARTUUID=" && isUUID(strings.ToLower(rest)):
			return form.as + strings.ToLower(rest)
		case form.as == "PARTLABEL=" && rest != "" && !strings.ContainsAny(rest, `/\`):
			return form.as + rest
		}
	}
	return ""
}
