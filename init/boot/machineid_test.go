package boot

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"sealroot/init/config"
	"sealroot/init/report"
	"sealroot/mount"
	"sealroot/mount/child"
	"sealroot/state"
	"sealroot/state/layout"
)

// A machine has one identity for all its boots, whatever /etc is, where the volume can
// keep it; and where /etc keeps it by itself PID 1 has no hand in it.
func TestMachineID(t *testing.T) {
	const ids, other = "0123456789abcdef0123456789abcdef\n", "fedcba9876543210fedcba9876543210\n"
	image := func(id string) func(m aMachine) {
		return func(m aMachine) { m.step(os.WriteFile("/images/1/etc/machine-id", []byte(id), 0o444)) }
	}
	volume := func(path, id string) func(m aMachine) {
		return func(m aMachine) {
			m.step(os.MkdirAll(filepath.Dir("/volume/"+path), 0o700))
			m.step(os.WriteFile("/volume/"+path, []byte(id), 0o644))
		}
	}
	both := func(steps ...func(m aMachine)) func(m aMachine) {
		return func(m aMachine) {
			for _, step := range steps {
				step(m)
			}
		}
	}
	link := func(m aMachine) {
		m.step(os.MkdirAll("/volume/"+layout.Private, 0o700))
		m.step(os.Symlink("/outside", "/volume/"+layout.MachineID))
	}
	for _, tt := range []struct {
		name     string
		before   func(m aMachine)
		mode     config.EtcMode
		unlocked string
		readOnly bool   // the volume
		want     string // "": one of its own
		same     bool   // at the next boot
	}{
		{"read_only", image(""), config.EtcReadOnly, report.UnlockedTPM2, false, "", true},
		{"volatile", image(""), config.EtcVolatile, report.UnlockedTPM2, false, "", true},
		{"plain", image(""), config.EtcVolatile, report.UnlockedPlain, false, "", true},
		{"of_an_image_before", volume(layout.Etc+"/machine-id", ids), config.EtcReadOnly, report.UnlockedTPM2, false, ids, true},
		{"of_the_volume", volume(layout.MachineID, ids), config.EtcVolatile, report.UnlockedTPM2, true, ids, true},
		{"of_the_image", image(other), config.EtcReadOnly, report.UnlockedTPM2, false, other, true},
		{"no_id_in_the_image", image("uninitialized\n"), config.EtcVolatile, report.UnlockedTPM2, false, "", true},
		{"no_id_in_the_volume", volume(layout.MachineID, strings.Repeat("0", 32)+"\n"), config.EtcVolatile, report.UnlockedTPM2, false, "", true},
		{"too_long", volume(layout.MachineID, ids+ids), config.EtcReadOnly, report.UnlockedTPM2, false, "", true},
		{"a_link", link, config.EtcReadOnly, report.UnlockedTPM2, false, "", true},
		{"nothing_can_be_kept", image(""), config.EtcVolatile, report.UnlockedTPM2, true, "", false},
		{"degraded", image("uninitialized\n"), config.EtcOverlay, report.UnlockedDegraded, false, "", false},
		{"no_state", image(""), config.EtcOverlay, report.UnlockedNone, false, "", false},
		{"kept_by_etc", image("uninitialized\n"), config.EtcOverlay, report.UnlockedTPM2, false, "uninitialized\n", true},
		{"of_an_image_that_could_not_keep_it", both(image("uninitialized\n"), volume(layout.MachineID, ids)), config.EtcOverlay, report.UnlockedTPM2, false, ids, true},
		{"the_same_without_one_in_the_image", both(func(m aMachine) { m.step(os.Remove("/images/1/etc/machine-id")) }, volume(layout.MachineID, ids)), config.EtcOverlay, report.UnlockedTPM2, false, ids, true},
		{"the_same_behind_a_cut", both(image("uninitialized\n"), volume(layout.MachineID, ids), volume(layout.Etc+"/machine-id"+layout.PendingSuffix, ids[:5])), config.EtcOverlay, report.UnlockedTPM2, false, ids, true},
		{"the_same_in_memory", both(image("uninitialized\n"), volume(layout.Etc+"/x", ""), volume(layout.MachineID, ids)), config.EtcOverlay, report.UnlockedTPM2, true, ids, true},
		{"the_image's_before_that", both(image(other), volume(layout.MachineID, ids)), config.EtcOverlay, report.UnlockedTPM2, false, other, true},
		{"root_begins_anew", both(volume(layout.MachineID, ids), volume(layout.Etc+"/machine-id", "uninitialized\n")), config.EtcOverlay, report.UnlockedTPM2, false, "uninitialized\n", true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			inOwnRoot(t, func(t *testing.T) {
				m := aMachine{t: t}
				m.image("1", nil)
				m.step(os.WriteFile("/outside", []byte(other), 0o644))
				m.step(os.MkdirAll("/volume", 0o755))
				tt.before(m)
				var got [2]string
				for i := range got {
					volume := "/volume"
					if tt.unlocked == report.UnlockedDegraded || tt.unlocked == report.UnlockedNone {
						volume = "/memory" + strconv.Itoa(i)
						m.step(os.MkdirAll(volume, 0o755))
					}
					m.step(os.MkdirAll(newRoot, 0o755))
					m.step(unix.Mount("/images/1", newRoot, "", unix.MS_BIND, ""))
					m.step(unix.Mount("", newRoot, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, ""))
					m.step(unix.Mount("outer", stateDir, "tmpfs", 0, "mode=0755"))
					m.step(os.Mkdir(encryptedDir, 0o755))
					m.step(unix.Mount(volume, encryptedDir, "", unix.MS_BIND, ""))
					b, _ := testBoot(&person{}, config.State{Create: config.CreateFirstBoot})
					b.sys.Mounter = mount.Kernel{}
					b.sys.RunProgram = func(context.Context, string, ...string) (child.Result, error) { return child.Result{}, fs.ErrNotExist }
					b.cfg.Etc = tt.mode
					b.report.Slot.Name, b.report.Root.RootHash, b.report.State.Unlocked = "a", "1", tt.unlocked
					b.report.Degraded = tt.unlocked == report.UnlockedDegraded
					if tt.readOnly {
						for _, name := range []string{"home", "var"} {
							m.step(os.MkdirAll("/volume/"+name, 0o755))
						}
						b.volume.volume = &state.Volume{ReadOnly: errors.New("for this test")}
						m.step(unix.Mount("", encryptedDir, "", unix.MS_BIND|unix.MS_REMOUNT|unix.MS_RDONLY, ""))
					}
					m.step(b.assemble(t.Context()))
					for _, w := range b.report.Warnings {
						if strings.Contains(w, "machine-id") {
							t.Errorf("warns %q", w)
						}
					}
					text, err := os.ReadFile(newRoot + "/etc/machine-id")
					m.step(err)
					got[i] = string(text)
					if info, err := os.Stat(newRoot + "/etc/machine-id"); err != nil || info.Mode().Perm()&0o466 != 0o444 {
						t.Errorf("%v, %v", info.Mode(), err)
					}
					if _, err := os.Lstat(newRoot + "/etc/machine-id" + layout.PendingSuffix); !errors.Is(err, fs.ErrNotExist) {
						t.Errorf("something is left of it: %v", err)
					}
					m.off()
				}
				if tt.want != "" && got[0] != tt.want || tt.want == "" && !regexp.MustCompile(`^[0-9a-f]{12}4[0-9a-f]{3}[89ab][0-9a-f]{15}\n$`).MatchString(got[0]) || got[0] == other && tt.want != other {
					t.Errorf("got %q, want %q", got[0], tt.want)
				}
				if same := got[0] == got[1]; same != tt.same {
					t.Errorf("boots have %q", got)
				}
				if text, err := os.ReadFile("/outside"); err != nil || string(text) != other {
					t.Errorf("what a link leads to is %q, %v", text, err)
				}
			})
		})
	}
}
