package machine

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"net"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
)

func TestConsoleExpect(t *testing.T) {
	r, w := io.Pipe()
	var log bytes.Buffer
	c := newConsole(&log)
	done := make(chan struct{})
	go func() { c.readFrom(r); c.end(); close(done) }()
	// An escape sequence that comes in two pieces, colours, carriage returns.
	for _, piece := range []string{"\x1b[2J\x1b[0", "1;01Hslot \x1b[1mb\x1b[0m: 2 ", "tries left\r\n", "slot a\r\n"} {
		io.WriteString(w, piece)
	}
	got, err := c.expect(regexp.MustCompile(`slot (.): (\d) tries`), time.Minute)
	if err != nil || got[1] != "b" || got[2] != "2" {
		t.Fatalf("expect gives %q, %v, want b and 2", got, err)
	}
	if _, err := c.expect(regexp.MustCompile(`slot b`), time.Millisecond); !errors.Is(err, ErrTimeout) {
		t.Errorf("what was matched before is found again: %v, want ErrTimeout", err)
	}
	if _, err := c.expect(regexp.MustCompile(`slot a`), time.Minute); err != nil {
		t.Error(err)
	}
	w.Close()
	<-done
	if _, err := c.expect(regexp.MustCompile(`slot c`), time.Minute); !errors.Is(err, ErrEnded) {
		t.Errorf("after the end: %v, want ErrEnded", err)
	}
	if want := "slot b: 2 tries left\n"; !strings.Contains(log.String(), want) {
		t.Errorf("the log is %q, want a line %q", log.String(), want)
	}
	if got, want := c.tail(1), "slot a"; got != want {
		t.Errorf("the last line is %q, want %q", got, want)
	}
}

func TestAgentRun(t *testing.T) {
	ours, guest := net.Pipe()
	defer guest.Close()
	a := newAgent()
	a.over(ours)
	go func() { a.readFrom(ours); a.end() }()
	requests := make(chan string, 1)
	go func() {
		// Firmware may write to the port before the agent is there.
		io.WriteString(guest, "noise of the firmware\n\x00\xff\nready 11-22\n")
		line := make([]byte, 64)
		n, _ := guest.Read(line)
		requests <- string(line[:n])
		io.WriteString(guest, "1 3 aGVsbG8K\n")
	}()
	got, err := a.run("echo hello", time.Minute)
	if err != nil || got.status != 3 || string(got.output) != "hello\n" {
		t.Errorf("run gives %d, %q, %v, want 3, hello", got.status, got.output, err)
	}
	if request, want := <-requests, "1 ZWNobyBoZWxsbw==\n"; request != want {
		t.Errorf("the request is %q, want %q", request, want)
	}
	if err := a.waitReady(time.Millisecond); !errors.Is(err, ErrAgent) {
		t.Errorf("ready without another boot: %v, want ErrAgent", err)
	}
	guest.Close()
	if err := a.waitReady(time.Minute); !errors.Is(err, ErrEnded) {
		t.Errorf("after the end: %v, want ErrEnded", err)
	}
}

// The agent of a boot that was over before anybody asked for it takes nothing.
func TestAgentOfABootThatIsOver(t *testing.T) {
	ours, guest := net.Pipe()
	defer guest.Close()
	a := newAgent()
	a.over(ours)
	go func() { a.readFrom(ours); a.end() }()
	requests := make(chan string, 3)
	go func() {
		lines := bufio.NewScanner(guest)
		io.WriteString(guest, "ready first\n")
		for range 2 { // an empty line, and what the first agent does not answer any more
			lines.Scan()
			requests <- lines.Text()
		}
		io.WriteString(guest, "ready second\n")
		lines.Scan()
		lines.Scan()
		requests <- lines.Text()
		io.WriteString(guest, "2 0\n")
	}()
	if err := a.waitReady(time.Minute); err != nil {
		t.Fatal(err)
	}
	for i, want := range []string{"", "1 ", "2 "} {
		if got := <-requests; got != want {
			t.Errorf("request %d is %q, want %q", i, got, want)
		}
	}
	if err := a.waitReady(time.Millisecond); !errors.Is(err, ErrAgent) {
		t.Errorf("ready without another boot: %v, want ErrAgent", err)
	}
}

func TestArguments(t *testing.T) {
	c := Config{Dir: t.TempDir(), Firmware: UEFISecure, Disk: "disk.img", MemoryMiB: 512}
	args, err := c.arguments("/tmp/tpm/s")
	if err != nil {
		t.Fatal(err)
	}
	line := strings.Join(args, " ")
	for _, want := range []string{
		"-machine q35,smm=on", "-accel tcg", "-m 512", "file=disk.img", "path=/tmp/tpm/s", "tpm-tis",
		"driver=cfi.pflash01,property=secure,value=on", "OVMF_CODE_4M.secboot.fd", filepath.Join(c.Dir, EFIVarsFile),
	} {
		if !strings.Contains(line, want) {
			t.Errorf("no %q in %s", want, line)
		}
	}
	if _, err := (&Config{Firmware: Firmware(9)}).arguments(""); err == nil {
		t.Error("an unknown firmware is accepted")
	}
}

func TestProcessEndsWithItsWaiter(t *testing.T) {
	p, err := startProcess("sleep", []string{"600"})
	if err != nil {
		t.Fatal(err)
	}
	if err := p.wait(time.Millisecond); !errors.Is(err, ErrStillRunning) {
		t.Errorf("wait: %v, want ErrStillRunning", err)
	}
	p.kill()
	p.kill()
	if !p.ended() {
		t.Error("the process runs on after kill")
	}
	if _, err := startProcess(filepath.Join(t.TempDir(), "none"), nil); err == nil {
		t.Error("a program that is not there starts")
	}
}

func TestTasksOf(t *testing.T) {
	const answer = "[    9.9] sysrq: Show State\n" +
		"[    9.9] task:init            state:S stack:0     pid:1\n[    9.9] Call Trace:\n[    9.9]  futex_wait\n" +
		"[    9.9] task:kthreadd        state:S stack:0     pid:2\n[    9.9]  kthreadd\n" +
		"[    9.9] task:kworker/0:1     state:D stack:0     pid:9\n[    9.9]  blk_wait\n"
	got := tasksOf(answer)
	for text, want := range map[string]bool{"futex_wait": true, "blk_wait": true, "kthreadd": false} {
		if strings.Contains(got, text) != want {
			t.Errorf("%q kept: %t, want %t:\n%s", text, !want, want, got)
		}
	}
	if got := tasksOf("nothing of the kind"); got != "nothing of the kind" {
		t.Errorf("an answer without tasks becomes %q", got)
	}
}

func TestInitBegan(t *testing.T) {
	const up = "Linux version 6\nRun /init as init process\n"
	for name, tc := range map[string]struct {
		console string
		want    bool
	}{
		"firmware":           {"SeaBIOS\n", false},
		"kernel":             {"Linux version 6\n", false},
		"init":               {up, true},
		"restarting":         {up + "reboot: Restarting system\n", false},
		"kernel_after_reset": {up + "Linux version 6\n", false},
		"init_after_reset":   {up + "reboot: Restarting system\n" + up, true},
	} {
		if got := initBegan(tc.console); got != tc.want {
			t.Errorf("%s: %t, want %t", name, got, tc.want)
		}
	}
}
