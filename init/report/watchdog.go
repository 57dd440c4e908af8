package report

// Watchdog is the hardware watchdog that guarded this boot.
type Watchdog struct {
	Device   string `json:"device"` // e.g. /dev/watchdog0
	Identity string `json:"identity,omitempty"`
	Seconds  int    `json:"seconds"` // timeout that the driver took; 0 when it was left alone
	// HandedOver: it runs on, and the real init must feed it.
	HandedOver bool `json:"handed_over"`
	// NoWayOut: it cannot be stopped once it runs.
	NoWayOut bool `json:"nowayout"`
	// Fired: it ended what ran before this boot.
	Fired bool `json:"fired,omitempty"`
}
