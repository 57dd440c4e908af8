package layers

import (
	"sealroot/init/report"
	"sealroot/state/layerlist"
)

// Row is one layer as `sealroot layer list` tells of it.
type Row struct {
	Name     string `json:"name"`
	Source   string `json:"source"` // image, added
	RootHash string `json:"root_hash,omitempty"`
	Version  string `json:"version,omitempty"`
	// Active: it is there in this boot. Trial: this boot is the first of this image with
	// what was added or turned off, and was not committed yet.
	Active bool   `json:"active"`
	Trial  bool   `json:"trial,omitempty"`
	Why    string `json:"why,omitempty"`  // it is not there
	Next   string `json:"next,omitempty"` // what the next boot does with it, where that is something else
}

// What the next boot does.
const (
	nextTries = "on trial"
	nextOff   = "off"
	nextOn    = "on"
	nextGone  = "removed"
)

// whyDropped goes with what the list has and no boot of this image uses.
const (
	whyDropped = "dropped: the boot with it did not come up"
	whyAside   = "not tried with this image, which goes by its own list"
)

// Table puts together what this boot has, from the lowest layer up, and what the list has.
func Table(r report.Report, k Kept) []Row {
	trial, aside, base := k.OnTrial(), k.Aside(), k.Base()
	rows := []Row{}
	for _, l := range r.Layers {
		row := Row{Name: l.Name, Source: "image", RootHash: l.RootHash, Version: l.Version, Active: l.LeftOut == "", Why: l.LeftOut}
		if l.Source == report.LayerAdded {
			row.Source = l.Source
			row.Trial = trial && row.Active
			if base.Hash(l.Name) != l.RootHash {
				row.Next = nextGone
			}
		}
		if l.LeftOut == report.LayerOff {
			row.Trial = trial
		}
		off := l.LeftOut == report.LayerOff
		if next := base.Off(l.Name); next != off && row.Next == "" {
			row.Next = nextOn
			if next {
				row.Next = nextOff
			}
		}
		rows = append(rows, row)
	}
	for _, e := range k.List {
		if e.Hash == "" || reported(r, e) {
			continue
		}
		row := Row{Name: e.Name, Source: report.LayerAdded, RootHash: e.Hash, Why: "added after this boot began", Next: nextTries}
		if aside {
			row.Why, row.Next = whyAside, ""
			if k.state() == layerlist.Tried {
				row.Why = whyDropped
			}
		} else if k.ID == r.LayerList {
			row.Why, row.Next = "not known", ""
		} else if k.List.Off(e.Name) {
			row.Next = nextOff
		}
		rows = append(rows, row)
	}
	return rows
}

func reported(r report.Report, e layerlist.Entry) bool {
	for _, l := range r.Layers {
		if l.Source == report.LayerAdded && l.Name == e.Name && l.RootHash == e.Hash {
			return true
		}
	}
	return false
}

// ToDo is what a person should do about the layers.
func ToDo(k Kept) []string {
	var list []string
	if k.Broken != nil {
		list = append(list, "the list of layers does not count, the last good one does (sealroot layer list; the next change writes it anew): "+k.Broken.Error())
	}
	if k.Aside() {
		why := "this image goes by its own"
		if k.state() == layerlist.Tried {
			why = "the boot with it did not come up"
		}
		list = append(list, "the last change of the layers was dropped, "+why+" (sealroot layer list; the next change takes its place, sealroot layer override NAME on tries it once more)")
	}
	if k.OnTrial() {
		list = append(list, "layers are on trial: run sealroot commit to keep them, the next boot drops them")
	}
	return list
}
