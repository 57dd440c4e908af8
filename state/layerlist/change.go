package layerlist

import "slices"

// Added is the list with an image over the others, or in the place of the one of its
// name, turned on. Errors: ErrFull.
func (l List) Added(name, hash string) (List, error) {
	next := slices.Clone(l).turnedOn(name)
	e := Entry{name, hash}
	if at := slices.IndexFunc(next, e.sameLayer); at >= 0 {
		next[at] = e
		return next, nil
	}
	return append(next, e).bounded()
}

// Hash is the root hash of the image that the list adds by that name; "" for none.
func (l List) Hash(name string) string {
	if at := slices.IndexFunc(l, (Entry{name, "-"}).sameLayer); at >= 0 {
		return l[at].Hash
	}
	return ""
}

// sameLayer says that both add a layer of one name.
func (e Entry) sameLayer(o Entry) bool {
	return e.Name == o.Name && e.Hash != "" && o.Hash != ""
}

// Removed is the list without all that names a layer.
func (l List) Removed(name string) List {
	return slices.DeleteFunc(slices.Clone(l), func(e Entry) bool { return e.Name == name })
}

// Turned is the list with a layer turned on or off. Errors: ErrFull.
func (l List) Turned(name string, on bool) (List, error) {
	next := slices.Clone(l).turnedOn(name)
	if on {
		return next, nil
	}
	return append(next, Entry{Name: name}).bounded()
}

func (l List) turnedOn(name string) List {
	return slices.DeleteFunc(l, func(e Entry) bool { return e == Entry{Name: name} })
}

func (l List) bounded() (List, error) {
	if len(l) > MaxEntries {
		return nil, ErrFull
	}
	return l, nil
}
