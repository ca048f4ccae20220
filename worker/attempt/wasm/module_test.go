package wasm

import (
	"context"
	"errors"
	"strings"
	"testing"

	"github.com/tetratelabs/wazero"

	"github.com/isobar-mesh/isobar/worker/attempt/attempttest"
)

// A tiny assembler: enough of the binary format to write modules that no
// compiler makes.

// module is a module with a function of type ()->(), exported as _start, and
// one page of memory; the given sections take the place of its own.
func module(sections ...section) []byte {
	own := []section{
		{1, []byte{1, 0x60, 0, 0}},
		{2, []byte{0}},
		{3, []byte{1, 0}},
		{4, []byte{0}},
		{5, []byte{1, 0, 1}},
		{7, exports("_start", 0, "memory", 2)},
		{9, []byte{0}},
		{10, nil},
	}
	out := []byte("\x00asm\x01\x00\x00\x00")
	for _, s := range own {
		for _, given := range sections {
			if given.id == s.id {
				s = given
			}
		}
		out = s.append(out)
	}
	for _, s := range sections {
		if s.id == 0 {
			out = s.append(out)
		}
	}
	return out
}

func (s section) append(out []byte) []byte {
	out = append(out, s.id, byte(len(s.body))|0x80, byte(len(s.body)>>7)) // two bytes of LEB128
	return append(out, s.body...)
}

// body is the code of the one function.
func body(code ...byte) section {
	code = append(append([]byte{0}, code...), 0x0b)
	return section{10, append([]byte{1, byte(len(code))}, code...)}
}

func memory(pages int) section {
	return section{5, []byte{1, 0, byte(pages) | 0x80, byte(pages >> 7)}}
}

// name is a custom section, which makes modules differ.
func name(s string) section { return section{0, append(str(s), 0)} }

func str(s string) []byte { return append([]byte{byte(len(s))}, s...) }

func exports(function string, index byte, mem string, memKind byte) []byte {
	n := byte(0)
	var out []byte
	if function != "" {
		n++
		out = append(append(out, str(function)...), 0, index)
	}
	if mem != "" {
		n++
		out = append(append(out, str(mem)...), memKind, 0)
	}
	return append([]byte{n}, out...)
}

func imports(from, name string, desc ...byte) section {
	return section{2, append(append(append([]byte{1}, str(from)...), str(name)...), desc...)}
}

const wasiName = "wasi_snapshot_preview1"

func TestValidate(t *testing.T) {
	t.Parallel()
	procExit := section{1, []byte{2, 0x60, 0, 0, 0x60, 1, 0x7f, 0}}
	shifted := section{7, exports("_start", 1, "memory", 2)}
	for _, test := range []struct {
		name   string
		module []byte
		want   string // "": valid
	}{
		{"smallest", module(body()), ""},
		{"WASI import", module(body(), procExit, shifted, imports(wasiName, "proc_exit", 0, 1)), ""},
		{"empty", nil, "is empty"},
		{"script", []byte("#!/bin/sh\necho\n"), "is not WebAssembly (build it as a WASI command"},
		{"magic only", []byte("\x00asm"), "is not WebAssembly"},
		{"component", []byte("\x00asm\x0d\x00\x01\x00"), "is a component"},
		{"cut short", module(body())[:20], "is cut short"},
		{"ill-typed", module(body(0x41, 1)), "is damaged"},
		{"large", append(module(body()), make([]byte, MaxModule)...), "is 33554"},
		{"foreign import", module(body(), procExit, shifted, imports("env", "now", 0, 1)), "imports env.now (only functions of wasi_snapshot_preview1"},
		{"unknown import", module(body(), procExit, shifted, imports(wasiName, "proc_spawn", 0, 1)), "proc_spawn, which does not exist"},
		{"other signature", module(body(), procExit, shifted, imports(wasiName, "proc_exit", 0, 0)), "proc_exit with another signature"},
		{"global import", module(body(), imports("env", "g", 3, 0x7f, 0)), "imports the global env.g (only"},
		{"table import", module(body(), imports("env", "t", 1, 0x70, 0, 1)), "imports the table env.t"},
		{"memory import", module(body(), section{5, []byte{0}}, imports("env", "m", 2, 0, 1)), "imports the memory env.m"},
		{"more locals than memory", module(section{10, []byte{1, 8, 1, 0xff, 0xff, 0xff, 0xff, 0x0f, 0x7f, 0x0b}}), "more than 50000 locals"},
		{"count of imports", module(body(), section{2, []byte{0xfc, 0xfc, 0xfc, 0x30}}), "is damaged: section 2 ends early"},
		{"count of elements", module(body(), section{9, []byte{1, 1, 0, 0xff, 0xff, 0xff, 0x7f}}), "is damaged: section 9 ends early"},
		{"count of tables", module(body(), section{4, append([]byte{17}, make([]byte, 60)...)}), "has 17 tables"},
		{"table beyond memory", module(body(), section{4, []byte{1, 0x70, 0, 0xff, 0xff, 0xff, 0x3f}}), "has a table of 134217727 entries"},
		{"start section", append(module(body()), 8, 1, 0), "has a start section"},
		{"section twice", append(module(body()), module(body())[8:]...), "section 1 is there twice"},
		{"tail call", module(body(0x12, 0)), "uses the instruction 0x12, which is not supported"},
		{"global of ours", module(body(0x41, 0, 0x24, 0)), "uses a global that it does not have"},
		{"no entry", module(body(), section{7, exports("run", 0, "memory", 2)}), "exports no function _start (build it"},
		{"library", module(body(), section{7, exports("_initialize", 0, "memory", 2)}), "is a library"},
		{"entry with parameters", module(body(), section{1, []byte{1, 0x60, 1, 0x7f, 0}}), "takes parameters"},
		{"no memory", module(body(), section{7, exports("_start", 0, "", 0)}), "exports no memory"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			err := Validate(test.module)
			if test.want == "" {
				if err != nil {
					t.Fatal(err)
				}
				return
			}
			if _, ok := errors.AsType[*ModuleError](err); !ok || !strings.Contains(err.Error(), test.want) {
				t.Fatalf("got %v, want a ModuleError that holds %q", err, test.want)
			}
		})
	}
}

func TestValidateGo(t *testing.T) {
	t.Parallel()
	if err := Validate(attempttest.Module(t)); err != nil {
		t.Fatal(err)
	}
}

// FuzzValidate: whatever comes is judged without a panic, and what passes
// compiles again.
func FuzzValidate(f *testing.F) {
	f.Add(module(body()))
	f.Add(module(body(0x00), imports("env", "g", 3, 0x7f, 0)))
	f.Add([]byte("\x00asm\x0d\x00\x01\x00"))
	f.Fuzz(func(t *testing.T, m []byte) {
		err := Validate(m)
		if err == nil {
			return
		}
		if _, ok := errors.AsType[*ModuleError](err); !ok {
			t.Fatalf("got %T: %v, want a ModuleError", err, err)
		}
	})
}

// FuzzMeter: a function is valid with metering when it is without, but for what
// is encoded in unusual ways.
func FuzzMeter(f *testing.F) {
	f.Add([]byte{0x03, 0x40, 0x0c, 0, 0x0b})                // loop
	f.Add([]byte{0x41, 0, 0x41, 0, 0x41, 1, 0xfc, 11, 0})   // memory.fill
	f.Add([]byte{0x02, 0x40, 0x41, 0, 0x0e, 1, 0, 0, 0x0b}) // br_table
	f.Add([]byte{0xfd, 12, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 0xfd, 21, 3, 0x1a})
	f.Add([]byte{0x42, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x80, 0x7f, 0x1a}) // i64.const
	f.Add([]byte{0x41, 0, 0xfd, 84, 0, 0, 1, 0x1a, 0x43, 0, 0, 0, 0, 0x1a, 0x44, 0, 0, 0, 0, 0, 0, 0, 0, 0x1a})
	f.Add([]byte{0x41, 0, 0x41, 1, 0x41, 1, 0x1c, 1, 0x7f, 0x1a, 0xd0, 0x70, 0xd1, 0x1a, 0xd2, 0, 0x1a})
	f.Add([]byte{0, 0xfd, 0x80, 0}) // read as two instructions by the library
	ctx := context.Background()
	r := wazero.NewRuntimeWithConfig(ctx, wazero.NewRuntimeConfigInterpreter())
	f.Cleanup(func() { _ = r.Close(ctx) })
	f.Fuzz(func(t *testing.T, code []byte) {
		if len(code) > 100 {
			return // more than the assembler takes
		}
		m := module(body(code...))
		plain, errPlain := r.CompileModule(ctx, m)
		if errPlain == nil {
			defer func() { _ = plain.Close(ctx) }()
		}
		errMetered := Validate(m)
		if errMetered != nil && strings.Contains(errMetered.Error(), "not supported") {
			return
		}
		if (errPlain == nil) != (errMetered == nil) {
			t.Fatalf("without metering: %v; with: %v", errPlain, errMetered)
		}
	})
}
