package machine

import (
	"bufio"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"
	"sync"
	"time"
)

// ErrAgent says that the guest's agent did not answer as it should.
var ErrAgent = errors.New("no answer of the agent")

// agent speaks with the program behind the guest's second serial port, line by
// line. After each start of the guest it says "ready <boot id>". A request is
// "<number> <base64 of a command>", its answer
// "<number> <exit status> <base64 of the output>".
// AddAgent has it for a guest with systemd, the command probe for one without.
type agent struct {
	w io.Writer

	mu      sync.Mutex
	bootID  string // of the last "ready"
	seen    string // boot ID that the last call used
	next    int
	answers map[int]answer
	changed chan struct{}
	closed  bool
}

type answer struct {
	status int
	output []byte
}

func newAgent(w io.Writer) *agent {
	return &agent{w: w, next: 1, answers: make(map[int]answer), changed: make(chan struct{})}
}

func (a *agent) readFrom(r io.Reader) {
	lines := bufio.NewScanner(r)
	lines.Buffer(nil, 16<<20)
	for lines.Scan() {
		a.update(func() { a.take(strings.Fields(lines.Text())) })
	}
	a.update(func() { a.closed = true })
}

func (a *agent) update(f func()) {
	a.mu.Lock()
	defer a.mu.Unlock()
	f()
	close(a.changed)
	a.changed = make(chan struct{})
}

// take handles one line. A port that firmware or kernel wrote to gives noise.
func (a *agent) take(fields []string) {
	if len(fields) == 2 && fields[0] == "ready" {
		a.bootID = fields[1]
		return
	}
	if len(fields) < 2 || len(fields) > 3 {
		return
	}
	id, err1 := strconv.Atoi(fields[0])
	status, err2 := strconv.Atoi(fields[1])
	if err1 != nil || err2 != nil {
		return
	}
	var output []byte
	if len(fields) == 3 {
		var err error
		if output, err = base64.StdEncoding.DecodeString(fields[2]); err != nil {
			return
		}
	}
	a.answers[id] = answer{status, output}
}

// wait waits until done, called with the lock held, says true.
func (a *agent) wait(deadline <-chan time.Time, done func() bool) error {
	for {
		a.mu.Lock()
		ok, closed, changed := done(), a.closed, a.changed
		a.mu.Unlock()
		switch {
		case ok:
			return nil
		case closed:
			return ErrEnded
		}
		select {
		case <-changed:
		case <-deadline:
			return ErrAgent
		}
	}
}

// waitReady waits until the agent of a boot that no call has used is ready.
func (a *agent) waitReady(timeout time.Duration) error {
	err := a.wait(time.After(timeout), func() bool { return a.bootID != a.seen })
	if err != nil {
		return fmt.Errorf("the agent is not ready after %s: %w", timeout, err)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.seen = a.bootID
	return nil
}

// run runs one command. The first call after a start waits for the agent.
func (a *agent) run(command string, timeout time.Duration) (answer, error) {
	deadline := time.After(timeout)
	var id int
	err := a.wait(deadline, func() bool {
		if a.bootID == "" {
			return false
		}
		a.seen = a.bootID
		if id == 0 {
			id = a.next
			a.next++
		}
		return true
	})
	if err != nil {
		return answer{}, fmt.Errorf("cannot run %q in the guest: %w", command, err)
	}
	line := fmt.Sprintf("%d %s\n", id, base64.StdEncoding.EncodeToString([]byte(command)))
	if _, err := io.WriteString(a.w, line); err != nil {
		return answer{}, fmt.Errorf("cannot run %q in the guest: %w", command, err)
	}
	var got answer
	err = a.wait(deadline, func() (ok bool) { got, ok = a.answers[id]; return ok })
	if err != nil {
		return answer{}, fmt.Errorf("cannot run %q in the guest within %s: %w", command, timeout, err)
	}
	return got, nil
}
