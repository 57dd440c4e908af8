package install

import (
	"fmt"

	"sealroot/sealroot/bootset"
	"sealroot/slots/manifest"
)

// placeLayers copies the layers of a set that are not there yet.
func (m Machine) placeLayers(s set) error {
	list := s.manifest.OnState()
	if len(list) > 0 && m.Layers == nil {
		return fmt.Errorf("the image has layers on the state partition, and this machine keeps no state: %w", bootset.ErrRefused)
	}
	for _, l := range list {
		if err := m.placeLayer(s, l); err != nil {
			return fmt.Errorf("cannot write layer %s: %w", l.Name, err)
		}
	}
	return nil
}

func (m Machine) placeLayer(s set, l manifest.Layer) error {
	from, err := s.openPart(manifest.Part{File: l.File, Size: l.Size, SHA256: l.SHA256})
	if err != nil {
		return err
	}
	defer from.Close()
	if there, err := m.Layers.Holds(l); err != nil || there {
		return err
	}
	if err := m.Layers.Write(l, from); err != nil {
		return err
	}
	// crash point: a layer that no slot needs yet
	there, err := m.Layers.Holds(l)
	if err == nil && !there {
		err = ErrReadBack
	}
	return err
}
