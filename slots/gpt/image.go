package gpt

import "errors"

// Image are the partitions of an image in a file (a disk image with one root, as
// systemd-dissect(1) takes it): data, hash tree and signature. Each is found by its
// type: ErrNotFound, or ErrAmbiguous; an image need not be signed, and sig is nil then.
func (t *Table) Image() (data, tree Partition, sig *Partition, err error) {
	if data, err = t.byType(TypeRoot); err != nil {
		return Partition{}, Partition{}, nil, err
	}
	if tree, err = t.byType(TypeVerity); err != nil {
		return Partition{}, Partition{}, nil, err
	}
	p, err := t.byType(TypeSig)
	if errors.Is(err, ErrNotFound) {
		return data, tree, nil, nil
	}
	if err != nil {
		return Partition{}, Partition{}, nil, err
	}
	return data, tree, &p, nil
}

func (t *Table) byType(kind string) (Partition, error) {
	return t.only("of type "+kind, func(p Partition) bool { return p.Type.String() == kind })
}
