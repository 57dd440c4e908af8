//go:build loud

package boot

const mutesSysRq = false
