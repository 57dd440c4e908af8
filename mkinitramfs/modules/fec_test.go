package modules

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"sealroot/init/config"
)

func TestFECNeedsReedSolomon(t *testing.T) {
	const others = "a/squashfs.ko\na/overlay.ko\na/loop.ko\na/dm-crypt.ko\na/ext4.ko\na/vfat.ko\n"
	for _, tt := range []struct {
		name         string
		dep, builtin string
		roots        int
		want         error
	}{
		{"module", "a/dm-verity.ko: a/reed_solomon.ko\na/reed_solomon.ko:\n", "", 2, nil},
		{"reed_solomon_built_in", "a/dm-verity.ko:\n", "a/reed_solomon.ko\n", 2, nil},
		{"all_built_in", "", "a/dm-verity.ko\n", 2, nil},
		{"built_without", "a/dm-verity.ko:\n", "", 2, ErrNoModule},
		{"not_asked_for", "a/dm-verity.ko:\n", "", 0, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			root := fakeTree(t, map[string]string{
				"modules.dep": tt.dep, "modules.builtin": others + tt.builtin, "modules.alias": "", "modules.softdep": "",
			})
			tr, err := Open(t.Context(), root, release, noDepmod)
			if err != nil {
				t.Fatal(err)
			}
			cfg := &config.Config{Root: config.Root{Verity: config.Verity{FECRoots: tt.roots}}}
			if err := tr.CheckFEC(cfg); !errors.Is(err, tt.want) {
				t.Errorf("CheckFEC() = %v, want %v", err, tt.want)
			}
		})
	}
}

// Nobody loads a hash on demand in an initramfs.
func TestSHA512IsLoaded(t *testing.T) {
	for _, cfg := range []config.Config{
		{Root: config.Root{Verity: config.Verity{Algorithm: "sha512"}}},
		{Layers: []config.Layer{{Name: "tools", Hash: strings.Repeat("0a", 64)}}},
	} {
		wants, err := For(&cfg)
		if err != nil || !slices.ContainsFunc(wants, func(w Want) bool { return w.Name == "sha512_generic" }) {
			t.Errorf("For(%+v) = %v, %v; want sha512_generic among them", cfg, wants, err)
		}
	}
	of256 := config.Config{Layers: []config.Layer{{Name: "tools", Hash: strings.Repeat("0a", 32)}}}
	if wants, err := For(&of256); err != nil || slices.ContainsFunc(wants, func(w Want) bool { return w.Name == "sha512_generic" }) {
		t.Errorf("For() = %v, %v; want no sha512_generic", wants, err)
	}
}
