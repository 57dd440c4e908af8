package machine

import (
	"fmt"
	"os"

	"sealroot/sealroot/install"
	"sealroot/sealroot/rollbackfloor"
	"sealroot/slots"
	"sealroot/verity/signature"
)

// rootCertificates is where PID 1 leaves the certificates that it trusts for
// root images.
const rootCertificates = "/run/sealroot/verity.d/root"

// Level finds the security version of a slot's image, as install.Machine does.
func (m *Machine) Level(s slots.Slot, r install.Running) (rollbackfloor.Level, error) {
	certs, err := signature.LoadCertificates(os.DirFS(rootCertificates))
	if err != nil {
		return rollbackfloor.Level{}, fmt.Errorf("cannot read the certificates: %w", err)
	}
	return install.Machine{Disk: m, ESP: bootESP{m.esp, m.choice}, Certs: certs}.Level(s, r), nil
}
