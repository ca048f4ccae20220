package meshtest_test

// wasmModule is a WASI command that writes a short text, assembled by hand so
// that no test waits for a compiler.
func wasmModule(text string) []byte {
	const i32 = 0x7f
	vector := func(items ...[]byte) []byte {
		out := []byte{byte(len(items))}
		for _, i := range items {
			out = append(out, i...)
		}
		return out
	}
	name := func(s string) []byte { return append([]byte{byte(len(s))}, s...) }
	join := func(parts ...[]byte) (out []byte) {
		for _, p := range parts {
			out = append(out, p...)
		}
		return out
	}
	// Every length below is under 128, one byte in LEB128.
	section := func(id byte, body []byte) []byte { return append([]byte{id, byte(len(body))}, body...) }
	// fd_write(1, 0, 1, 8): one piece, described at 0, to standard output.
	code := []byte{0, 0x41, 1, 0x41, 0, 0x41, 1, 0x41, 8, 0x10, 0, 0x1a, 0x0b}
	data := append([]byte{16, 0, 0, 0, byte(len(text)), 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}, text...)
	return join(
		[]byte("\x00asm\x01\x00\x00\x00"),
		section(1, vector([]byte{0x60, 4, i32, i32, i32, i32, 1, i32}, []byte{0x60, 0, 0})),
		section(2, vector(join(name("wasi_snapshot_preview1"), name("fd_write"), []byte{0, 0}))),
		section(3, []byte{1, 1}),
		section(5, []byte{1, 0, 1}),
		section(7, vector(join(name("memory"), []byte{2, 0}), join(name("_start"), []byte{0, 1}))),
		section(10, vector(append([]byte{byte(len(code))}, code...))),
		section(11, vector(join([]byte{0, 0x41, 0, 0x0b, byte(len(data))}, data))),
	)
}
