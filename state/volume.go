package state

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"sealroot/state/balloon"
	"sealroot/state/balloon/files"
	"sealroot/state/ext4"
	"sealroot/state/layout"
	"sealroot/state/luks2"
)

// Device is a block device that this program made and removes again.
type Device interface {
	io.ReaderAt
	io.WriterAt
	Sync() error
	Path() string   // e.g. /dev/dm-1
	Number() string // "major:minor"
	Size() int64    // bytes
	Remove() error
}

// Devices makes the two block devices between the file and its file system.
// KernelDevices is the real one.
type Devices interface {
	// Loop shows img as a block device of 4096-byte sectors, without a second
	// cache in between.
	Loop(img *os.File) (Device, error)
	// Crypt puts dm-crypt over a device. The volume key reaches the kernel
	// through a keyring and cannot be read back from the device's table.
	Crypt(name string, target luks2.CryptTarget, on Device, volumeKey []byte) (Device, error)
}

// Volume is the opened encrypted volume.
type Volume struct {
	Header *luks2.Header
	// KeyID identifies the volume key without giving it away: what is measured
	// (conventions: systemd's PCR 15 record).
	KeyID    []byte
	Reserved int64 // bytes allocated in the outer file system
	// ReadOnly is set when the reservation could not be restored: writing
	// could then fail in the middle of anything.
	ReadOnly error
	// Unsettled is set where there was no room to reserve something: Settle has to, or has
	// balloons hold it. Until then nothing but the mount may write, and a file system that
	// needs a check is ReadOnly.
	Unsettled error
	// Unreplayed says why Mount left the journal alone: what is in the volume is older than
	// what was written to it last, and nothing makes it writable in this boot.
	Unreplayed error
	// Superblock is the inner file system's when the volume was opened. Mended: a power
	// cut had torn it.
	Superblock Superblock
	Mended     bool

	image *os.File
	loop  Device
	crypt Device
	// givenBack are the ranges of the image that were not reserved anew: Settle.
	givenBack []balloon.Range
}

// Device is the block device that holds the file system.
func (v *Volume) Device() string { return v.crypt.Path() }

// Close removes the devices and closes the file. The file system must have
// been unmounted before. Errors: ErrMapped.
func (v *Volume) Close() error {
	err := v.detach()
	if v.image != nil {
		err = errors.Join(err, v.image.Close())
	}
	v.image = nil
	return err
}

// detach removes the devices. Errors: ErrMapped.
func (v *Volume) detach() error {
	var errs []error
	if v.crypt != nil {
		if err := v.crypt.Remove(); err != nil {
			errs = append(errs, fmt.Errorf("%w: %w", ErrMapped, err))
		}
	}
	if v.loop != nil {
		errs = append(errs, v.loop.Remove())
	}
	v.crypt, v.loop = nil, nil
	return errors.Join(errs...)
}

// DeviceName is the device-mapper name of the volume.
const DeviceName = "sealroot-state"

// attach makes the devices. On error nothing is left behind but the image,
// which stays the caller's.
func (v *Volume) attach(devs Devices, volumeKey []byte) error {
	loop, err := devs.Loop(v.image)
	if err != nil {
		return fmt.Errorf("cannot attach %s: %w", ImageName, err)
	}
	target, err := v.Header.CryptTarget(loop.Size())
	if err != nil {
		return errors.Join(fmt.Errorf("cannot map %s: %w", ImageName, err), loop.Remove())
	}
	crypt, err := devs.Crypt(DeviceName, target, loop, volumeKey)
	if err != nil {
		return errors.Join(fmt.Errorf("cannot map %s: %w", ImageName, err), loop.Remove())
	}
	v.loop, v.crypt = loop, crypt
	v.KeyID = luks2.VolumeKeyID(volumeKey, DeviceName, v.Header.UUID())
	return nil
}

// Unlock finds the volume key of a header that the strict reader accepted. The
// caller of Open gets the ladder of methods to itself; Open wipes the key.
type Unlock func(l *LockedVolume) (volumeKey []byte, err error)

// LockedVolume is a volume that is about to be opened.
type LockedVolume struct {
	Header *luks2.Header
	disk   luks2.Disk
	size   int64
}

// Rewrite brings h, which was made from l.Header, to the file that Open holds and
// has locked, and makes it l.Header. Errors: those of luks2.Apply; then the disk has
// the old header or the new one, whole.
func (l *LockedVolume) Rewrite(h *luks2.Header, rand io.Reader) error {
	h, err := luks2.Apply(l.disk, l.size, l.Header, h, rand)
	if err != nil {
		return err
	}
	l.Header = h
	return nil
}

// Open opens encrypted.img in dir. The inner file system is inspected through
// the mapped device before anything mounts it, and the reservation it needs is
// restored if a copy of the file lost it. File and devices get the size that size asks
// for, whatever they had. Errors: ErrNoImage, ErrNotImage, ErrInUse, ErrDamaged,
// ErrMapped, those of luks2.Read and of unlock.
func Open(dir *os.File, devs Devices, size DeviceSize, unlock Unlock) (*Volume, error) {
	v := &Volume{}
	image, err := OpenImage(dir)
	if errors.Is(err, unix.EROFS) {
		v.ReadOnly = fmt.Errorf("%w; restart once the state partition can be written to", err)
		image, err = openLocked(dir, unix.O_RDONLY)
	}
	if err != nil {
		return nil, err
	}
	v.image = image
	if err := v.open(dir, devs, size, unlock); err != nil {
		return nil, errors.Join(err, v.Close())
	}
	return v, nil
}

func (v *Volume) open(dir *os.File, devs Devices, device DeviceSize, unlock Unlock) error {
	info, err := v.image.Stat()
	if err != nil {
		return fmt.Errorf("cannot inspect %s: %w", ImageName, err)
	}
	if v.Header, err = luks2.Read(v.image, info.Size()); err != nil {
		return fmt.Errorf("cannot use %s: %w", ImageName, err)
	}
	locked := &LockedVolume{Header: v.Header, disk: v.image, size: info.Size()}
	key, err := unlock(locked)
	if err != nil {
		return err
	}
	defer clear(key)
	v.Header = locked.Header
	size := info.Size()
	if device != Classic {
		size = v.stepUp(dir, size)
	}
	if err := v.attach(devs, key); err != nil {
		return err
	}
	if err := v.restore(dir, size, device.longest(dir, size)); err != nil {
		return err
	}
	if device != Classic {
		if size, err = v.stepDown(devs, key, size); err != nil {
			return err
		}
	}
	sb := v.Superblock
	if end := device.end(size, int64(v.Header.DataOffset())+sb.Bytes, !sb.NeedsRecovery && !v.Mended); end > size || end < size && (v.ReadOnly == nil || v.Unsettled != nil) {
		if end > size {
			// Where its end was missing, what was written there may be: the check is the judge,
			// in this boot, or in whichever has room for it.
			if sb.Type == Ext4 { // btrfs finds by its checksums what is missing
				if err := ext4.MarkErrors(v.crypt); err != nil {
					return err
				}
			}
			v.Superblock.Errors = true
			// crash point: the file is too short still, or longer; it is checked
		}
		if err := v.endAt(devs, key, end); err != nil {
			return err
		}
	} else if n, err := allocated(v.image); err == nil && n > v.Reserved && v.ReadOnly == nil && OuterFilesystem(v.image) == Ext4 {
		// A growing that was cut may have reserved room behind the end, where ext4 makes no
		// hole: to set the length, also the same one, gives it back, if it can.
		_ = v.image.Truncate(end)
	}
	if v.ReadOnly == nil && v.Superblock.NeedsCheck() {
		v.ReadOnly = v.Unsettled // a check would write where nothing is reserved
	}
	return unlockImage(v.image)
}

// stepUp makes the file's apparent size larger where the file system in it has grown, what it
// has given back included, for ext4 gets inodes only behind its end: the devices take their
// size from it when they are made, and only then. Without it there is less room to grow in
// this boot, and no harm.
func (v *Volume) stepUp(dir *os.File, size int64) int64 {
	reserved, err := allocated(v.image)
	if err != nil {
		return size
	}
	total, err := sizeOf(dir)
	if err != nil {
		return size
	}
	record, _ := files.ReadRecord(dir, v.Header.UUID())
	want := min(apparentFor(reserved+balloon.Total(record.Given)), total) / BlockSize * BlockSize
	if want > size && v.image.Truncate(want) == nil {
		return want
	}
	return size
}

// stepDown makes file and devices smaller where the file system has become smaller, by so much
// that it is worth to make them anew: their size is what a stray resize can claim. Nothing
// is behind the file system but what a journal that has to be replayed may put there.
func (v *Volume) stepDown(devs Devices, volumeKey []byte, size int64) (int64, error) {
	sb := v.Superblock
	want := balloon.Up(apparentFor(int64(v.Header.DataOffset())+sb.Bytes), BlockSize)
	if want > size/8*7 || sb.NeedsRecovery || v.Mended || v.ReadOnly != nil {
		return size, nil
	}
	return want, v.endAt(devs, volumeKey, want)
}

// restore makes the invariant true again: what the inner file system spans is
// reserved, but for what it has given back by the record in dir, and nothing beyond. The
// file has size bytes; what spans more than longest is no file system of ours.
func (v *Volume) restore(dir *os.File, size, longest int64) error {
	// What cannot be mended, the mount says: it may still work without the journal.
	mended, _ := Mend(v.crypt, v.crypt.Size())
	v.Mended = mended
	sb, err := ReadSuperblock(v.crypt)
	if err != nil {
		return fmt.Errorf("cannot use the file system in %s: %w: %w", ImageName, ErrDamaged, err)
	}
	begin := int64(v.Header.DataOffset())
	end := begin + sb.Bytes
	if end < begin || end > longest {
		return fmt.Errorf("cannot use a file system that ends at byte %d of %d in %s: %w", end, longest, ImageName, ErrDamaged)
	}
	if mended && sb.Type == Btrfs {
		sb.Errors = true // put together from two transactions, maybe: the check is the judge
	}
	if sb.Type == Ext4 { // btrfs moves what it has; it gives back by getting smaller
		record, _ := files.ReadRecord(dir, v.Header.UUID())
		v.givenBack = balloon.Within(record.Given, begin, size)
	}
	v.Superblock = sb
	want := balloon.Without([]balloon.Range{{Start: 0, End: end}}, v.givenBack)
	v.Reserved = balloon.Total(want)
	if copied, err := CopiedOnWrite(v.image, end); len(copied) > 0 || err != nil {
		v.ReadOnly = fmt.Errorf("%d MiB of %s are not reserved, btrfs writes them elsewhere; delete snapshots of /state/%s, then sealroot state repair: %w",
			balloon.Total(copied)>>20, ImageName, layout.ImageSubvolume, errors.Join(ErrCopied, err))
		return nil
	}
	if v.ReadOnly != nil {
		return nil
	}
	if err := v.reserve(want); errors.Is(err, ErrNoRoom) {
		if v.Unsettled = err; !v.holdLater(want) {
			v.ReadOnly = err
		}
		return nil
	} else if err != nil {
		v.ReadOnly = fmt.Errorf("%w; once that is mended, sealroot state repair, or restart", err)
		return nil
	}
	if sb.NeedsRecovery {
		// The journal may hold a larger size than this superblock: until it
		// was replayed, what lies beyond is not known to be unused.
		return nil
	}
	if n, err := allocated(v.image); err == nil && n > v.Reserved {
		_ = Release(v.image, balloon.Up(end, Unit(v.image)), size) // else too much is reserved
	}
	return nil
}

// keepOutside is what restoring a reservation leaves free on the state partition: this
// boot writes there too, and so does the journal of a volume that is read-only.
const keepOutside = 16 << 20

// holes are what of ranges of the file, in order, is not reserved. errors.ErrUnsupported:
// that is in too many pieces, and some of them may be.
func (v *Volume) holes(list []balloon.Range) ([]balloon.Range, error) {
	if len(list) == 0 {
		return nil, nil
	}
	there, err := files.Reserved(v.image, list[0].Start, list[len(list)-1].End)
	return balloon.Without(list, there), err
}

// reserve reserves ranges of the file, in order. Errors: ErrNoRoom, then mostly nothing was.
func (v *Volume) reserve(list []balloon.Range) error {
	holes, err := v.holes(list)
	if err != nil && !errors.Is(err, errors.ErrUnsupported) { // the kernel finds out
		return err
	}
	missing := balloon.Total(holes)
	if missing == 0 {
		return nil
	}
	if free, ferr := freeIn(v.image); ferr != nil {
		return ferr
	} else if err == nil && missing > free-keepOutside {
		return fmt.Errorf("cannot reserve %d MiB for %s, %d MiB are free; free space on /state, then sealroot state repair, or restart: %w", missing>>20, ImageName, free>>20, ErrNoRoom)
	}
	for _, r := range holes {
		if err := Reserve(v.image, r.Start, r.Bytes()); err != nil {
			return err
		}
	}
	return nil
}

// Settle is what is left to do once the file system is mounted, with its root
// directory open: what the journal has made it larger by is reserved, and of what the
// record says was given back, all that no balloon holds. The record lies where anybody
// may have written it; what is believed are the balloons. When that fails, the volume
// has to become read-only (ReadOnly says so), before anything else is written to it. dir is
// that of Open.
func (v *Volume) Settle(dir, root *os.File) {
	if v.ReadOnly != nil || v.Superblock.Type != Ext4 { // what btrfs has in its log does not change its size
		return
	}
	had := v.Superblock.Bytes
	err := v.settle(root)
	if errors.Is(err, ErrNoRoom) {
		v.Unsettled = err
		err = v.hold(root, had, err)
	}
	if v.ReadOnly = err; err == nil && v.Unsettled != nil {
		v.keepHeld(dir)
	}
}

func (v *Volume) settle(root *os.File) error {
	sb, err := ext4.ReadSuperblock(v.crypt)
	for try := 0; errors.Is(err, ext4.ErrSuperblock) && try < 20; try++ {
		time.Sleep(time.Millisecond) // the kernel may just be writing it
		sb, err = ext4.ReadSuperblock(v.crypt)
	}
	if err != nil {
		return err
	}
	begin := int64(v.Header.DataOffset())
	bytes := int64(sb.Bytes())
	if bytes > v.crypt.Size() { // made so just when the devices were cut; the next boot sees it
		return fmt.Errorf("its journal has made its file system larger than %s; restart: %w", ImageName, ErrDamaged)
	}
	before, end := begin+v.Superblock.Bytes, begin+bytes
	if end <= before && len(v.givenBack) == 0 {
		return nil
	}
	list, err := files.List(root, bytes)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	held := balloon.Both(v.givenBack, balloon.Shift(files.Held(list), begin))
	want := balloon.Without([]balloon.Range{{Start: 0, End: end}}, held)
	v.Superblock.Bytes, v.Reserved = bytes, balloon.Total(want)
	if err := v.reserve(balloon.Without(want, balloon.Without([]balloon.Range{{Start: 0, End: before}}, v.givenBack))); err != nil {
		return err
	}
	v.givenBack = held
	return nil
}

// uuidText is the text form of 16 random bytes as a version 4 UUID.
func uuidText(b [16]byte) string {
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[0:4], b[4:6], b[6:8], b[8:10], b[10:16])
}

// mixedReader gives randomness of which an attacker has to know all sources.
type mixedReader struct {
	sources []io.Reader
}

// MixRandom returns a reader whose bytes depend on all sources: the hash of
// what each of them gives. At a machine's first boot one source alone (the
// kernel's pool, or the TPM) may be weak.
func MixRandom(sources ...io.Reader) io.Reader { return &mixedReader{sources} }

// Read fills p.
func (m *mixedReader) Read(p []byte) (int, error) {
	for n := 0; n < len(p); n += sha256.Size {
		h := sha256.New()
		var block [sha256.Size]byte
		for _, s := range m.sources {
			if _, err := io.ReadFull(s, block[:]); err != nil {
				return 0, fmt.Errorf("cannot read randomness: %w", err)
			}
			h.Write(block[:])
		}
		copy(p[n:], h.Sum(block[:0]))
		clear(block[:])
	}
	return len(p), nil
}
