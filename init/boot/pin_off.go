//go:build unpinned

package boot

const pinsVolume = false
