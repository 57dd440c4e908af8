//go:build uncapped

package boot

const capsPCRs = false
