package install

import (
	"context"
	"errors"
	"fmt"
	"io"

	"sealroot/sealroot/bootset"
	"sealroot/slots/manifest"
)

// LayerImage is the image of a layer on the state partition. Nothing in it was verified.
type LayerImage struct {
	Data, Tree *io.SectionReader
	io.Closer
}

// VerifyLayers reads the images of layers on the state partition as a whole. names are
// those of the layers that are there with their content; the error tells of each of the
// others what is wrong: ErrBad, bootset.ErrRefused where the partition is not mounted, or
// that of the disk.
func (m Machine) VerifyLayers(ctx context.Context, list []manifest.Layer) (names []string, err error) {
	var errs []error
	for _, l := range list {
		err := m.verifyImageOf(ctx, l)
		if ctx.Err() != nil {
			return names, err
		}
		if errors.Is(err, bootset.ErrRefused) {
			errs = append(errs, fmt.Errorf("layer %s was not read: %w", l.Name, err))
			continue
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("layer %s: %w", l.Name, err))
			continue
		}
		names = append(names, l.Name)
	}
	return names, errors.Join(errs...)
}

func (m Machine) verifyImageOf(ctx context.Context, l manifest.Layer) error {
	if m.Layers == nil {
		return fmt.Errorf("it lies on the state partition, and this machine keeps no state: %w", bootset.ErrRefused)
	}
	im, err := m.Layers.Open(l)
	if err != nil {
		return err
	}
	defer im.Close()
	params, err := paramsOf(im.Data, im.Tree, l.RootHash)
	if err != nil {
		return err
	}
	return m.verifyTree(ctx, "verify layer "+l.Name, im.Data, im.Tree, params, l.RootHash)
}
