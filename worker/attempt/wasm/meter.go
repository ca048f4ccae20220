package wasm

import (
	"encoding/binary"
	"fmt"
	"slices"
)

// Metering makes a module stop when told, and let the Go scheduler in while it
// runs. Every loop and function takes from a count that the module keeps; when
// it is used up the module calls a function of ours, which goes through Go by
// growing the memory by nothing, and traps when the host has set a flag.
//
// The library has an option to the same end (WithCloseOnContextDone), which
// goes through Go at every turn of every loop: measured on the functions in
// examples/, modules take about seven times as long with it, and hardly longer
// metered.
const (
	// stopGlobal is the exported name of the flag: 1 ends the module.
	stopGlobal = "isobar.stop"
	// meterTurns is how many turns and calls pass between two looks at the
	// flag: some tens of microseconds.
	meterTurns = 10_000
	// meterBulk is what an instruction counts for that works on many bytes.
	meterBulk = 500
)

// The instructions that metering writes or looks for.
const (
	opUnreachable = 0x00
	opLoop        = 0x03
	opIf          = 0x04
	opEnd         = exprEnd
	opCall        = 0x10
	opDrop        = 0x1a
	opGlobalGet   = 0x23
	opGlobalSet   = 0x24
	opMemoryGrow  = 0x40
	opI32Const    = 0x41
	opI32LeS      = 0x4c
	opI32Sub      = 0x6b
	opBulk        = 0xfc
	opVector      = 0xfd

	typeI32   = 0x7f
	typeVoid  = 0x40
	typeFunc  = 0x60
	globalVar = 1
)

// section is one part of a module.
type section struct {
	id   byte
	body []byte
}

// sections are a module's parts in their order.
type sections []section

func (s sections) find(id byte) []byte {
	for _, part := range s {
		if part.id == id {
			return part.body
		}
	}
	return nil
}

// set replaces a section, or adds it where its order wants it.
func (s sections) set(id byte, body []byte) sections {
	part := section{id, body}
	// Sections come by number, but for the count of data before the code and
	// the tags before the globals, which are not set here.
	at := len(s)
	for i := range s {
		if s[i].id == id {
			s[i] = part
			return s
		}
		if at == len(s) && s[i].id > id && s[i].id != sectionTag {
			at = i
		}
	}
	return slices.Insert(s, at, part)
}

// meterer holds the numbers of what metering adds to a module.
type meterer struct {
	types, globals uint64 // how many are the module's own
	fuel, stop     uint64 // globals
	tick           uint64 // function, the first that is not the module's own
	memory         bool
}

// meter adds metering. A module without functions of its own stays as it is.
func meter(parts sections) (sections, error) {
	types, functions := parts.find(sectionType), parts.find(sectionFunction)
	exports, code := parts.find(sectionExport), parts.find(sectionCode)
	if types == nil || functions == nil || exports == nil || code == nil {
		return parts, nil
	}
	m := meterer{
		types:   countOf(types),
		globals: countOf(parts.find(sectionGlobal)),
		tick:    countOf(parts.find(sectionImport)) + countOf(functions),
		memory:  countOf(parts.find(sectionMemory)) > 0,
	}
	m.fuel, m.stop = m.globals, m.globals+1
	code, err := m.code(code)
	if err != nil {
		return nil, err
	}
	tickType := binary.AppendUvarint(nil, m.types)
	fuel := append(appendConst([]byte{typeI32, globalVar}, meterTurns), opEnd)
	stop := append(appendConst([]byte{typeI32, globalVar}, 0), opEnd)
	export := append(binary.AppendUvarint(nil, uint64(len(stopGlobal))), stopGlobal...)
	export = binary.AppendUvarint(append(export, 3), m.stop) // 3: a global

	parts = parts.set(sectionType, extend(types, []byte{typeFunc, 0, 0}))
	parts = parts.set(sectionFunction, extend(functions, tickType))
	parts = parts.set(sectionGlobal, extend(parts.find(sectionGlobal), fuel, stop))
	parts = parts.set(sectionExport, extend(exports, export))
	return parts.set(sectionCode, code), nil
}

// countOf reads how many things a section holds; none in no section.
func countOf(section []byte) uint64 {
	n, _ := binary.Uvarint(section)
	return n
}

// extend adds to the things that a section holds.
func extend(section []byte, more ...[]byte) []byte {
	n, size := binary.Uvarint(section)
	out := binary.AppendUvarint(nil, n+uint64(len(more)))
	return append(append(out, section[max(size, 0):]...), slices.Concat(more...)...)
}

func appendConst(out []byte, v int64) []byte {
	out = append(out, opI32Const)
	for v > 63 { // signed LEB128, of what is not negative
		out = append(out, byte(v)|0x80)
		v >>= 7
	}
	return append(out, byte(v))
}

func appendOp(out []byte, op byte, index uint64) []byte {
	return binary.AppendUvarint(append(out, op), index)
}

// code meters the functions and adds our own.
func (m *meterer) code(section []byte) ([]byte, error) {
	c := &cursor{rest: section}
	n := c.count()
	out := binary.AppendUvarint(make([]byte, 0, len(section)*5/4), n+1)
	for range n {
		body, err := m.function(c.take(c.uint()))
		if err != nil {
			return nil, err
		}
		out = binary.AppendUvarint(out, uint64(len(body)))
		out = append(out, body...)
	}
	tick := m.tickBody()
	out = binary.AppendUvarint(out, uint64(len(tick)))
	return append(out, tick...), c.err(sectionCode)
}

// tickBody is our function: let Go in, fill up the count, look at the flag.
func (m *meterer) tickBody() []byte {
	out := []byte{0} // no locals
	if m.memory {
		out = append(appendConst(out, 0), opMemoryGrow, 0, opDrop)
	}
	out = appendOp(appendConst(out, meterTurns), opGlobalSet, m.fuel)
	out = appendOp(out, opGlobalGet, m.stop)
	return append(out, opIf, typeVoid, opUnreachable, opEnd, opEnd)
}

// charge takes cost from the count and ticks when it is used up. It leaves the
// stack as it found it.
func (m *meterer) charge(out []byte, cost int64) []byte {
	out = appendOp(out, opGlobalGet, m.fuel)
	out = append(appendConst(out, cost), opI32Sub)
	out = appendOp(out, opGlobalSet, m.fuel)
	out = appendOp(out, opGlobalGet, m.fuel)
	out = append(appendConst(out, 0), opI32LeS, opIf, typeVoid)
	return append(appendOp(out, opCall, m.tick), opEnd)
}

// function meters one function: at its start, at every turn of a loop, and
// after what works on many bytes.
func (m *meterer) function(body []byte) ([]byte, error) {
	c := &cursor{rest: body}
	for range c.count() {
		c.uint()
		c.valueType()
	}
	out := make([]byte, 0, len(body)*5/4+32)
	out = m.charge(append(out, body[:len(body)-len(c.rest)]...), 1)
	for len(c.rest) > 0 {
		start := c.rest
		cost, err := m.instruction(c)
		if err != nil {
			return nil, err
		}
		out = append(out, start[:len(start)-len(c.rest)]...)
		if cost > 0 {
			out = m.charge(out, cost)
		}
	}
	return out, c.err(sectionCode)
}

// instruction reads one instruction with all that belongs to it, and says what
// it costs; 0 is free. The numbers are those of the WebAssembly core
// specification, version 2.0, section 5.4.
func (m *meterer) instruction(c *cursor) (cost int64, err error) {
	switch op := c.byte(); {
	case op <= 0x01, op == 0x05, op == opEnd, op == 0x0f, op == opDrop, op == 0x1b, op >= 0x45 && op <= 0xc4, op == 0xd1:
		// nothing follows
	case op == 0x02, op == opLoop, op == opIf:
		if number, ok := c.blockType(); ok {
			err = own("type", number, m.types)
		}
		if op == opLoop {
			cost = 1
		}
	case op == 0x0c, op == 0x0d, op >= 0x20 && op <= 0x22, op == 0x25, op == 0x26,
		op == 0x3f, op == opMemoryGrow:
		c.uint()
	case op == opCall, op == 0xd2: // and ref.func
		err = own("function", c.uint(), m.tick)
	case op == opI32Const, op == 0x42, op == 0xd0:
		c.signed()
	case op == opGlobalGet, op == opGlobalSet:
		err = own("global", c.uint(), m.globals)
	case op == 0x0e: // br_table
		for range c.count() + 1 {
			c.uint()
		}
	case op == 0x11: // call_indirect
		err = own("type", c.uint(), m.types)
		c.uint()
	case op >= 0x28 && op <= 0x3e: // loads and stores
		c.uint()
		c.uint()
	case op == 0x1c: // select with types
		for range c.count() {
			c.valueType()
		}
	case op == 0x43:
		c.take(4)
	case op == 0x44:
		c.take(8)
	case op == opBulk:
		return m.bulk(c)
	case op == opVector:
		return 0, c.vector()
	default:
		return 0, unsupported(uint64(op))
	}
	return cost, err
}

// own checks that what a function uses is of the module's own, not of what
// metering adds.
func own(kind string, number, count uint64) error {
	if number < count {
		return nil
	}
	return &ModuleError{Problem: fmt.Sprintf("is damaged: it uses a %s that it does not have", kind)}
}

// bulk reads the instructions on ranges of memory and tables, and those that
// convert without a trap.
func (m *meterer) bulk(c *cursor) (cost int64, err error) {
	// The library reads this number and that of vector instructions in ways of
	// its own, so only their one usual encoding passes: what it runs must be
	// what is read here.
	switch op := c.byte(); op {
	case 0, 1, 2, 3, 4, 5, 6, 7:
		return 0, nil
	case 9, 13, 16: // data.drop, elem.drop, table.size
		c.uint()
		return 0, nil
	case 11, 15, 17: // memory.fill, table.grow, table.fill
		c.uint()
		return meterBulk, nil
	case 8, 10, 12, 14: // memory.init, memory.copy, table.init, table.copy
		c.uint()
		c.uint()
		return meterBulk, nil
	default:
		return 0, unsupported(opBulk<<8 | uint64(op))
	}
}

// vector reads what follows the prefix of a vector instruction.
func (c *cursor) vector() error {
	switch op := c.byte(); {
	case op <= 11, op == 92, op == 93: // loads and stores
		c.uint()
		c.uint()
	case op == 12, op == 13: // a constant; a shuffle
		c.take(16)
	case op >= 21 && op <= 34: // a lane
		c.byte()
	case op >= 84 && op <= 91: // loads and stores of a lane
		c.uint()
		c.uint()
		c.byte()
	case op >= 0x80: // 128 and more take two bytes
		if c.byte() != 1 {
			return unsupported(opVector<<8 | uint64(op))
		}
	}
	return nil
}

func unsupported(op uint64) error {
	return &ModuleError{
		Problem: fmt.Sprintf("uses the instruction %#x, which is not supported", op),
		Hint:    "build for WebAssembly 2.0, without threads, exceptions or tail calls",
	}
}
