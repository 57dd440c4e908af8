package efi

import (
	"errors"
	"io/fs"
	"slices"
	"strings"
)

// resetVendor is systemd's vendor of the variable FactoryReset, a boolean in UTF-16
// (systemd 255, systemd-repart(8)).
const resetVendor = "8cf2644b-4b0b-428f-9387-6d876050dc67"

// TakeFactoryReset tells whether the variable FactoryReset asks for a factory reset,
// and deletes it: it asks once. Anybody can have set it.
func TakeFactoryReset(v Vars) (asked bool, err error) {
	text, err := readText(v, "FactoryReset", resetVendor)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if errors.Is(err, ErrFormat) {
		text, err = "", nil
	}
	if err == nil {
		err = v.Delete("FactoryReset", resetVendor)
	}
	if err != nil {
		return false, err
	}
	return slices.Contains([]string{"1", "yes", "y", "true", "t", "on"}, strings.ToLower(text)), nil
}
