package disk

import (
	"archive/tar"
	"errors"
	"fmt"
	"io"
	"path"
	"slices"
	"strings"

	"sealroot/init/config"
)

// ErrUnfed means that nothing in a root would feed the watchdog that PID 1
// hands over running: every machine with that image would reset itself for ever.
var ErrUnfed = errors.New("nothing feeds the watchdog")

// CheckWatchdog tells whether a root (directory or tar) feeds the watchdog as
// the configuration promises. Errors wrap ErrUnfed when it does not, or when no
// root is named. Disk does the same for what it builds.
func CheckWatchdog(c *config.Config, rootfs string) error {
	if !c.Boot.Watchdog.Handover {
		return nil
	}
	if rootfs == "" {
		return fmt.Errorf("cannot use boot.watchdog.handover without a look into the root: name it with --rootfs: %w", ErrUnfed)
	}
	source, err := openRoot(rootfs)
	if err != nil {
		return err
	}
	defer source.Close()
	seen := watchedFiles{service: serviceName(c.Boot.Watchdog.Daemon)}
	if err := seen.read(tar.NewReader(source)); err != nil {
		return err
	}
	return seen.feeds()
}

// whileWriting looks at an image's tar as it is written to w, with all that the
// builder adds to the root, or /usr. verdict must be called when the tar is
// complete, or was given up.
func whileWriting(w io.Writer, c config.Watchdog, usr bool) (both io.Writer, verdict func() error) {
	if !c.Handover {
		return w, func() error { return nil }
	}
	return beside(w, func(r io.Reader) error {
		seen := watchedFiles{service: serviceName(c.Daemon), usr: usr}
		if err := seen.read(tar.NewReader(r)); err != nil {
			return err
		}
		return seen.feeds()
	})
}

// serviceName completes the name of a service; "" stays "".
func serviceName(name string) string {
	if name == "" || strings.HasSuffix(name, ".service") {
		return name
	}
	return name + ".service"
}

// systemdDirs are where systemd looks in an image, the first wins (man
// systemd.unit, systemd-system.conf).
func systemdDirs() []string {
	return []string{"etc/systemd", "usr/local/lib/systemd", "usr/lib/systemd", "lib/systemd"}
}

// mainConf is the only main file that every systemd reads: for older ones, as
// Debian 12's, one in /usr/lib counts for nothing.
const mainConf = "etc/systemd/system.conf"

// watchedFiles is what a root says of who feeds its watchdog.
type watchedFiles struct {
	service string            // the daemon's unit, "" when systemd feeds by itself
	conf    map[string]string // system.conf and its drop-ins
	units   map[string]bool   // files of the service's unit → masked
	enabled bool              // something wants the service
	usr     bool              // the tar is that of an image of /usr
}

// read gathers what matters from a root's tar.
func (f *watchedFiles) read(in *tar.Reader) error {
	f.conf, f.units = map[string]string{}, map[string]bool{}
	for {
		h, err := in.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("cannot read root tar: %w", err)
		}
		name, err := cleanName(h.Name)
		if err != nil {
			return err
		}
		if f.usr {
			name = fromUsr(name)
		}
		switch {
		case isSystemConf(name):
			text := ""
			if h.Typeflag == tar.TypeReg {
				content, err := readSmall(in, h.Size, name)
				if err != nil {
					return err
				}
				text = string(content)
			}
			// A link is most likely to /dev/null: nothing in it, and it hides
			// the file of the same name further down.
			f.conf[name] = text
		case f.service != "":
			f.unit(name, h)
		}
	}
}

func isSystemConf(name string) bool {
	dir, base := path.Split(name)
	if name == mainConf {
		return true
	}
	parent, ok := strings.CutSuffix(dir, "/system.conf.d/")
	return ok && slices.Contains(systemdDirs(), parent) && strings.HasSuffix(base, ".conf")
}

// unit notes files that make the service exist, or start.
func (f *watchedFiles) unit(name string, h *tar.Header) {
	dir, base := path.Split(name)
	template := f.service
	if before, _, ok := strings.Cut(f.service, "@"); ok {
		template = before + "@.service"
	}
	for _, d := range systemdDirs() {
		switch rest, ok := strings.CutPrefix(dir, d+"/system/"); {
		case !ok:
		case rest == "" && (base == f.service || base == template):
			f.units[name] = h.Typeflag == tar.TypeSymlink && h.Linkname == "/dev/null" || h.Typeflag == tar.TypeReg && h.Size == 0
		case base == f.service && h.Typeflag == tar.TypeSymlink && h.Linkname != "/dev/null":
			kind := path.Ext(strings.TrimSuffix(rest, "/"))
			f.enabled = f.enabled || kind == ".wants" || kind == ".requires" || kind == ".upholds"
		}
	}
}

// feeds is the verdict.
func (f *watchedFiles) feeds() error {
	if f.service != "" {
		return f.daemonFeeds()
	}
	if fed, err := f.runtimeWatchdog(); fed || err != nil {
		return err
	}
	return fmt.Errorf("cannot use boot.watchdog.handover: the root's systemd feeds no watchdog; set RuntimeWatchdogSec=30s below [Manager] in usr/lib/systemd/system.conf.d/watchdog.conf (--extra can add it), name a service in boot.watchdog.daemon, or leave handover out: %w", ErrUnfed)
}

func (f *watchedFiles) daemonFeeds() error {
	exists, masked := false, false
	for _, dir := range slices.Backward(systemdDirs()) {
		for name, empty := range f.units {
			if path.Dir(name) == dir+"/system" {
				exists, masked = true, empty
			}
		}
	}
	problem := ""
	switch {
	case !exists:
		problem = "the root has no such service"
	case masked:
		problem = "the service is masked in the root"
	case !f.enabled:
		problem = "the service is not enabled in the root (systemctl --root=ROOT enable " + f.service + ")"
	default:
		return nil
	}
	return fmt.Errorf("cannot use boot.watchdog.daemon %s: %s: %w", f.service, problem, ErrUnfed)
}

// runtimeWatchdog tells whether systemd feeds the first watchdog: the main file,
// then the drop-ins by name, the last assignment wins.
func (f *watchedFiles) runtimeWatchdog() (bool, error) {
	order := map[string]string{} // base name → the file that counts
	for _, dir := range slices.Backward(systemdDirs()) {
		for name := range f.conf {
			if path.Dir(name) == dir+"/system.conf.d" {
				order[path.Base(name)] = name
			}
		}
	}
	files := []string{mainConf}
	for _, base := range sortedKeys(order) {
		files = append(files, order[base])
	}
	feeds, device := false, ""
	for _, name := range files {
		for _, a := range managerSettings(f.conf[name]) {
			switch a.key {
			case "RuntimeWatchdogSec":
				var err error
				if feeds, err = watchdogTime(a.value); err != nil {
					return false, fmt.Errorf("cannot use RuntimeWatchdogSec=%.40s in /%s: %w", a.value, name, err)
				}
			case "WatchdogDevice":
				device = a.value
			}
		}
	}
	if feeds && device != "" && device != "/dev/watchdog" && device != "/dev/watchdog0" {
		return false, fmt.Errorf("cannot use boot.watchdog.handover: the root's systemd feeds WatchdogDevice=%.80s, PID 1 hands over /dev/watchdog0: %w", device, ErrUnfed)
	}
	return feeds, nil
}

// setting is one line of a configuration file of systemd.
type setting struct{ key, value string }

// managerSettings reads section [Manager] (man systemd.syntax).
func managerSettings(text string) []setting {
	var list []setting
	inside := false
	joined := "" // a line so far that goes on
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if strings.HasPrefix(line, "#") || strings.HasPrefix(line, ";") {
			continue // also in the middle of a line that goes on
		}
		if before, more := strings.CutSuffix(line, `\`); more {
			joined += before + " "
			continue
		}
		line, joined = joined+line, ""
		if strings.HasPrefix(line, "[") {
			inside = line == "[Manager]"
			continue
		}
		if key, value, ok := strings.Cut(line, "="); ok && inside {
			list = append(list, setting{strings.TrimSpace(key), strings.TrimSpace(value)})
		}
	}
	return list
}

// errTimeSpan means that a time span is none (man systemd.time).
var errTimeSpan = errors.New("not a time span such as 30s, 1min 30s or off")

// watchdogTime tells whether a value of RuntimeWatchdogSec= makes systemd feed.
func watchdogTime(value string) (feeds bool, err error) {
	switch value {
	case "", "off":
		return false, nil
	case "default": // with the time that is set already
		return true, nil
	}
	const digits = "0123456789"
	units := strings.Fields("us usec µs ms msec s sec second seconds m min minute minutes h hr hour hours d day days w week weeks M month months y year years")
	for rest := value; rest != ""; {
		unit := strings.TrimLeft(rest, digits+".")
		number := rest[:len(rest)-len(unit)]
		if strings.Trim(number, ".") == "" || strings.Count(number, ".") > 1 {
			return false, errTimeSpan
		}
		feeds = feeds || strings.Trim(number, "0.") != ""
		unit = strings.TrimLeft(unit, " ")
		rest = strings.TrimLeft(unit, "abcdefghijklmnopqrstuvwxyzM\u00b5")
		unit = unit[:len(unit)-len(rest)]
		if unit != "" && !slices.Contains(units, unit) {
			return false, errTimeSpan
		}
		rest = strings.TrimLeft(rest, " ")
	}
	return feeds, nil
}
