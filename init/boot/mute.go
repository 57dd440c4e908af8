//go:build !loud

package boot

// mutesSysRq is the defence that keeps the kernel's SysRq keys from whoever is
// before the machine. The build tag "loud" turns it off for the one test that
// shows what then happens; no product is built with it.
const mutesSysRq = true
