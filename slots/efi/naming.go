package efi

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"sealroot/slots/guid"
)

// EntryNaming returns the first boot entry that names the partition, "" for
// none. The bytes of its GUID are looked for: device paths of firmware and of
// installers have more forms than ParseLoadOption reads, and an entry too many
// does no harm.
func EntryNaming(v Vars, partition guid.GUID) (name string, err error) {
	names, err := v.List(Global)
	if err != nil {
		return "", fmt.Errorf("cannot list the boot entries: %w", err)
	}
	for _, name := range names {
		if _, ok := bootNumber(name); !ok {
			continue
		}
		b, err := v.Read(name, Global)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return "", fmt.Errorf("cannot read %s: %w", name, err)
		}
		if strings.Contains(string(b), string(partition[:])) {
			return name, nil
		}
	}
	return "", nil
}
