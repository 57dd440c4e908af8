package modules

import (
	"errors"
	"slices"
	"testing"

	"sealroot/init/config"
)

func TestWatchdogNeedsDriver(t *testing.T) {
	const core = "kernel/drivers/watchdog/watchdog.ko:\nkernel/drivers/watchdog/pretimeout_noop.ko: kernel/drivers/watchdog/watchdog.ko\n"
	for _, tt := range []struct {
		name         string
		dep, builtin string
		add          []string
		off          bool
		want         error
	}{
		{"module", core + "kernel/drivers/watchdog/i6300esb.ko.xz: kernel/drivers/watchdog/watchdog.ko\n", "", nil, false, nil},
		{"built_in", core, "kernel/drivers/watchdog/iTCO_wdt.ko\n", nil, false, nil},
		{"named_by_the_builder", core + "kernel/drivers/watchdog/softdog.ko: kernel/drivers/watchdog/watchdog.ko\n", "", []string{"softdog"}, false, nil},
		{"softdog_only_by_name", core + "kernel/drivers/watchdog/softdog.ko: kernel/drivers/watchdog/watchdog.ko\n", "", nil, false, ErrNoModule},
		{"only_what_drivers_share", core, "", []string{"pretimeout_noop"}, false, ErrNoModule},
		{"none", "", "", nil, false, ErrNoModule},
		{"none_and_not_configured", "", "", nil, true, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			root := fakeTree(t, map[string]string{
				// what every initramfs needs
				"modules.dep":     tt.dep,
				"modules.builtin": tt.builtin + "a/dm-verity.ko\na/squashfs.ko\na/overlay.ko\na/loop.ko\na/dm-crypt.ko\na/ext4.ko\na/vfat.ko\n",
				"modules.alias":   "", "modules.softdep": "",
			})
			tr, err := Open(t.Context(), root, release, noDepmod)
			if err != nil {
				t.Fatal(err)
			}
			cfg := &config.Config{Modules: config.Modules{Add: tt.add}}
			if !tt.off {
				cfg.Boot.Watchdog.Seconds = 30
			}
			wants, err := For(cfg)
			if err != nil {
				t.Fatal(err)
			}
			list, err := tr.Closure(wants)
			if err != nil {
				t.Fatal(err)
			}
			if err := tr.CheckWatchdog(cfg, list); !errors.Is(err, tt.want) {
				t.Errorf("CheckWatchdog() = %v, want %v", err, tt.want)
			}
			if slices.Contains(names(list), "base:softdog") != slices.Contains(tt.add, "softdog") {
				t.Errorf("modules %v", names(list))
			}
		})
	}
}
