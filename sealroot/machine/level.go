package machine

import (
	"fmt"
	"os"

	"sealroot/sealroot/install"
	"sealroot/sealroot/rollbackfloor"
	"sealroot/slots"
	"sealroot/slots/manifest"
	"sealroot/verity/signature"
)

// Level finds the security version of a slot's image, as install.Machine does, by
// the certificates in the folder trust.
func (m *Machine) Level(s slots.Slot, r install.Running, trust string) (rollbackfloor.Level, error) {
	certs, err := signature.LoadCertificates(os.DirFS(trust))
	if err != nil {
		return rollbackfloor.Level{}, fmt.Errorf("cannot read the certificates: %w", err)
	}
	return install.Machine{Disk: m, ESP: bootESP{m.esp, m.choice}, Certs: certs}.Level(s, r), nil
}

// Manifest is a slot's signed manifest, by the certificates in the folder trust.
func (m *Machine) Manifest(slot, trust string) (manifest.Manifest, error) {
	certs, err := signature.LoadCertificates(os.DirFS(trust))
	if err != nil {
		return manifest.Manifest{}, fmt.Errorf("cannot read the certificates: %w", err)
	}
	return install.Machine{Disk: m, ESP: bootESP{m.esp, m.choice}, Certs: certs}.Manifest(slot)
}

// Sealed is what a slot's image opens the state by, as its signed manifest says, by the
// certificates in the folder trust.
func (m *Machine) Sealed(slot, trust string) (string, error) {
	certs, err := signature.LoadCertificates(os.DirFS(trust))
	if err != nil {
		return "", fmt.Errorf("cannot read the certificates: %w", err)
	}
	return install.Machine{Disk: m, ESP: bootESP{m.esp, m.choice}, Certs: certs}.Sealed(slot)
}
