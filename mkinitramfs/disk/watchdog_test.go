package disk

import (
	"archive/tar"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"sealroot/init/config"
	"sealroot/mkinitramfs/modules"
)

func TestRootFeedsWatchdog(t *testing.T) {
	const (
		main   = "etc/systemd/system.conf"
		etc    = "etc/systemd/system.conf.d/"
		usr    = "usr/lib/systemd/system.conf.d/"
		feeds  = "[Manager]\nRuntimeWatchdogSec=30s\n"
		off    = "[Manager]\nRuntimeWatchdogSec=off\n"
		units  = "usr/lib/systemd/system/"
		wants  = "etc/systemd/system/multi-user.target.wants/"
		daemon = "[Service]\nExecStart=/usr/sbin/watchdog\n"
	)
	null := func(name string) entry { return entry{name: name, kind: tar.TypeSymlink, link: "/dev/null"} }
	link := func(name string) entry { return entry{name: name, kind: tar.TypeSymlink, link: "../watchdog.service"} }
	for _, tt := range []struct {
		name   string
		daemon string
		root   []entry
		want   error
	}{
		{"nothing", "", nil, ErrUnfed},
		{"debian", "", []entry{{name: main, content: "[Manager]\n#RuntimeWatchdogSec=off\n#WatchdogDevice=\n"}}, ErrUnfed},
		{"main_file", "", []entry{{name: main, content: feeds}}, nil},
		{"main_file_of_a_tar_with_dots", "", []entry{{name: "./" + main, content: feeds}}, nil},
		{"main_file_in_usr_is_not_read_by_all", "", []entry{{name: "usr/lib/systemd/system.conf", content: feeds}}, ErrUnfed},
		{"drop_in_of_the_vendor", "", []entry{{name: usr + "w.conf", content: feeds}}, nil},
		{"drop_in_of_a_root_without_merged_usr", "", []entry{{name: "lib/systemd/system.conf.d/w.conf", content: feeds}}, nil},
		{"drop_in_wins_over_main_file", "", []entry{{name: main, content: feeds}, {name: usr + "w.conf", content: off}}, ErrUnfed},
		{"last_drop_in_by_name_wins", "", []entry{{name: etc + "10.conf", content: off}, {name: usr + "20.conf", content: feeds}}, nil},
		{"last_drop_in_by_name_wins_and_is_off", "", []entry{{name: etc + "10.conf", content: feeds}, {name: usr + "20.conf", content: off}}, ErrUnfed},
		{"same_name_in_etc_hides_usr", "", []entry{{name: etc + "w.conf", content: off}, {name: usr + "w.conf", content: feeds}}, ErrUnfed},
		{"masked_drop_in", "", []entry{null(etc + "w.conf"), {name: usr + "w.conf", content: feeds}}, ErrUnfed},
		{"last_line_wins", "", []entry{{name: main, content: feeds + "RuntimeWatchdogSec=0\n"}}, ErrUnfed},
		{"empty_value_is_off", "", []entry{{name: main, content: feeds + "RuntimeWatchdogSec=\n"}}, ErrUnfed},
		{"default_time", "", []entry{{name: main, content: "[Manager]\nRuntimeWatchdogSec=default\n"}}, nil},
		{"other_section", "", []entry{{name: main, content: "[Other]\nRuntimeWatchdogSec=30s\n"}}, ErrUnfed},
		{"comment_inside_a_line", "", []entry{{name: main, content: "[Manager]\nRuntimeWatchdogSec=\\\n; why\n 1min 30s\n"}}, nil},
		{"part_of_another_line", "", []entry{{name: main, content: "[Manager]\nDefaultEnvironment=A=1 \\\nRuntimeWatchdogSec=30s\n"}}, ErrUnfed},
		{"other_file", "", []entry{{name: usr + "w.conf.dpkg-old", content: feeds}, {name: "etc/systemd/user.conf", content: feeds}}, ErrUnfed},
		{"no_time", "", []entry{{name: main, content: "[Manager]\nRuntimeWatchdogSec=often\n"}}, errTimeSpan},
		{"other_device", "", []entry{{name: main, content: feeds + "WatchdogDevice=/dev/watchdog1\n"}}, ErrUnfed},
		{"first_device_by_name", "", []entry{{name: main, content: feeds + "WatchdogDevice=/dev/watchdog0\n"}}, nil},
		{"file_too_long", "", []entry{{name: main, content: strings.Repeat("#", maxSmallFile+1)}}, ErrRoot},

		{"daemon_enabled", "watchdog", []entry{{name: units + "watchdog.service", content: daemon}, link(wants + "watchdog.service")}, nil},
		{"daemon_with_suffix", "watchdog.service", []entry{{name: units + "watchdog.service", content: daemon}, link(wants + "watchdog.service")}, nil},
		{"daemon_of_a_template", "dog@0", []entry{{name: units + "dog@.service", content: daemon}, link(wants + "dog@0.service")}, nil},
		{"daemon_not_enabled", "watchdog", []entry{{name: units + "watchdog.service", content: daemon}}, ErrUnfed},
		{"daemon_not_there", "watchdog", []entry{link(wants + "watchdog.service")}, ErrUnfed},
		{"daemon_masked", "watchdog", []entry{null("etc/systemd/system/watchdog.service"), {name: units + "watchdog.service", content: daemon}, link(wants + "watchdog.service")}, ErrUnfed},
		{"daemon_kept_from_being_wanted", "watchdog", []entry{{name: units + "watchdog.service", content: daemon}, null(wants + "watchdog.service")}, ErrUnfed},
		{"another_daemon", "watchdog", []entry{{name: units + "x.service", content: daemon}, link(wants + "x.service")}, ErrUnfed},
		{"daemon_of_users", "watchdog", []entry{{name: "usr/lib/systemd/user/watchdog.service", content: daemon}, link(wants + "watchdog.service")}, ErrUnfed},
		{"daemon_is_named_and_systemd_feeds", "watchdog", []entry{{name: main, content: feeds}}, ErrUnfed},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := config.Watchdog{Seconds: 30, Handover: true, Daemon: tt.daemon}
			text := tarOf(t, tt.root)
			path := filepath.Join(t.TempDir(), "root.tar")
			if err := os.WriteFile(path, text, 0o600); err != nil {
				t.Fatal(err)
			}
			if err := CheckWatchdog(&config.Config{Boot: config.Boot{Watchdog: w}}, path); !errors.Is(err, tt.want) {
				t.Errorf("CheckWatchdog() = %v, want %v", err, tt.want)
			}
			// The same while the image is made, and the image gets it all.
			var image strings.Builder
			both, verdict := whileWriting(&image, w, false)
			if _, err := both.Write(text); err != nil {
				t.Fatal(err)
			}
			if err := verdict(); !errors.Is(err, tt.want) || image.String() != string(text) {
				t.Errorf("whileWriting() = %v with %d of %d bytes, want %v", err, image.Len(), len(text), tt.want)
			}
		})
	}
}

// A build looks at the root with what is laid over it, and wants a driver.
func TestBuildChecksWatchdog(t *testing.T) {
	for _, tt := range []struct {
		name string
		fed  bool
		want error
	}{
		{"nothing_feeds_it", false, ErrUnfed},
		{"extra_files_feed_it_and_the_kernel_has_no_driver", true, modules.ErrNoModule},
	} {
		t.Run(tt.name, func(t *testing.T) {
			b, in := builder(t)
			in.Config.Boot.Watchdog = config.Watchdog{Seconds: 30, Handover: true}
			if tt.fed {
				in.Extra = t.TempDir()
				dir := filepath.Join(in.Extra, "usr/lib/systemd/system.conf.d")
				if err := os.MkdirAll(dir, 0o755); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(filepath.Join(dir, "w.conf"), []byte("[Manager]\nRuntimeWatchdogSec=30s\n"), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			if _, err := b.buildParts(t.Context(), in, t.TempDir()); !errors.Is(err, tt.want) {
				t.Errorf("buildParts() = %v, want %v", err, tt.want)
			}
		})
	}
}

// Without handover nothing is asked of the root.
func TestWatchdogOfTheBootAloneNeedsNobody(t *testing.T) {
	w := config.Watchdog{Seconds: 30}
	c := &config.Config{Boot: config.Boot{Watchdog: w}}
	if err := CheckWatchdog(c, ""); err != nil {
		t.Errorf("CheckWatchdog() = %v", err)
	}
	c.Boot.Watchdog.Handover = true
	if err := CheckWatchdog(c, ""); !errors.Is(err, ErrUnfed) {
		t.Errorf("CheckWatchdog() with handover and without a root = %v, want %v", err, ErrUnfed)
	}
	both, verdict := whileWriting(io.Discard, w, false)
	if err := verdict(); err != nil || both != io.Discard {
		t.Errorf("whileWriting() = %v, want the writer as it was", err)
	}
}

// A tar that breaks off is an error, never a verdict, and nobody waits for ever.
func TestWatchdogInTruncatedTar(t *testing.T) {
	text := tarOf(t, []entry{{name: "etc/systemd/system.conf", content: "[Manager]\nRuntimeWatchdogSec=30s\n"}})
	both, verdict := whileWriting(io.Discard, config.Watchdog{Seconds: 30, Handover: true}, false)
	if _, err := both.Write(text[:530]); err != nil {
		t.Fatal(err)
	}
	if err := verdict(); err == nil || errors.Is(err, ErrUnfed) {
		t.Errorf("verdict() = %v, want another error", err)
	}
}

func TestWatchdogTime(t *testing.T) {
	for _, tt := range []struct {
		value string
		feeds bool
		ok    bool
	}{
		{"", false, true}, {"off", false, true}, {"default", true, true}, {"0", false, true}, {"0s", false, true}, {"0min 0s", false, true},
		{"0.0s", false, true}, {"30", true, true}, {"30s", true, true}, {"30 s", true, true}, {"1min 30s", true, true}, {"1min30s", true, true}, {"0min 1", true, true},
		{"500ms", true, true}, {".5s", true, true}, {"2 weeks", true, true}, {"1M", true, true},
		{"s", false, false}, {"-1", false, false}, {"30x", false, false}, {"1..5s", false, false}, {"infinity", false, false}, {".", false, false}, {"no", false, false}, {"30s,", false, false},
	} {
		feeds, err := watchdogTime(tt.value)
		if feeds != tt.feeds || (err == nil) != tt.ok {
			t.Errorf("watchdogTime(%q) = %v, %v; want %v, ok %v", tt.value, feeds, err, tt.feeds, tt.ok)
		}
	}
}

// FuzzManagerSettings holds that no text makes the reader panic or find more
// settings than lines, and that what is no time feeds nothing.
func FuzzManagerSettings(f *testing.F) {
	f.Add("[Manager]\nRuntimeWatchdogSec=1min 30s\n")
	f.Add("[Manager]\nA=\\\n#x\nB=1\n[X]\nC=2")
	f.Fuzz(func(t *testing.T, text string) {
		list := managerSettings(text)
		if len(list) > strings.Count(text, "\n")+1 {
			t.Fatalf("%d settings", len(list))
		}
		for _, s := range list {
			if feeds, err := watchdogTime(s.value); err != nil && feeds {
				t.Errorf("watchdogTime(%q) feeds with an error", s.value)
			}
		}
	})
}
