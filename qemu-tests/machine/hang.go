package machine

import (
	"encoding/json"
	"fmt"
	"regexp"
	"strings"
	"time"
)

// Silence is what was found out about a guest from which nothing comes any more.
type Silence struct {
	// KernelAnswers says that the guest's kernel answered SysRq: it runs, and
	// what hangs is above it.
	KernelAnswers bool
	// AnswerExpected says that a running kernel would have answered: it had
	// begun the guest's first program, and so taken its console into use. Only
	// then a missing answer means something.
	AnswerExpected bool
	// Text is for a person: what the kernel said, and the CPU's registers.
	Text string
}

// sysRqs are the questions to a kernel, and how long an answer may take to
// begin and to pause under emulation.
var sysRqs = []struct{ key, what string }{
	{"w", "blocked tasks"},
	{"l", "what the CPUs do"},
	{"t", "all tasks"},
}

const (
	answerBegins = 10 * time.Second
	answerPauses = 2 * time.Second
	answerEnds   = time.Minute
	// answerLimit bounds what goes into Text of each answer. The console's log
	// has all.
	answerLimit = 12 << 10
)

// Examine asks a guest that has become silent what it does: the kernel by SysRq
// (a break on the serial console, then a key), QEMU by its monitor. A guest that
// was only slow goes on afterwards. The kernel must allow SysRq
// (sysrq_always_enabled).
func (g *Guest) Examine() Silence {
	var s Silence
	var text strings.Builder
	s.AnswerExpected = initBegan(g.Console())
	// Before SysRq: its interrupt may wake a CPU that had lost one.
	g.registers(&text)
	for _, q := range sysRqs {
		answer, err := g.sysRq(q.key)
		if err != nil {
			fmt.Fprintf(&text, "SysRq %s: %v\n", q.key, err)
			break
		}
		s.KernelAnswers = s.KernelAnswers || strings.Contains(answer, "sysrq: ")
		if q.key == "t" {
			answer = tasksOf(answer)
		}
		fmt.Fprintf(&text, "SysRq %s (%s):\n%s\n", q.key, q.what, shorten(answer, answerLimit))
	}
	g.registers(&text)
	s.Text = text.String()
	return s
}

// registers writes the CPU's registers and the interrupt controller, twice:
// whether the CPU moves is seen then.
func (g *Guest) registers(w *strings.Builder) {
	for _, command := range []string{"info status", "info registers", "info lapic", "info registers"} {
		answer, err := g.humanMonitor(command)
		if err != nil {
			answer = err.Error()
		}
		fmt.Fprintf(w, "%s:\n%s\n", command, shorten(headOf(answer), answerLimit))
		time.Sleep(100 * time.Millisecond)
	}
}

// headOf drops the vector registers, which say nothing here.
func headOf(registers string) string {
	head, _, _ := strings.Cut(registers, "\nFCW=")
	return strings.TrimSpace(head)
}

// sysRq presses one SysRq key and returns what the console shows from then on.
func (g *Guest) sysRq(key string) (string, error) {
	begin := len(g.Console())
	if err := g.Monitor("chardev-send-break", map[string]any{"id": "console"}); err != nil {
		return "", err
	}
	time.Sleep(100 * time.Millisecond) // the port has no queue for breaks
	if err := g.Send(key); err != nil {
		return "", err
	}
	started := time.Now()
	for size, grew := begin, started; ; time.Sleep(50 * time.Millisecond) {
		now := time.Now()
		if n := len(g.Console()); n > size {
			size, grew = n, now
		}
		silent := now.Sub(grew)
		if size > begin && silent > answerPauses || silent > answerBegins || now.Sub(started) > answerEnds {
			return g.Console()[begin:], nil
		}
	}
}

// humanMonitor runs a command of QEMU's monitor for people.
func (g *Guest) humanMonitor(command string) (string, error) {
	reply, err := g.query("human-monitor-command", map[string]any{"command-line": command})
	if err != nil {
		return "", err
	}
	var text string
	if err := json.Unmarshal(reply, &text); err != nil {
		return "", g.emulator().monitorError(command, err)
	}
	return strings.ReplaceAll(text, "\r", ""), nil
}

// initBegan says whether the kernel had started the first program in the boot
// that the console shows last.
func initBegan(console string) bool {
	last := console[max(0, strings.LastIndex(console, "Linux version ")):]
	return strings.Contains(last, "Run /init as init process") && !strings.Contains(last, "reboot: ")
}

// aTask is the first line of a task in the answer to SysRq t.
var aTask = regexp.MustCompile(`(?m)^.*task:(\S+) +state:(\S) .*$`)

// tasksOf keeps of an answer to SysRq t the tasks that can explain a hang: the
// threads of PID 1, and what waits without being interruptible.
func tasksOf(answer string) string {
	var kept strings.Builder
	starts := aTask.FindAllStringSubmatchIndex(answer, -1)
	for i, at := range starts {
		end := len(answer)
		if i+1 < len(starts) {
			end = starts[i+1][0]
		}
		name, state := answer[at[2]:at[3]], answer[at[4]:at[5]]
		if name == "init" || name == "systemd" || state == "D" {
			kept.WriteString(answer[at[0]:end])
		}
	}
	if len(starts) == 0 {
		return answer
	}
	return kept.String()
}

// shorten cuts a text in the middle, so that it has about n bytes.
func shorten(text string, n int) string {
	if len(text) <= n {
		return text
	}
	return text[:n/2] + fmt.Sprintf("\n… %d bytes are in the console's log …\n", len(text)-n) + text[len(text)-n/2:]
}
