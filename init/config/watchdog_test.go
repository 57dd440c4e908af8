package config

import "testing"

func TestValidateWatchdog(t *testing.T) {
	const seconds, daemon = "boot.watchdog.seconds", "boot.watchdog.daemon"
	set := func(w Watchdog) func(*Config) { return func(c *Config) { c.Boot.Watchdog = w } }
	check(t, goodUKI, []row{
		{"off", set(Watchdog{}), nil},
		{"only_this_boot", set(Watchdog{Seconds: 30}), nil},
		{"handed_over_to_init", set(Watchdog{Seconds: 30, Handover: true}), nil},
		{"handed_over_to_daemon", set(Watchdog{Seconds: 30, Handover: true, Daemon: "watchdog.service"}), nil},
		{"seconds_missing", set(Watchdog{Handover: true}), []string{seconds}},
		{"seconds_negative", set(Watchdog{Seconds: -1}), []string{seconds}},
		{"seconds_shorter_than_a_boot_can_feed", set(Watchdog{Seconds: 9}), []string{seconds}},
		{"seconds_longest", set(Watchdog{Seconds: 600}), nil},
		{"seconds_longer_than_drivers_take", set(Watchdog{Seconds: 601}), []string{seconds}},
		{"daemon_with_nothing_to_feed", set(Watchdog{Seconds: 30, Daemon: "watchdog"}), []string{daemon}},
		{"daemon_alone", set(Watchdog{Daemon: "watchdog"}), []string{seconds, daemon}},
		{"daemon_as_path", set(Watchdog{Seconds: 30, Handover: true, Daemon: "../x"}), []string{daemon}},
		{"daemon_hidden", set(Watchdog{Seconds: 30, Handover: true, Daemon: "..service"}), []string{daemon}},
	})
}
