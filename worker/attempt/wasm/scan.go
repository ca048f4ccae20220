package wasm

import (
	"encoding/binary"
	"fmt"
	"slices"
)

// What a module may declare beyond its own size. The library allocates by the
// counts a module states before it reads what they count, and gives tables
// from the worker's heap; so a few bytes could otherwise take gigabytes.
const (
	maxLocals    = 50_000  // of one function; browsers have the same limit
	maxTables    = 16      // of one module
	maxTableSize = 1 << 20 // entries of one table, 8 bytes each
)

const (
	sectionCustom   = 0
	sectionType     = 1
	sectionImport   = 2
	sectionFunction = 3
	sectionTable    = 4
	sectionMemory   = 5
	sectionGlobal   = 6
	sectionExport   = 7
	sectionStart    = 8
	sectionElement  = 9
	sectionCode     = 10
	sectionData     = 11
	sectionTag      = 13
)

const exprEnd = 0x0b

// scan reads a module as far as its declared sizes go and returns it fit for
// the library: without its custom sections (names, debug data), with each table
// bounded to maxTableSize, and metered. It is lenient in the rest, which the
// library checks; its errors are *ModuleErrors.
func scan(module []byte) ([]byte, error) {
	var parts sections
	for c := (&cursor{rest: module[8:]}); len(c.rest) > 0; {
		id := c.byte()
		body := c.take(c.uint())
		if c.bad {
			return nil, &ModuleError{Problem: "is cut short"}
		}
		switch {
		case id == sectionCustom:
			continue
		case id == sectionStart:
			// It would run before the module can be told to stop.
			return nil, &ModuleError{Problem: "has a start section", Hint: "a command begins at its export " + entryPoint}
		case parts.find(id) != nil:
			return nil, &ModuleError{Problem: fmt.Sprintf("is damaged: section %d is there twice", id)}
		}
		body, err := scanSection(id, body)
		if err != nil {
			return nil, err
		}
		parts = append(parts, section{id, body})
	}
	parts, err := meter(parts)
	if err != nil {
		return nil, err
	}
	out := slices.Clone(module[:8])
	for _, part := range parts {
		out = append(out, part.id)
		out = binary.AppendUvarint(out, uint64(len(part.body)))
		out = append(out, part.body...)
	}
	return out, nil
}

func scanSection(id byte, body []byte) ([]byte, error) {
	c := &cursor{rest: body}
	var each func() error
	switch id {
	case sectionType:
		each = c.funcType
	case sectionImport:
		each = c.importEntry
	case sectionTable:
		return c.tables()
	case sectionElement:
		each = c.element
	case sectionCode:
		each = c.function
	case sectionData:
		each = c.data
	case sectionFunction, sectionMemory, sectionGlobal, sectionExport, sectionTag:
		c.count()
		return body, c.err(id)
	default: // one number, or unknown to the library too
		return body, nil
	}
	for range c.count() {
		if err := each(); err != nil {
			return nil, err
		}
		if c.bad {
			break
		}
	}
	return body, c.err(id)
}

// cursor reads the binary format. After a read beyond the end bad is set and
// all that follows reads as zero.
type cursor struct {
	rest []byte
	bad  bool
}

func (c *cursor) err(section byte) error {
	if c.bad {
		return &ModuleError{Problem: fmt.Sprintf("is damaged: section %d ends early", section)}
	}
	return nil
}

func (c *cursor) byte() byte {
	if b := c.take(1); len(b) == 1 {
		return b[0]
	}
	return 0
}

func (c *cursor) uint() uint64 {
	v, n := binary.Uvarint(c.rest)
	if n <= 0 {
		c.rest, c.bad = nil, true
		return 0
	}
	c.rest = c.rest[n:]
	return v
}

// signed passes over a signed number.
func (c *cursor) signed() {
	for range binary.MaxVarintLen64 {
		if c.byte()&0x80 == 0 {
			return
		}
	}
	c.rest, c.bad = nil, true
}

func (c *cursor) take(n uint64) []byte {
	if n > uint64(len(c.rest)) {
		c.rest, c.bad = nil, true
		return nil
	}
	b := c.rest[:n]
	c.rest = c.rest[n:]
	return b
}

// count reads how many things follow; each takes a byte at least.
func (c *cursor) count() uint64 {
	n := c.uint()
	if n > uint64(len(c.rest)) {
		c.rest, c.bad = nil, true
		return 0
	}
	return n
}

// valueType reads the type of a value; a reference type may name a heap type.
func (c *cursor) valueType() {
	if t := c.byte(); t == 0x63 || t == 0x64 {
		c.uint()
	}
}

// blockType reads the type of a block: none or a value's, or the number of a
// function's type, for which ok is true.
func (c *cursor) blockType() (number uint64, ok bool) {
	if len(c.rest) == 0 || c.rest[0]&0xc0 != 0x40 {
		return c.uint(), true
	}
	c.valueType()
	return 0, false
}

func (c *cursor) funcType() error {
	c.byte()
	for range 2 { // parameters and results
		for range c.count() {
			c.valueType()
		}
	}
	return nil
}

func (c *cursor) importEntry() error {
	from, name := c.take(c.uint()), c.take(c.uint())
	kind := c.byte()
	if c.bad {
		return nil
	}
	if kind != 0 {
		what := "tag"
		if kind < 4 {
			what = [...]string{"function", "table", "memory", "global"}[kind]
		}
		return &ModuleError{Problem: fmt.Sprintf("imports the %s %.64s.%.64s", what, from, name), Hint: offerHint}
	}
	c.uint()
	return nil
}

// tables returns the section with a bound on every table.
func (c *cursor) tables() ([]byte, error) {
	n := c.count()
	if n > maxTables {
		return nil, &ModuleError{Problem: fmt.Sprintf("has %d tables, more than %d", n, maxTables)}
	}
	out := binary.AppendUvarint(nil, n)
	for range n {
		start := c.rest
		initial := len(c.rest) > 0 && c.rest[0] == 0x40 // a table with an initializer
		if initial {
			c.take(2)
		}
		c.valueType()
		out = append(out, start[:len(start)-len(c.rest)]...)
		flags, least, most := c.byte(), c.uint(), uint64(maxTableSize)
		if flags&1 != 0 {
			most = min(most, c.uint())
		}
		if least > maxTableSize {
			return nil, &ModuleError{Problem: fmt.Sprintf("has a table of %d entries, more than %d", least, maxTableSize)}
		}
		out = append(out, flags|1)
		out = binary.AppendUvarint(out, least)
		out = binary.AppendUvarint(out, most)
		if initial {
			start = c.rest
			c.expr()
			out = append(out, start[:len(start)-len(c.rest)]...)
		}
	}
	return out, c.err(sectionTable)
}

func (c *cursor) element() error {
	flags := c.uint()
	if flags&1 == 0 { // active: goes into a table at an offset
		if flags&2 != 0 {
			c.uint()
		}
		c.expr()
	}
	if flags&3 != 0 {
		c.valueType() // or the kind of element, one byte too
	}
	for range c.count() {
		if flags&4 != 0 {
			c.expr()
		} else {
			c.uint()
		}
		if c.bad {
			break
		}
	}
	return nil
}

func (c *cursor) data() error {
	flags := c.uint()
	if flags == 2 {
		c.uint()
	}
	if flags != 1 {
		c.expr()
	}
	c.take(c.uint())
	return nil
}

func (c *cursor) function() error {
	body := &cursor{rest: c.take(c.uint())}
	locals := uint64(0)
	for range body.count() {
		n := body.uint()
		body.valueType()
		if locals += min(n, maxLocals+1); locals > maxLocals {
			return &ModuleError{Problem: fmt.Sprintf("has a function of more than %d locals", maxLocals)}
		}
	}
	c.bad = c.bad || body.bad
	return nil
}

// expr reads a constant expression.
func (c *cursor) expr() {
	for !c.bad {
		switch op := c.byte(); op {
		case exprEnd:
			return
		case 0x43: // f32.const
			c.take(4)
		case 0x44: // f64.const
			c.take(8)
		case 0xfd: // v128.const
			c.uint()
			c.take(16)
		case 0x41, 0x42, 0xd0: // i32.const, i64.const, ref.null
			c.signed()
		case 0x23, 0xd2: // global.get, ref.func
			c.uint()
		}
	}
}
