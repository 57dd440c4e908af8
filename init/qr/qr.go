// Package qr makes one kind of QR code (ISO/IEC 18004), of bytes that are secret:
// what it computes with is on the stack or wiped. Libraries take a string, and leave
// copies of it behind.
package qr

import (
	"errors"
	"fmt"
)

// Version 4 with error correction level L: 33 modules square, one block of 80 bytes of
// data and 20 of error correction, one alignment pattern. Byte mode takes 12 bits.
const (
	Size      = 33 // modules
	MaxBytes  = dataBytes - 2
	dataBytes = 80
	eccBytes  = 20
	alignment = 26 // centre of its pattern
)

// ErrTooLong: more than MaxBytes.
var ErrTooLong = errors.New("too long for a QR code")

// Code is a code; true is a dark module. The caller wipes it.
type Code struct {
	dark [Size][Size]bool // row, column
	used [Size][Size]bool // by a pattern, which holds no data
}

// Encode makes the code of text into c. Errors: ErrTooLong.
func (c *Code) Encode(text []byte) error {
	if len(text) > MaxBytes {
		return fmt.Errorf("%w: %d bytes", ErrTooLong, len(text))
	}
	*c = Code{}
	var words [dataBytes + eccBytes]byte
	defer clear(words[:])
	fill(&words, text)
	correct(&words)
	c.patterns()
	c.place(&words)
	return nil
}

// Wipe forgets what the code says.
func (c *Code) Wipe() { *c = Code{} }

// fill puts mode (4 bits, 4: bytes), length (8 bits), text, end (4 bits) and padding
// into the data words.
func fill(words *[dataBytes + eccBytes]byte, text []byte) {
	words[0] = 4<<4 | byte(len(text)>>4)
	words[1] = byte(len(text) << 4)
	for i, b := range text {
		words[i+1] |= b >> 4
		words[i+2] = b << 4
	}
	for i, at := 0, len(text)+2; at < dataBytes; i, at = i+1, at+1 {
		words[at] = [2]byte{0xec, 0x11}[i%2]
	}
}

// correct adds the Reed-Solomon words: the remainder of the data by the polynomial
// whose roots are the first powers of 2, in GF(256) modulo 0x11d.
func correct(words *[dataBytes + eccBytes]byte) {
	var divisor [eccBytes]byte // without its leading 1, highest power first
	divisor[eccBytes-1] = 1
	for i, root := 0, byte(1); i < eccBytes; i, root = i+1, times(root, 2) {
		for j := range divisor {
			divisor[j] = times(divisor[j], root)
			if j+1 < eccBytes {
				divisor[j] ^= divisor[j+1]
			}
		}
	}
	rest := words[dataBytes:]
	for _, b := range words[:dataBytes] {
		factor := b ^ rest[0]
		copy(rest, rest[1:])
		rest[eccBytes-1] = 0
		for j := range rest {
			rest[j] ^= times(divisor[j], factor)
		}
	}
}

// times multiplies in GF(256).
func times(a, b byte) byte {
	product := 0
	for bit := 7; bit >= 0; bit-- {
		product = product<<1 ^ product>>7*0x11d
		product ^= int(b>>bit&1) * int(a)
	}
	return byte(product)
}

func (c *Code) set(row, column int, dark bool) {
	if row >= 0 && row < Size && column >= 0 && column < Size {
		c.dark[row][column], c.used[row][column] = dark, true
	}
}

// square is a pattern of rings around a centre; dark tells which rings are.
func (c *Code) square(row, column, rings int, dark func(ring int) bool) {
	for y := -rings; y <= rings; y++ {
		for x := -rings; x <= rings; x++ {
			c.set(row+y, column+x, dark(max(x, -x, y, -y)))
		}
	}
}

// format says level L (1) and mask 0, with its BCH code, as the standard lists it.
const format = 0b111011111000100

// patterns draws what does not depend on the text.
func (c *Code) patterns() {
	for i := range Size {
		c.set(6, i, i%2 == 0)
		c.set(i, 6, i%2 == 0)
	}
	finder := func(ring int) bool { return ring != 2 && ring != 4 } // 4: the gap around it
	c.square(3, 3, 4, finder)
	c.square(3, Size-4, 4, finder)
	c.square(Size-4, 3, 4, finder)
	c.square(alignment, alignment, 2, func(ring int) bool { return ring != 1 })
	for i := range 15 {
		dark := format>>i&1 == 1
		switch { // beside the upper left finder
		case i < 6:
			c.set(i, 8, dark)
		case i < 8:
			c.set(i+1, 8, dark)
		case i == 8:
			c.set(8, 7, dark)
		default:
			c.set(8, 14-i, dark)
		}
		if i < 8 { // beside the two others
			c.set(8, Size-1-i, dark)
		} else {
			c.set(Size-15+i, 8, dark)
		}
	}
	c.set(Size-8, 8, true)
}

// place puts the words, highest bit first, into what is free: in columns of two
// modules, from the right, up and down in turn, around the timing pattern. Mask 0
// inverts each second module.
func (c *Code) place(words *[dataBytes + eccBytes]byte) {
	n := 0
	for right, up := Size-1, true; right > 0; right, up = right-2, !up {
		if right == 6 {
			right--
		}
		for i := range Size {
			row := i
			if up {
				row = Size - 1 - i
			}
			for column := right; column > right-2; column-- {
				if c.used[row][column] {
					continue
				}
				dark := (row+column)%2 == 0
				if n < 8*len(words) && words[n/8]>>(7-n%8)&1 == 1 {
					dark = !dark
				}
				c.dark[row][column] = dark
				n++
			}
		}
	}
}

// Quiet is the light margin around a code that readers need, in modules.
const Quiet = 4

// What Row gives: Columns characters in each of Rows lines.
const (
	Columns = Size + 2*Quiet
	Rows    = (Size + 2*Quiet + 1) / 2
)

// AppendRow appends line n of the code as a terminal shows it, two rows of modules in
// one of characters: light ones are drawn, white on black, whatever the terminal has.
// U+2588, U+2580 and U+2584 are in the Linux console's own font.
func (c *Code) AppendRow(line []byte, n int) []byte {
	line = append(line, "\x1b[0;1;37;40m"...)
	for x := range Columns {
		switch upper, lower := c.light(2*n, x), c.light(2*n+1, x); {
		case upper && lower:
			line = append(line, "█"...)
		case upper:
			line = append(line, "▀"...)
		case lower:
			line = append(line, "▄"...)
		default:
			line = append(line, ' ')
		}
	}
	return append(line, "\x1b[0m\r\n"...)
}

// light tells it of a module, with the margin around.
func (c *Code) light(row, column int) bool {
	row, column = row-Quiet, column-Quiet
	return row < 0 || row >= Size || column < 0 || column >= Size || !c.dark[row][column]
}
