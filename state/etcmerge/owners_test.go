package etcmerge

import (
	"maps"
	"testing"
)

func TestOwners(t *testing.T) {
	image := lines("root:x:0:0::/:", "moved:x:103:1::/:", "same:x:104:1::/:", "away:x:105:1::/:", "# no entry", "+nis:x:106:1::/:", "none:x:word:1::/:", "second:x:104:1::/:")
	merged := lines("root:x:0:0::/:", "collector:x:103:1::/:", "moved:x:999:1::/:", "same:x:104:1::/:", "second:x:120:1::/:", "human:x:105:1::/:")
	if got, want := Owners(image, merged), (map[uint32]uint32{103: 999, 105: 0}); !maps.Equal(got, want) {
		t.Errorf("owners %v, want %v", got, want)
	}
	if got := Owners(image, image); len(got) > 0 {
		t.Errorf("owners of a file that was not changed: %v", got)
	}
}
