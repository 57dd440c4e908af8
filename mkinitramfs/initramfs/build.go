package initramfs

import (
	"bytes"
	"debug/buildinfo"
	"fmt"
	"slices"
	"strings"

	"sealroot/init/config"
)

// minimalTag is the build tag of an init that leaves out what many products do
// not use: the stores beside gpt, and systemd-boot.
const minimalTag = "minimal"

// checkBuild refuses a configuration that this init was built without; it would
// find out on the machine only. An init that does not say how it was built (not
// by the go command) is taken for a whole one.
func checkBuild(init []byte, c *config.Config) error {
	info, err := buildinfo.Read(bytes.NewReader(init))
	if err != nil {
		return nil
	}
	for _, s := range info.Settings {
		if s.Key == "-tags" && slices.Contains(strings.Split(s.Value, ","), minimalTag) {
			return checkMinimal(c)
		}
	}
	return nil
}

func checkMinimal(c *config.Config) error {
	refuse := func(key, value string) error {
		return fmt.Errorf("%w: this init is a minimal build, without boot.%s: %s; take one built without TAGS=%s", ErrInput, key, value, minimalTag)
	}
	if c.Boot.Store != config.StoreGPT {
		return refuse("store", string(c.Boot.Store))
	}
	if c.Boot.Loader == config.LoaderSystemdBoot {
		return refuse("loader", string(c.Boot.Loader))
	}
	return nil
}
