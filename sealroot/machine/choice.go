package machine

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"

	"sealroot/bounded"
	"sealroot/init/config"
	"sealroot/init/report"
	"sealroot/slots/live"
)

// maxConfig bounds what is read of a configuration, in bytes. It is more than
// config.MaxSize: a newer one may have more.
const maxConfig = 1 << 20

// firmware is what this machine's can do.
type firmware struct {
	efi  bool // it is UEFI
	vars bool // and its variables can be used
}

// chosen is how the slots of the running machine are kept and started: as the
// configuration of this boot says, with its defaults. A PID 1 that leaves none knew one store, and
// the way it was started tells the loader. Members of a newer configuration are
// ignored: PID 1 has accepted it.
func chosen(c config.Config, boot report.Report, fw firmware) live.Choice {
	byFirmware := boot.BootPath == report.PathUKI || boot.BootPath == report.PathUKISecureBoot
	choice := live.Choice{Store: string(c.Boot.Store), Loader: string(c.Boot.Loader), UEFI: fw.vars, Refill: refill(c)}
	choice.Discoverable = c.Root.Partitions == config.PartitionsDiscoverable
	if choice.Loader == "" && byFirmware {
		choice.Loader = live.LoaderUKI
	} else if choice.Loader == "" {
		choice.Loader = live.LoaderGRUB
	}
	// A kernel that a virtual machine loaded directly: the report knows neither
	// a slot it was loaded for nor a disk that a loader named.
	choice.Direct = !byFirmware && (boot.Slot.Loaded == "" || boot.Disk.FoundBy != report.FoundByLoader)
	if choice.Loader != live.LoaderGRUB && fw.efi && !fw.vars {
		choice.Direct = false // it was loaded from the disk, and nobody can say so
	}
	return choice
}

// refill is how many tries a commit gives; 0 without boot.recount.
func refill(c config.Config) int {
	if !c.Boot.Recount {
		return 0
	}
	return c.Boot.Tries
}

// readConfig is the zero value when there is no configuration, and without
// defaults where there is one.
func readConfig(path string) (config.Config, error) {
	text, err := bounded.ReadFile(path, maxConfig)
	if errors.Is(err, fs.ErrNotExist) {
		return config.Config{}, nil
	}
	var c config.Config
	if err == nil {
		err = json.Unmarshal(text, &c)
	}
	if err != nil {
		return config.Config{}, fmt.Errorf("cannot read the configuration %s: %w", path, err)
	}
	return c, nil
}
