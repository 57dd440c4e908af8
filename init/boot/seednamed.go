package boot

import (
	"os"
	"slices"

	"sealroot/state/binds"
	"sealroot/state/seed"
)

// seedNamed fills directories that somebody made in the volume, to be bound by their
// names, and that are empty, with what the image has there: bound as they are they would
// hide that. It returns those that could not be filled, and stay unbound. Places in /var
// and /home are left out: what they would hide is the machine's, not the image's.
func (b *boot) seedNamed(volume *os.File) (unfilled []string) {
	if b.volume.readOnly() {
		return nil
	}
	names, _, err := directories(volume, -1)
	if err != nil {
		return nil // as whoever binds them finds out
	}
	names = slices.DeleteFunc(names, func(name string) bool { return b.hasPlace(encryptedDir, name) })
	list, _ := binds.Names(names)
	for _, d := range list {
		if d.Upper || binds.Within(d.To, "/home", "/var") {
			continue
		}
		if err := b.fill(volume, d); err != nil {
			b.warn("%s is not bound: %v", d.To, err)
			unfilled = append(unfilled, d.Name)
		}
	}
	return unfilled
}

func (b *boot) fill(volume *os.File, d binds.Bind) error {
	_, src, err := b.content(d.To)
	if err != nil {
		return nil // nothing there that could be hidden; or the bind fails, too
	}
	defer src.Close()
	if names, _ := src.Readdirnames(1); len(names) == 0 {
		return nil
	}
	filled, stats, err := seed.Fill(volume, d.Name, src)
	if filled {
		b.sys.Log.Info("state: %s filled from the image, %d entries, %d MiB", d.To, stats.Entries, stats.Bytes>>20)
	}
	return err
}
