package main

import (
	"bytes"
	"encoding/binary"
)

// mark is the line that the real init writes into the kernel's log first.
const mark = "bench: the real init\n"

// firstInstruction returns a static program of some 250 bytes that writes mark
// to /dev/kmsg and becomes next: a runtime of its own would be measured too.
// The layout is that of ELF-64 (System V ABI, AMD64 supplement): one header,
// one segment that holds everything.
func firstInstruction(next string) []byte {
	const base, headers = 0x400000, 64 + 56
	code := []byte{
		0x48, 0x8d, 0x3d, 0, 0, 0, 0, // lea kmsg(%rip), %rdi
		0xbe, 1, 0, 0, 0, // mov $O_WRONLY, %esi
		0xb8, 2, 0, 0, 0, // mov $SYS_open, %eax
		0x0f, 0x05, // syscall
		0x89, 0xc7, // mov %eax, %edi
		0x48, 0x8d, 0x35, 0, 0, 0, 0, // lea mark(%rip), %rsi
		0xba, byte(len(mark)), 0, 0, 0, // mov $len, %edx
		0xb8, 1, 0, 0, 0, // mov $SYS_write, %eax
		0x0f, 0x05, // syscall
		0x48, 0x8d, 0x3d, 0, 0, 0, 0, // lea next(%rip), %rdi
		0x48, 0x8d, 0x74, 0x24, 8, // lea 8(%rsp), %rsi: our own argv
		0x31, 0xd2, // xor %edx, %edx: no environment
		0xb8, 59, 0, 0, 0, // mov $SYS_execve, %eax
		0x0f, 0x05, // syscall
		0xeb, 0xfe, // jmp .
	}
	// Where each lea ends, and what it points to.
	data := []byte{}
	for _, lea := range []struct {
		end  int
		text string
	}{{7, "/dev/kmsg\x00"}, {28, mark}, {47, next + "\x00"}} {
		target := len(code) + len(data)
		binary.LittleEndian.PutUint32(code[lea.end-4:], uint32(target-lea.end))
		data = append(data, lea.text...)
	}
	size := uint64(headers + len(code) + len(data))

	var b bytes.Buffer
	b.WriteString("\x7fELF\x02\x01\x01" + string(make([]byte, 9)))
	for _, v := range []any{
		uint16(2), uint16(62), uint32(1), // executable, x86-64, version
		uint64(base + headers), uint64(64), uint64(0), uint32(0), // entry, program headers, no sections
		uint16(64), uint16(56), uint16(1), uint16(0), uint16(0), uint16(0),
		uint32(1), uint32(5), uint64(0), uint64(base), uint64(base), size, size, uint64(0x1000), // PT_LOAD, r-x
		code, data,
	} {
		// Writing to a buffer cannot fail.
		_ = binary.Write(&b, binary.LittleEndian, v)
	}
	return b.Bytes()
}
