//go:build followslinks

package mount

const confined = 0
