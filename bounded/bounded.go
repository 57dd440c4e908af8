// Package bounded reads files of which somebody else may have made too much.
package bounded

import (
	"fmt"
	"io"
	"os"
)

// ReadFile reads a whole file. More than limit bytes are an error: what is cut short
// could be taken for the whole.
func ReadFile(path string, limit int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, limit+1))
	if err == nil && int64(len(text)) > limit {
		err = fmt.Errorf("%s has more than %d bytes", path, limit)
	}
	if err != nil {
		return nil, err
	}
	return text, nil
}
