package wasm

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"strings"

	"github.com/tetratelabs/wazero"
	"github.com/tetratelabs/wazero/api"
	wasi "github.com/tetratelabs/wazero/imports/wasi_snapshot_preview1"
)

// MaxModule is the largest module in bytes.
const MaxModule = 32 << 20

const (
	pageSize   = 64 << 10
	entryPoint = "_start"
	memoryName = "memory"
)

// ModuleError says why a module can't be a function.
type ModuleError struct {
	// Problem is what is wrong, as the rest of a sentence that starts with
	// "the module".
	Problem string
	// Hint is what to do about it; "" when there is nothing to add.
	Hint string
}

func (e *ModuleError) Error() string {
	s := "wasm: check module: it " + e.Problem
	if e.Hint != "" {
		s += " (" + e.Hint + ")"
	}
	return s
}

const (
	buildHint = "build it as a WASI command; in Go: GOOS=wasip1 GOARCH=wasm go build"
	offerHint = "only functions of " + wasi.ModuleName + " are offered"
)

// Validate checks that a module can be a function: it is well-formed
// WebAssembly, imports only functions of WASI preview 1, and exports a memory
// and the entry point of a command. It runs nothing of the module. The error
// is a *ModuleError; a module that passes can be prepared and run.
func Validate(module []byte) error {
	// The interpreter's front end checks the same as the compiler's and is
	// several times faster, as no machine code is made.
	ctx := context.Background()
	r := wazero.NewRuntimeWithConfig(ctx, wazero.NewRuntimeConfigInterpreter())
	defer func() { _ = r.Close(ctx) }() // It holds nothing but memory.
	host, err := wasi.NewBuilder(r).Compile(ctx)
	if err != nil {
		return fmt.Errorf("wasm: check module: %w", err)
	}
	_, err = compile(ctx, r, host.ExportedFunctions(), module)
	return err
}

// compile compiles a module that passes every check of Validate. host is what
// the WASI module offers.
func compile(ctx context.Context, r wazero.Runtime, host map[string]api.FunctionDefinition, module []byte) (wazero.CompiledModule, error) {
	if err := checkHeader(module); err != nil {
		return nil, err
	}
	module, err := scan(module)
	if err != nil {
		return nil, err
	}
	compiled, err := r.CompileModule(ctx, module)
	if err != nil {
		return nil, &ModuleError{Problem: "is damaged: " + err.Error()}
	}
	if err := checkShape(compiled, host); err != nil {
		_ = compiled.Close(ctx) // The check's error is the one to tell.
		return nil, err
	}
	return compiled, nil
}

func checkHeader(module []byte) error {
	switch {
	case len(module) == 0:
		return &ModuleError{Problem: "is empty"}
	case len(module) > MaxModule:
		return &ModuleError{
			Problem: fmt.Sprintf("is %d bytes, more than %d", len(module), MaxModule),
			Hint:    "strip it; in Go: -ldflags='-s -w'",
		}
	case !bytes.HasPrefix(module, []byte("\x00asm")) || len(module) < 8:
		return &ModuleError{Problem: "is not WebAssembly", Hint: buildHint}
	case bytes.HasPrefix(module[4:], []byte{0x0d, 0, 1, 0}):
		return &ModuleError{
			Problem: "is a component",
			Hint:    "only core modules with WASI preview 1 run; target wasm32-wasip1 in place of wasip2",
		}
	}
	return nil
}

func checkShape(m wazero.CompiledModule, host map[string]api.FunctionDefinition) error {
	for _, f := range m.ImportedFunctions() {
		from, name, _ := f.Import()
		offered, ok := host[name]
		switch {
		case from != wasi.ModuleName:
			return &ModuleError{Problem: fmt.Sprintf("imports %s.%s", from, name), Hint: offerHint}
		case !ok:
			return &ModuleError{Problem: fmt.Sprintf("imports %s.%s, which does not exist", from, name)}
		case !slices.Equal(f.ParamTypes(), offered.ParamTypes()) || !slices.Equal(f.ResultTypes(), offered.ResultTypes()):
			return &ModuleError{Problem: fmt.Sprintf("imports %s.%s with another signature", from, name)}
		}
	}
	start, ok := m.ExportedFunctions()[entryPoint]
	switch {
	case !ok:
		_, reactor := m.ExportedFunctions()["_initialize"]
		if reactor {
			return &ModuleError{Problem: "is a library (it exports _initialize, not " + entryPoint + ")", Hint: buildHint}
		}
		return &ModuleError{Problem: "exports no function " + entryPoint, Hint: buildHint}
	case len(start.ParamTypes()) > 0 || len(start.ResultTypes()) > 0:
		return &ModuleError{Problem: "exports a " + entryPoint + " that takes parameters or returns a value"}
	}
	if _, ok := m.ExportedMemories()[memoryName]; !ok {
		return &ModuleError{Problem: "exports no memory named " + memoryName}
	}
	return nil
}

// trapName takes the name of the trap out of an error of the library, which
// goes on with a stack trace.
func trapName(err error) string {
	first, _, _ := strings.Cut(err.Error(), "\n")
	if _, after, ok := strings.Cut(first, "wasm error: "); ok {
		return after
	}
	return first
}
