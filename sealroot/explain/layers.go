package explain

import (
	"fmt"

	"sealroot/init/config"
	"sealroot/init/report"
	"sealroot/slots/gpt"
	"sealroot/state/layout"
)

// sourceOf says where a layer of the configuration comes from, and who vouches for it.
func sourceOf(l config.Layer, slot string) string {
	switch l.From {
	case config.LayerFromVolume:
		return fmt.Sprintf("the directory %s/%s, which nobody has signed", volume, layout.LayerDir(l.Name))
	case config.LayerFromPartition:
		return fmt.Sprintf("partition %s, root hash %.16s…, by the configuration", gpt.LayerLabel(l.Name, slot, gpt.Data), l.Hash)
	}
	return imageOf(l.Name, l.Hash) + ", by the configuration"
}

func imageOf(name, hash string) string {
	return fmt.Sprintf("%s/%s, root hash %.16s…", layout.State, layout.LayerImage(name, hash), hash)
}

func withoutLayer(onFailure string) string {
	if onFailure == config.LayerSkip {
		return "left out if it cannot be used (on_failure: skip)"
	}
	return "if it cannot be used, the slot does not start (on_failure: stop)"
}

// layers tells of each layer that this boot has, or should have, from the lowest up.
func (e *Explanation) layers(r report.Report, c config.Config) {
	for _, l := range r.Layers {
		name, from, otherwise := l.Name, imageOf(l.Name, l.RootHash)+", added on this machine (sealroot layer list)", withoutLayer(config.LayerSkip)
		for _, own := range c.Layers {
			if own.Name == l.Name {
				from, otherwise = sourceOf(own, r.Slot.Name), withoutLayer(own.OnFailure)
			}
		}
		if l.Version != "" {
			name += " " + l.Version
		}
		switch {
		case l.LeftOut == report.LayerOff:
			e.note("layer %s is turned off on this machine: %s", name, from)
		case l.LeftOut != "":
			e.note("layer %s is left out: %s; %s", name, l.LeftOut, from)
		default:
			e.note("layer %s is over the image: %s; its extension-release fits root and kernel; %s", name, from, otherwise)
		}
	}
	for _, f := range r.Failures {
		e.note("PID 1 failed at %q: %s", f.Stage, f.Error)
	}
}
