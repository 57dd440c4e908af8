package layerlist

import (
	"strings"

	"sealroot/state/layout"
)

// GoodFile holds the list that an image has come up with and that was committed.
func GoodFile(image string) string { return layout.LayersGood + image[:min(len(image), 16)] }

// Proofs tell how far lists are under which image: lines "<image> <list> <state>", of
// which the last one for image and list counts. The content of a file of any kind will
// do: what is no such line says nothing.
type Proofs string

// MaxProofsSize bounds them, in bytes; the oldest are forgotten.
const MaxProofsSize = 1 << 10

// How far a list is under an image; "" when nobody asked for it there.
const (
	New   = "new"   // a boot of the image is to try it
	Tried = "tried" // a boot with it has begun; it is not tried again
	Good  = "good"  // it was committed: the trial is over
)

// key begins a line. An image is named by its root hash in lower-case hex.
func key(image, list string) string { return image[:min(len(image), 16)] + " " + list + " " }

// Of is how far a list is under an image.
func (p Proofs) Of(image, list string) string {
	state, rest := "", string(p)
	for {
		_, after, found := strings.Cut(rest, key(image, list))
		if !found {
			return state
		}
		state, rest, _ = strings.Cut(after, "\n")
	}
}

// With are the proofs with another one.
func (p Proofs) With(image, list, state string) Proofs {
	p += Proofs(key(image, list) + state + "\n")
	return p[max(0, len(p)-MaxProofsSize):]
}

// Use decides whether a boot of an image goes by a list that is not the image's good one:
// once, when that was asked for, or when the slot is on trial itself. A committed slot,
// which may be the one to save the machine, goes by its own list. Next is to be saved
// before anything of the list is used. hold: nothing is tried.
func (p Proofs) Use(image, list string, slotTrial, hold bool) (use bool, next Proofs) {
	state := p.Of(image, list)
	if hold || state != New && !(slotTrial && state != Tried) {
		return false, p
	}
	return true, p.With(image, list, Tried)
}
