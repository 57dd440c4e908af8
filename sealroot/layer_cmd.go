package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"

	"golang.org/x/sys/unix"

	"sealroot/init/config"
	"sealroot/init/report"
	"sealroot/sealroot/bootset"
	"sealroot/sealroot/install"
	"sealroot/sealroot/layers"
	"sealroot/sealroot/sharing"
	"sealroot/slots"
	"sealroot/slots/manifest"
	"sealroot/state"
	"sealroot/state/balance"
	"sealroot/state/resize"
	"sealroot/verity/osrelease"
	"sealroot/verity/signature"
)

// layerChange is one run of a command that changes the list of layers.
type layerChange struct {
	target
	cfg  config.Config
	kept layers.Kept
}

// changeLayers opens the machine and reads the list.
func (c *command) changeLayers(ctx context.Context) (layerChange, error) {
	t, err := c.changing(ctx, diskFlags{new(string), new(string)})
	if err != nil {
		return layerChange{}, err
	}
	ch := layerChange{target: t}
	if ch.cfg, ch.kept, err = c.layersNow(t.report); err == nil {
		err = ch.kept.MayChange()
	}
	if err != nil {
		t.close()
		return layerChange{}, err
	}
	return ch, nil
}

func (c *command) layersNow(r report.Report) (config.Config, layers.Kept, error) {
	cfg, err := c.env.configuration()
	if err == nil {
		cfg = cfg.WithDefaults()
		err = layers.Ready(cfg, r)
	}
	if err != nil {
		return cfg, layers.Kept{}, err
	}
	return cfg, layers.Load(c.env.volume(), r), nil
}

// layerPlace takes images of layers on the state partition.
type layerPlace interface {
	// Holds tells whether a layer is there, and as it should be on the medium.
	Holds(manifest.Layer) (bool, error)
	// Draft is an empty file without a name. Settle writes it out and tells whether it is
	// as it should be on the medium, Keep makes it the image of a layer then.
	Draft() (*os.File, error)
	Settle(draft *os.File, l manifest.Layer) (bool, error)
	Keep(draft *os.File, l manifest.Layer) error
}

func addLayer(c *command) action {
	name := c.flags.String("name", "", "name of the layer, where its image has more than one")
	return func(ctx context.Context, words []string) error { return c.addLayer(ctx, words[0], *name) }
}

// addLayer reads and writes the image without the lock, which a deadline may need meanwhile.
func (c *command) addLayer(ctx context.Context, path, name string) error {
	r, err := c.booted()
	if err != nil {
		return err
	}
	cfg, kept, err := c.layersNow(r)
	if err == nil {
		err = kept.MayChange()
	}
	if err == nil && len(cfg.LayersAllowed) == 0 {
		err = layers.MayAdd(cfg, name)
	}
	if err != nil {
		return err
	}
	place, err := c.layerPlace(r)
	if err != nil {
		return err
	}
	draft, err := place.Draft()
	if err != nil {
		return fmt.Errorf("cannot add %s: %w", path, err)
	}
	defer draft.Close()
	certs, err := signature.LoadCertificates(os.DirFS(c.env.LayerCerts))
	if err != nil {
		return fmt.Errorf("cannot read the certificates for layers: %w", err)
	}
	im, err := layers.Open(ctx, path, draft, c.roomForLayer, layers.Wanted{
		Name: name, Filesystem: cfg.Root.Filesystem, Certs: certs, Show: c.env.ShowLayer, Root: c.env.Root, Usr: cfg.Root.Usr(),
	})
	if err != nil {
		return err
	}
	if err := c.mayAdd(cfg, r, im); err != nil {
		return fmt.Errorf("cannot add %s: %w", path, err)
	}
	if err := c.tellClashes(r, im); err != nil {
		return fmt.Errorf("cannot add %s: %w", path, err)
	}
	whole, err := place.Settle(draft, im.Layer)
	if err == nil && !whole {
		err = install.ErrReadBack
	}
	if err != nil {
		return fmt.Errorf("cannot add %s: %w", path, err)
	}
	ch, err := c.changeLayers(ctx)
	if err != nil {
		return err
	}
	defer ch.close()
	list, err := ch.kept.Base().Added(im.Layer.Name, im.RootHash())
	if err != nil {
		return fmt.Errorf("cannot add %s: %w: %w", path, err, bootset.ErrRefused)
	}
	if err := placeLayer(place, draft, im.Layer); err != nil {
		return fmt.Errorf("cannot add %s: %w", path, err)
	}
	// crash point: a file that nobody needs, which a commit removes
	trial, err := ch.kept.Save(list)
	if err != nil {
		return err
	}
	if !trial {
		c.say("layer %s %s: is there already", im.Layer.Name, im.Release.ImageVersion)
		return nil
	}
	c.say("layer %s %s: on trial at the next boot, signed by %s; without a commit it is dropped by the boot after", im.Layer.Name, im.Release.ImageVersion, im.Signer)
	return nil
}

func (c *command) layerPlace(r report.Report) (layerPlace, error) {
	m, err := c.env.Open(Where{Report: r})
	if err != nil {
		return nil, err
	}
	defer m.Close()
	if l, ok := m.(interface{ Layers() install.Layers }); ok {
		if place, ok := l.Layers().(layerPlace); ok {
			return place, nil
		}
	}
	return nil, fmt.Errorf("this disk keeps no layers: %w", bootset.ErrRefused)
}

// placeLayer gives the copy of an image its name, unless the image is there.
func placeLayer(to layerPlace, draft *os.File, l manifest.Layer) error {
	there, err := to.Holds(l)
	if err != nil || there {
		return err
	}
	return to.Keep(draft, l)
}

// mayAdd holds a verified image against configuration and system.
func (c *command) mayAdd(cfg config.Config, r report.Report, im *layers.Image) error {
	if err := layers.MayAdd(cfg, im.Layer.Name); err != nil {
		return err
	}
	text, err := os.ReadFile(filepath.Join(c.env.Root, osrelease.Path))
	if err != nil {
		return err
	}
	root, err := osrelease.Parse(text)
	if err != nil {
		return err
	}
	return layers.Fits(im.Release, root, r.Root.KernelRelease)
}

// tellClashes refuses a layer that would take a directory of the root away, or let others
// than root write there, and says what else it does to the root's. Where an older image of
// the layer is in use the root shows what that has, so nothing is refused. Nor is it in an
// /etc that the machine writes: what was changed there lies above the layer.
func (c *command) tellClashes(r report.Report, im *layers.Image) error {
	inUse := slices.ContainsFunc(r.Layers, func(l report.Layer) bool { return l.Name == im.Layer.Name && l.LeftOut == "" })
	for i, clash := range im.Clashes {
		text := line(fmt.Sprintf("%s: layer %s %s; %s", clash.Path(), im.Layer.Name, clash.What(), clash.Remedy()))
		inEtc := im.MachineEtc && strings.HasPrefix(clash.Path()+"/", "/etc/")
		if clash.Bad() && !inUse && !inEtc {
			return fmt.Errorf("%s: %w", text, bootset.ErrRefused)
		}
		if i < clashesSaid {
			c.say("warning: %s", text)
		}
	}
	if more := len(im.Clashes) - clashesSaid; more > 0 {
		c.say("warning: %d more such places", more)
	}
	return nil
}

// clashesSaid bounds how many a command names.
const clashesSaid = 10

// roomForLayer tells whether the state partition has room for so many bytes.
func (c *command) roomForLayer(size int64) error {
	limits, err := sharing.LoadLimits(c.env.Limits)
	if err != nil {
		return err
	}
	dir, err := os.Open(c.env.State)
	if err != nil {
		return fmt.Errorf("cannot measure the state partition: %w", err)
	}
	defer dir.Close()
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(dir.Fd()), &st); err != nil {
		return fmt.Errorf("cannot measure the state partition: %w", err)
	}
	return layers.Room(size, int64(st.Bavail)*st.Bsize, keptFree(limits, state.Unit(dir), int64(st.Blocks)*st.Bsize))
}

// keptFree is what stays free of a partition of total bytes whose file system takes back
// in such units: as much as the volume leaves.
func keptFree(l balance.Limits, unit, total int64) int64 {
	return l.Keep(total, resize.KeepOutside(unit, total))
}

func removeLayer(c *command) action {
	return func(ctx context.Context, words []string) error {
		ch, err := c.changeLayers(ctx)
		if err != nil {
			return err
		}
		defer ch.close()
		name := words[0]
		if ch.kept.Base().Hash(name) == "" && ch.kept.List.Hash(name) == "" {
			return fmt.Errorf("no layer %q was added (see sealroot layer list): %w", name, bootset.ErrRefused)
		}
		trial, err := ch.kept.Remove(name)
		if err != nil {
			return err
		}
		// crash point: a file that nobody needs, which a commit removes
		c.say("layer %s: off the list, gone from the next boot on", name)
		if trial {
			c.say("what else was changed about the layers is on trial at the next boot")
		}
		c.dropLayers(ch.target)
		return nil
	}
}

func overrideLayer(c *command) action {
	return func(ctx context.Context, words []string) error {
		name, on := words[0], words[1] == "on"
		if !on && words[1] != "off" {
			return fmt.Errorf("%w: sealroot layer override NAME on|off", errUsage)
		}
		ch, err := c.changeLayers(ctx)
		if err != nil {
			return err
		}
		defer ch.close()
		k, base := ch.kept, ch.kept.Base()
		added := base.Hash(name) != "" || k.List.Hash(name) != ""
		if !added && !ch.cfg.HasLayer(name) {
			return fmt.Errorf("there is no layer %q (see sealroot layer list): %w", name, bootset.ErrRefused)
		}
		switch {
		case on && k.Aside() && k.List.Hash(name) != base.Hash(name):
			c.say("the last change of the layers is on trial once more at the next boot")
			return k.Retry()
		case on != base.Off(name) && !k.Aside():
			c.say("layer %s: is %s", name, words[1])
			return nil
		case !on:
			if err := layers.MayTurnOff(ch.cfg, added, name); err != nil {
				return err
			}
		}
		list, err := base.Turned(name, on)
		if err != nil {
			return fmt.Errorf("cannot turn off layer %s: %w: %w", name, err, bootset.ErrRefused)
		}
		trial, err := k.Save(list)
		if err != nil {
			return err
		}
		if !trial {
			c.say("layer %s: %s, as in the last good list, which counts again", name, words[1])
			return nil
		}
		c.say("layer %s: %s at the next boot, on trial; without a commit the boot after takes that back", name, words[1])
		return nil
	}
}

func listLayers(c *command) action {
	return func(context.Context, []string) error {
		r, err := c.booted()
		if err != nil {
			return err
		}
		_, kept, err := c.layersNow(r)
		if err != nil && !errors.Is(err, bootset.ErrRefused) {
			return err
		} // without a list there are the image's own
		rows := layers.Table(r, kept)
		c.result.Data = struct {
			Layers []layers.Row `json:"layers"`
		}{rows}
		if !c.json {
			printLayers(c, rows)
		}
		return nil
	}
}

func printLayers(c *command, rows []layers.Row) {
	if len(rows) == 0 {
		fmt.Fprintln(c.stdout, "no layers")
		return
	}
	w := tabwriter.NewWriter(c.stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "layer\tfrom\tversion\troot hash\tnow\tnext boot")
	for _, r := range rows {
		now := "active"
		if !r.Active {
			now = "out: " + r.Why
		}
		if r.Trial {
			now += ", on trial"
		}
		hash := cmp.Or(r.RootHash[:min(len(r.RootHash), 16)], "-")
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\n", r.Name, r.Source, cmp.Or(line(r.Version), "-"), hash, line(now), cmp.Or(r.Next, "the same"))
	}
	w.Flush()
}

// layersCommitted notes that this boot came up with the layers that it has.
func (c *command) layersCommitted(r report.Report) error {
	if r.LayerList == "" && !r.Slot.Trial || !c.keepsLayers(r) {
		return nil
	}
	changed, err := layers.Load(c.env.volume(), r).Commit()
	if errors.Is(err, layers.ErrUnproved) {
		c.say("%v", err)
		return nil
	}
	if err != nil {
		return fmt.Errorf("the layers of this boot are not committed, try again: %w", err)
	}
	if changed {
		c.say("the layers of this boot: committed")
	}
	return nil
}

// layersOnTrial tells whether this boot tries a change of the layers.
func (c *command) layersOnTrial(r report.Report) bool {
	return r.LayerTrial && c.keepsLayers(r) && layers.Load(c.env.volume(), r).OnTrial()
}

// keepsLayers tells whether this boot has a list that counts, as far as that is known.
func (c *command) keepsLayers(r report.Report) bool {
	_, _, err := c.layersNow(r)
	return !errors.Is(err, bootset.ErrRefused)
}

// giveUpLayers ends the trial of layers in a boot that is not good: the next one goes
// without them, and shows what the slot is worth. Nothing of this one is committed. The
// lock is held.
func (c *command) giveUpLayers(ctx context.Context, t target, why slots.Failure, reboot bool) error {
	c.say("%s, with layers on trial: the next boot goes without them, the slot is judged by that", why)
	if err := os.WriteFile(c.env.LayersFailed, []byte(line(why.String())), 0o600); err != nil {
		c.say("a commit could keep the layers still: %v", err)
	}
	if !reboot {
		return nil
	}
	return c.reboot(ctx, t)
}

// layersGivenUp refuses what would keep layers whose trial has failed in this boot. Its
// error is bootset.ErrRefused.
func (c *command) layersGivenUp() error {
	why, err := os.ReadFile(c.env.LayersFailed)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return fmt.Errorf("the layers on trial have failed in this boot (%s), restart to go without them: %w", line(string(why)), bootset.ErrRefused)
}

// layerTodo is what status says about the layers.
func (c *command) layerTodo(r report.Report) []string {
	_, kept, err := c.layersNow(r)
	if err != nil {
		return nil // degraded, or no list at all
	}
	return layers.ToDo(kept)
}

// tellLayers says which added layers a set of parts leaves out, as far as its manifest
// tells.
func (c *command) tellLayers(r report.Report, m manifest.Manifest) {
	for _, l := range r.Layers {
		if l.Source != report.LayerAdded || l.LeftOut != "" {
			continue
		}
		text, err := os.ReadFile(filepath.Join(c.env.Root, osrelease.ExtensionPath(l.Name)))
		if err != nil {
			continue
		}
		release, err := osrelease.Parse(text)
		if err == nil {
			err = layers.FitsSet(l.Name, release, m)
		}
		if err != nil {
			c.say("layer %s will be left out there: %v", l.Name, err)
		}
	}
}

// addedFiles are the images that the list needs, and those of what these images fall back to.
func (c *command) addedFiles(images []string) ([]string, error) {
	files, err := layers.Files(c.env.volume(), images)
	if err != nil {
		return nil, fmt.Errorf("nobody says which layers were added: %w", err)
	}
	return files, nil
}
