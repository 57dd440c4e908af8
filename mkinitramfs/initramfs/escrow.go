package initramfs

import (
	"fmt"
	"os"
	"path/filepath"

	"sealroot/state/escrow"
	"sealroot/verity/signature"
)

// escrow reads the certificates that recovery keys are encrypted to. They are
// judged by what PID 1 judges them by: it would find out at a machine's first
// boot only.
func (s Sources) escrow() ([]File, error) {
	var files []File
	for _, name := range s.Config.State.Escrow {
		path, err := s.find(name)
		if err != nil {
			return nil, fmt.Errorf("cannot find certificate of state.escrow: %w", err)
		}
		content, err := os.ReadFile(path)
		if err != nil {
			return nil, fmt.Errorf("cannot read certificate of state.escrow: %w", err)
		}
		certs, err := signature.ParseCertificates(content)
		for _, c := range certs {
			if err == nil {
				_, err = escrow.NewRecipient(c.Issuer, c.Serial, c.Key)
			}
		}
		if err != nil {
			return nil, fmt.Errorf("cannot use certificate %s of state.escrow: %w", path, err)
		}
		files = append(files, File{filepath.Base(name), content})
	}
	return files, nil
}
