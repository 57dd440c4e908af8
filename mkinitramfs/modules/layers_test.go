package modules

import (
	"errors"
	"strings"
	"testing"

	"sealroot/init/config"
)

func TestLayersNeedTheirFileSystems(t *testing.T) {
	for _, tt := range []struct {
		name    string
		builtin string
		layer   config.Layer
		want    error
	}{
		{"module", "", config.Layer{Name: "tools", Filesystem: "squashfs"}, nil},
		{"of_the_root", "", config.Layer{Name: "tools"}, nil},
		{"built_in", "a/erofs.ko\n", config.Layer{Name: "tools", Filesystem: "erofs"}, nil},
		{"none", "", config.Layer{Name: "tools", Filesystem: "erofs"}, ErrNoModule},
		{"a_directory_has_none", "", config.Layer{Name: "tools", From: config.LayerFromVolume, Filesystem: "erofs"}, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			root := fakeTree(t, map[string]string{
				"modules.dep": "a/squashfs.ko:\n", "modules.builtin": tt.builtin, "modules.alias": "", "modules.softdep": "",
			})
			tr, err := Open(t.Context(), root, release, noDepmod)
			if err != nil {
				t.Fatal(err)
			}
			err = tr.CheckLayers(&config.Config{Layers: []config.Layer{tt.layer}})
			if !errors.Is(err, tt.want) || err != nil && !strings.Contains(err.Error(), "layer tools") {
				t.Errorf("CheckLayers() = %v, want %v and its name", err, tt.want)
			}
		})
	}
}
