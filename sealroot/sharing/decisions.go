package sharing

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"sealroot/init/report"
	"sealroot/state/balance"
)

// DecisionsFile has the last decisions until the machine stops.
const DecisionsFile = report.Dir + "/balance.json"

const (
	// keep is how many decisions are kept.
	keep = 20
	// maxDecisions bounds the file, and maxReason a text in it, in bytes.
	maxDecisions = 64 << 10
	maxReason    = 1000
)

// Past is a decision that was made, and what became of it.
type Past struct {
	Time   time.Time      `json:"time"`
	Action balance.Action `json:"action"`
	Bytes  int64          `json:"bytes,omitempty"` // the volume's new size, or what was reserved
	Reason string         `json:"reason"`
	Error  string         `json:"error,omitempty"`
}

// Decisions are the last ones that did something, failed, or said that something is
// wrong: the oldest first.
type Decisions struct {
	path string
	list []Past
}

// OpenDecisions reads what an earlier service kept at path; a file that cannot be
// read is as none.
func OpenDecisions(path string) *Decisions {
	list, err := ReadDecisions(path)
	if err != nil {
		list = nil
	}
	return &Decisions{path: path, list: list}
}

// Add keeps a decision. One to do nothing is not kept, nor the same failure again;
// Add tells whether it was kept. That the file cannot be written is no error of a
// service that shares space.
func (k *Decisions) Add(d balance.Decision, err error, now time.Time) bool {
	p := Past{Time: now.UTC().Round(time.Second), Action: d.Action, Bytes: d.Size, Reason: short(d.Reason)}
	if err != nil {
		p.Error = short(err.Error())
	}
	if d.Action == balance.None {
		return false
	}
	if n := len(k.list); n > 0 && p.Error != "" {
		last := k.list[n-1]
		if last.Error == p.Error && last.Action == p.Action {
			return false
		}
	}
	k.list = append(k.list, p)
	k.list = k.list[max(0, len(k.list)-keep):]
	_ = k.write()
	return true
}

// write replaces the file. Durable it need not be: /run is memory.
func (k *Decisions) write() error {
	text, err := json.Marshal(k.list)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(k.path), 0o755); err != nil {
		return err
	}
	temp := k.path + ".new"
	if err := os.WriteFile(temp, append(text, '\n'), 0o644); err != nil {
		return err
	}
	return os.Rename(temp, k.path)
}

// ReadDecisions reads the file at path, the oldest decision first; none where there is
// no file.
func ReadDecisions(path string) ([]Past, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("cannot read the last decisions: %w", err)
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxDecisions))
	var list []Past
	if err == nil {
		err = json.Unmarshal(text, &list)
	}
	if err != nil {
		return nil, fmt.Errorf("cannot read the last decisions: %w", err)
	}
	return list[max(0, len(list)-keep):], nil
}

func short(text string) string { return text[:min(len(text), maxReason)] }
