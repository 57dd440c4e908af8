package yamlconfig

import (
	"strings"
	"testing"

	"sealroot/init/config"
)

func TestWatchdogKeys(t *testing.T) {
	with := func(watchdog string) (*config.Config, error) {
		return Parse("x.yaml", []byte(strings.Replace(read(t, "uki.yaml"), "  tries: 3", "  watchdog: "+watchdog, 1)))
	}
	c, err := with("{seconds: 30, handover: true, daemon: dog}")
	if want := (config.Watchdog{Seconds: 30, Handover: true, Daemon: "dog"}); err != nil || c.Boot.Watchdog != want {
		t.Errorf("Parse() = %+v, %v; want %+v", c, err, want)
	}
	for _, tt := range []struct{ name, watchdog, want string }{
		{"seconds_missing", "{handover: true}", "x.yaml: line 9: boot.watchdog.seconds: missing; choose 10 to 600"},
		{"daemon_without_handover", "{seconds: 30, daemon: dog}",
			"x.yaml: line 9: boot.watchdog.daemon: has nothing to feed: the watchdog is stopped at hand-over; set boot.watchdog.handover: true, or leave it out"},
		{"duration_for_seconds", "{seconds: 30s}", `x.yaml: line 9: boot.watchdog.seconds: "30s" is not a whole number`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			if c, err := with(tt.watchdog); err == nil || err.Error() != tt.want {
				t.Errorf("Parse() = %v, %v; want %s", c, err, tt.want)
			}
		})
	}
}
