package boot

import (
	"context"
	"io/fs"
	"os"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"sealroot/init/config"
	"sealroot/init/report"
	"sealroot/mount"
	"sealroot/mount/child"
	"sealroot/sealroot/explain"
)

// What `sealroot explain` plans for an image is what PID 1 mounts: places, types and flags,
// but for what the state decides.
func TestPlanIsWhatIsMounted(t *testing.T) {
	for _, mode := range []config.EtcMode{config.EtcOverlay, config.EtcVolatile, config.EtcReadOnly} {
		t.Run(string(mode), func(t *testing.T) {
			inOwnRoot(t, func(t *testing.T) {
				m := aMachine{t: t}
				m.image("1", map[string]string{"srv/pool/x": "1", "mnt/x": "1", "var/lib/pkg/x": "1", "var/lib/app/x": "1", "var/log/app/x": "1", "data/x": "1", "scratch/x": "1"})
				for _, dir := range []string{newRoot, "/volume"} {
					m.step(os.MkdirAll(dir, 0o755))
				}
				m.step(unix.Mount("/images/1", newRoot, "", unix.MS_BIND, ""))
				m.step(unix.Mount("outer", stateDir, "tmpfs", 0, "mode=0755"))
				for _, dir := range []string{"encrypted", "srv-pool", "var-log-app", "home"} {
					m.step(os.Mkdir(stateDir+"/"+dir, 0o755))
				}
				m.step(unix.Mount("/volume", encryptedDir, "", unix.MS_BIND, ""))
				b, _ := testBoot(&person{}, config.State{Create: config.CreateFirstBoot})
				b.sys.Mounter = mount.Kernel{}
				b.sys.RunProgram = func(context.Context, string, ...string) (child.Result, error) { return child.Result{}, fs.ErrNotExist }
				b.cfg.Etc = mode
				b.cfg.Binds = config.Binds{Unencrypted: []string{"/srv/pool", "/var/log/app"}, Extra: []config.ExtraBind{
					{From: "encrypted/db", To: "/data", Options: []string{"nosuid", "noexec"}},
					{From: "pool", To: "/srv/pool", Options: []string{"ro"}},
					{From: "encrypted/app", To: "/var/lib/app", Seed: config.SeedOverlay, Options: []string{"nosymfollow"}},
				}}
				b.cfg.Binds.Tmpfs = []config.Tmpfs{{To: "/scratch", SizeMiB: 8, Options: []string{"noexec"}}, {To: "/var/cache/x", Mode: "1777"}}
				b.cfg.Overlays = []config.Overlay{{Path: "/opt", Upper: config.UpperEncrypted}, {Path: "/mnt", Upper: config.UpperMemory},
					{Path: "/usr/local", Upper: config.UpperEncrypted}, {Path: "/var/lib/pkg", Upper: config.UpperPerSlot}}
				b.report.Slot.Name, b.report.Root.RootHash, b.report.State.Unlocked = "a", "1", report.UnlockedTPM2
				outer, err := openDir(stateDir)
				m.step(err)
				defer outer.Close()
				b.volume.outer = outer
				m.step(b.assemble(t.Context()))
				line := func(where, kind string, options []string) string {
					options = slices.DeleteFunc(slices.Sorted(slices.Values(options)), func(o string) bool { return strings.Contains(o, "=") }) // of the file system
					return where + " " + kind + " " + strings.Join(options, ",")
				}
				var mounted, planned []string
				for _, m := range b.report.Mounts {
					mounted = append(mounted, line(m.Where, m.Type, m.Options))
				}
				for _, m := range explain.Plan("a", *b.cfg).Mounts {
					if !slices.Contains([]string{"/", "/state", "/state/encrypted"}, m.Where) { // mounted before
						planned = append(planned, line(m.Where, m.Type, m.Options))
					}
				}
				slices.Sort(mounted)
				slices.Sort(planned)
				if !slices.Equal(mounted, planned) || len(mounted) < 10 {
					t.Errorf("mounted\n%s\nplanned\n%s\nwarnings %q", strings.Join(mounted, "\n"), strings.Join(planned, "\n"), b.report.Warnings)
				}
				outer.Close()
				m.off()
			})
		})
	}
}
