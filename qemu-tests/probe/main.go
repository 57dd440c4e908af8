// Command probe is the smallest real init that tests can talk to: a root image
// with nothing but this program boots in seconds where systemd takes half a
// minute under emulation. It says on the console what it was started with and
// serves the test agent's protocol (see package machine) on the second serial
// port, with a few commands built in; others are started as programs.
package main

import (
	"bufio"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"sealroot/mount/dm"
)

// start is what the program before this one handed over.
type start struct {
	Args        []string          `json:"args"`
	Environment []string          `json:"environment"`
	FDs         map[string]string `json:"fds"`
	RootType    string            `json:"root_type"`
}

func main() {
	if filepath.Base(os.Args[0]) == "modprobe" {
		if err := modprobe(os.Args); err != nil {
			fmt.Fprintln(os.Stderr, "modprobe:", err)
			os.Exit(1)
		}
		return
	}
	if os.Getpid() != 1 {
		os.Exit(notInit(os.Args))
	}
	if _, err := os.Stat(plainPath); err == nil {
		fmt.Println(plainRoot())
		time.Sleep(time.Hour)
	}
	began := handedOver()
	if err := serve(began); err != nil {
		fmt.Printf("probe: %v\n", err)
	}
	// An init must not end: that would be a kernel panic.
	time.Sleep(5 * time.Second)
	unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF)
}

func poke(words []string) error {
	if len(words) != 4 {
		return errors.New("usage: poke FILE OFFSET HEX")
	}
	at, err := strconv.ParseInt(words[2], 10, 64)
	if err != nil {
		return err
	}
	text, err := hex.DecodeString(words[3])
	if err != nil {
		return err
	}
	f, err := os.OpenFile(words[1], os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(text, at)
	return errors.Join(err, f.Sync(), f.Close())
}

// notInit is what the program does for others: as reboot it restarts the machine,
// as euid it says whose rights it has, and after "#!" in a script it runs the script's lines until one fails.
func notInit(args []string) (status int) {
	if filepath.Base(args[0]) == "reboot" {
		unix.Sync()
		unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART)
		return 1
	}
	if filepath.Base(args[0]) == "euid" {
		fmt.Println(os.Geteuid())
		return 0
	}
	if len(args) != 2 {
		fmt.Fprintln(os.Stderr, "probe: this is an init for test images; beside PID 1 it only runs scripts")
		return 1
	}
	text, err := os.ReadFile(args[1])
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	for line := range strings.Lines(string(text)) {
		if strings.HasPrefix(line, "#") {
			continue
		}
		if status, _ := run(os.Stdout, start{}, strings.Fields(line)); status != 0 {
			return status
		}
	}
	return 0
}

// handedOver looks at the process before it opens anything itself.
func handedOver() start {
	s := start{Args: os.Args, Environment: os.Environ(), FDs: map[string]string{}}
	// Without sealroot before it (a test of the harness) nothing is mounted.
	for _, m := range []struct{ what, where string }{{"proc", "/proc"}, {"sysfs", "/sys"}, {"devtmpfs", "/dev"}} {
		if entries, err := os.ReadDir(m.where); err != nil || len(entries) < 2 {
			os.Mkdir(m.where, 0o755)
			unix.Mount(m.what, m.where, m.what, 0, "")
		}
	}
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		fmt.Printf("probe: %v\n", err)
	}
	for _, e := range entries {
		target, err := os.Readlink("/proc/self/fd/" + e.Name())
		// The directory itself is open while it is read, and Go's own poller
		// opens two descriptors.
		if err == nil && !strings.HasPrefix(target, "/proc/1/fd") && !strings.HasPrefix(target, "anon_inode:[event") {
			s.FDs[e.Name()] = target
		}
	}
	var fs unix.Statfs_t
	if unix.Statfs("/", &fs) == nil {
		s.RootType = fmt.Sprintf("%#x", fs.Type)
	}
	return s
}

func serve(began start) error {
	port, err := os.OpenFile("/dev/ttyS1", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		return fmt.Errorf("cannot open the agent's port: %w", err)
	}
	defer port.Close()
	if err := raw(int(port.Fd())); err != nil {
		return fmt.Errorf("cannot set up the agent's port: %w", err)
	}
	bootID, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return fmt.Errorf("cannot read the boot ID: %w", err)
	}
	say(fmt.Sprintf("probe: up: slot %q, kernel %s\n", slot(), release()))
	fmt.Fprintf(port, "ready %s\n", strings.TrimSpace(string(bootID)))

	lines := bufio.NewReader(port)
	for {
		line, err := lines.ReadString('\n')
		if err != nil {
			return fmt.Errorf("cannot read the agent's port: %w", err)
		}
		id, encoded, _ := strings.Cut(strings.TrimSpace(line), " ")
		command, err := base64.StdEncoding.DecodeString(encoded)
		if err != nil {
			continue
		}
		var output strings.Builder
		status, then := run(&output, began, strings.Fields(string(command)))
		fmt.Fprintf(port, "%s %d %s\n", id, status, base64.StdEncoding.EncodeToString([]byte(output.String())))
		if then != nil {
			unix.IoctlSetInt(int(port.Fd()), unix.TCSBRK, 1) // let the answer out
			unix.Sync()
			then()
		}
	}
}

// say writes a line to the kernel log, and so to the console as a whole: there
// the kernel may put lines of its own into the middle of anybody else's.
func say(line string) {
	log, err := os.OpenFile("/dev/kmsg", os.O_WRONLY, 0)
	if err == nil {
		_, err = log.WriteString(line)
		err = errors.Join(err, log.Close())
	}
	if err != nil {
		fmt.Print(line)
	}
}

// run runs one command. It returns what is to be done after the answer.
func run(w io.Writer, began start, words []string) (status int, then func()) {
	if len(words) == 0 {
		return 0, nil
	}
	var err error
	switch words[0] {
	case "poweroff":
		return 0, func() { unix.Reboot(unix.LINUX_REBOOT_CMD_POWER_OFF) }
	case "reboot":
		return 0, func() { unix.Reboot(unix.LINUX_REBOOT_CMD_RESTART) }
	case "shutdown": // shutdown VERB: as systemd-shutdown does it
		return 0, func() { say("probe: " + shutDown(words[len(words)-1]).Error() + "\n") }
	case "sync":
		unix.Sync()
	case "unseal": // unseal FILE: asks the TPM for the secret of a LUKS volume
		if len(words) != 2 {
			err = errors.New("usage: unseal FILE")
			break
		}
		err = unseal(w, words[1])
	case "kmsg": // the kernel log
		buf := make([]byte, 1<<20)
		var n int
		n, err = unix.Klogctl(3, buf) // SYSLOG_ACTION_READ_ALL
		w.Write(buf[:max(n, 0)])
	case "start":
		err = json.NewEncoder(w).Encode(began)
	case "cat":
		for _, name := range words[1:] {
			var data []byte
			if data, err = os.ReadFile(name); err != nil {
				break
			}
			w.Write(data)
		}
	case "hex": // hex FILE: its bytes, whatever they are
		if len(words) != 2 {
			err = errors.New("usage: hex FILE")
			break
		}
		var data []byte
		data, err = os.ReadFile(words[1])
		fmt.Fprintf(w, "%x", data)
	case "mount": // mount TYPE DIR
		if len(words) != 3 {
			err = errors.New("usage: mount TYPE DIR")
			break
		}
		err = unix.Mount(words[1], words[2], words[1], 0, "")
	case "dmtable": // dmtable NAME: the table as the kernel shows it to root, with what stands for keys
		var table []dm.Status
		table, err = dm.New().Table(words[len(words)-1])
		for _, line := range table {
			fmt.Fprintln(w, line)
		}
	case "ls":
		var names []string
		names, err = filepath.Glob(filepath.Join(words[len(words)-1], "*"))
		fmt.Fprintln(w, strings.Join(names, "\n"))
	case "write": // write FILE TEXT…
		if len(words) < 3 {
			err = errors.New("usage: write FILE TEXT")
			break
		}
		err = os.WriteFile(words[1], []byte(strings.Join(words[2:], " ")+"\n"), 0o644)
		unix.Sync()
	case "append": // append FILE TEXT…: one more line
		if len(words) < 3 {
			err = errors.New("usage: append FILE TEXT")
			break
		}
		var f *os.File
		if f, err = os.OpenFile(words[1], os.O_WRONLY|os.O_APPEND, 0); err != nil {
			break
		}
		_, err = f.WriteString(strings.Join(words[2:], " ") + "\n")
		err = errors.Join(err, f.Close())
		unix.Sync()
	case "background": // background FILE PROGRAM…: starts one that goes on
		err = background(words)
	case "resizeloop": // lets the encrypted volume grow and shrink
		err = resizeLoop(w, words)
	case "resizewrong": // does what a resize must not, for a moment
		err = resizeWrong(words)
	case "resize-under-writer":
		err = underWriter(w, words)
	case "verify": // verify DIR: files whose names are their sums
		err = verifyNamed(w, words)
	case "poke": // poke FILE OFFSET HEX: writes these bytes there, past every cache
		err = poke(words)
	default:
		var known bool
		if known, err = changeFiles(w, words); !known {
			known, err = changeVolume(w, words)
		}
		if !known {
			return program(w, words), nil
		}
	}
	if err != nil {
		fmt.Fprintln(w, err)
		return 1, nil
	}
	return 0, nil
}

func program(w io.Writer, words []string) int {
	// The environment of init holds no PATH, and lookups use this process's.
	const path = "/usr/sbin:/usr/bin:/sbin:/bin"
	if err := os.Setenv("PATH", path); err != nil {
		fmt.Fprintln(w, err)
		return 127
	}
	cmd := exec.Command(words[0], words[1:]...)
	cmd.Stdout, cmd.Stderr = w, w
	cmd.Env = []string{"PATH=" + path}
	err := cmd.Run()
	var exit *exec.ExitError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &exit):
		return exit.ExitCode()
	}
	fmt.Fprintln(w, err)
	return 127
}

// raw makes the port pass bytes as they are.
func raw(fd int) error {
	t, err := unix.IoctlGetTermios(fd, unix.TCGETS)
	if err != nil {
		return err
	}
	t.Iflag, t.Oflag, t.Lflag = 0, 0, 0
	t.Cc[unix.VMIN], t.Cc[unix.VTIME] = 1, 0
	return unix.IoctlSetTermios(fd, unix.TCSETS, t)
}

// slot is the slot that the boot report names, "" without a report.
func slot() string {
	var report struct {
		Slot struct {
			Name string `json:"name"`
		} `json:"slot"`
	}
	data, err := os.ReadFile("/run/sealroot/boot.json")
	if err != nil || json.Unmarshal(data, &report) != nil {
		return ""
	}
	return report.Slot.Name
}

func release() string {
	var name unix.Utsname
	if unix.Uname(&name) != nil {
		return ""
	}
	return unix.ByteSliceToString(name.Release[:])
}
