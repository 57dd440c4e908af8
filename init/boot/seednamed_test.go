package boot

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"sealroot/init/config"
)

// A directory that somebody made in the volume, for a place at which the image has
// something, begins with that. It is filled once, and what it holds is the machine's;
// where nothing of the image's is hidden nothing is done. One that cannot be filled
// is not bound.
func TestSeedNamed(t *testing.T) {
	inRoot(t, "seed", func(t *testing.T) {
		for _, dir := range []string{"opt", "usr/local/share", "srv", "var/lib/x", "home/me", "my", "root"} {
			put(t, filepath.Join(newRoot, dir, "of-image"), []byte("image\n"))
		}
		for _, dir := range []string{"opt", "usrlocal", "srv", "var-lib-x", "home", "my-data", "root", "etc"} {
			if err := mkdirs(filepath.Join(encryptedDir, dir)); err != nil {
				t.Fatal(err)
			}
		}
		put(t, encryptedDir+"/srv/mine", []byte("machine\n"))
		b, _ := testBoot(&person{}, config.State{})
		b.cfg.Binds.Extra = []config.ExtraBind{{From: "encrypted/root", To: "/mnt/root"}}
		fill := func() []string {
			volume, err := openDir(encryptedDir)
			if err != nil {
				t.Fatal(err)
			}
			defer volume.Close()
			return b.seedNamed(volume)
		}
		if unfilled := fill(); len(unfilled) > 0 || len(b.report.Warnings) > 0 {
			t.Errorf("not filled %q, warnings %q", unfilled, b.report.Warnings)
		}
		var holds []string
		err := filepath.WalkDir(encryptedDir, func(path string, d os.DirEntry, err error) error {
			if err == nil && !d.IsDir() {
				holds = append(holds, strings.TrimPrefix(path, encryptedDir+"/"))
			}
			return err
		})
		if want := []string{"opt/of-image", "srv/mine", "usrlocal/share/of-image"}; err != nil || !slices.Equal(holds, want) {
			t.Errorf("the volume holds %q, %v; want %q", holds, err, want)
		}
		if err := os.Rename(encryptedDir+"/opt/of-image", encryptedDir+"/opt/renamed"); err != nil {
			t.Fatal(err)
		}
		if fill(); len(b.report.Warnings) > 0 {
			t.Errorf("warnings %q", b.report.Warnings)
		}
		if _, err := os.Stat(encryptedDir + "/opt/of-image"); err == nil {
			t.Error("what the machine renamed came back")
		}

		deep := newRoot + "/late" + strings.Repeat("/d", 300)
		if err := mkdirs(deep, encryptedDir+"/late"); err != nil {
			t.Fatal(err)
		}
		if unfilled := fill(); !slices.Equal(unfilled, []string{"late"}) || len(b.report.Warnings) != 1 || !strings.HasPrefix(b.report.Warnings[0], "/late is not bound: cannot seed late: ") {
			t.Errorf("not filled %q, warnings %q", unfilled, b.report.Warnings)
		}
		m := &binder{}
		b.sys.Mounter = m
		volume, err := openDir(encryptedDir)
		if err != nil {
			t.Fatal(err)
		}
		defer volume.Close()
		if err := b.bindAll(volume, encryptedDir, nil, nil, []string{"late"}); err != nil || slices.Contains(m.to, "/late") || !slices.Contains(m.to, "/opt") {
			t.Errorf("bound are %q, %v", m.to, err)
		}
	})
}
