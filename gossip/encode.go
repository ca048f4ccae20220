package gossip

import (
	"fmt"
	"strings"
	"unicode/utf8"

	"google.golang.org/protobuf/proto"

	"github.com/isobar-mesh/isobar/internal/mesh"
	meshv1 "github.com/isobar-mesh/isobar/proto/isobar/mesh/v1"
)

// keepCarbonHours are carbon hours that outlive warm functions and longer
// forecasts: enough to defer work within a shift.
const keepCarbonHours = 6

// Cut says what Encode left out so that the digest fits. The zero value means
// that nothing was.
type Cut struct {
	Warm        int // warm functions, the coldest first
	CarbonHours int // hours of forecast, the furthest first
	MissingCode int // entries of MissingCode, from its tail
	Models      int // accelerator models, the fewest accelerators first
	HealthBytes int // bytes of the health reason
}

// Any reports whether anything was cut.
func (c Cut) Any() bool { return c != Cut{} }

// Encode validates d and returns its bytes, at most MaxEncoded of them, equal
// for equal digests. d is not changed. When d is too large, parts are cut in
// this order, each only as far as needed:
//
//  1. the warm list, from its tail (the coldest);
//  2. carbon hours beyond the sixth, the furthest first;
//  3. missing code, from its tail: a peer then believes that the code is here,
//     offers, and is refused by the guest;
//  4. carbon hours beyond the present one;
//  5. accelerator models, those with the fewest accelerators first. Up to
//     MaxModels models with names up to MaxModelName never come to this.
//
// Identity, version, health, CPU and memory, backlog, prices and runtimes are
// never cut; a health reason longer than MaxHealth is shortened first of all.
// The error wraps ErrInvalid.
func Encode(d *meshv1.Digest) ([]byte, Cut, error) {
	if err := Validate(d); err != nil {
		return nil, Cut{}, err
	}
	var cut Cut
	if len(d.Health) > MaxHealth || proto.Size(d) > MaxEncoded {
		d = proto.CloneOf(d)
		cut = shrink(d)
	}
	// Deterministic is for equal bytes from equal digests within one binary.
	b, err := proto.MarshalOptions{Deterministic: true}.Marshal(d)
	if err != nil {
		return nil, Cut{}, fmt.Errorf("gossip: encode digest of %s: %w", d.Cell, err)
	}
	return b, cut, nil
}

// shrink applies the rule of Encode to d.
func shrink(d *meshv1.Digest) Cut {
	var cut Cut
	if n := len(d.Health); n > MaxHealth {
		d.Health = shorten(d.Health, MaxHealth)
		cut.HealthBytes = n - len(d.Health)
	}
	over := func() int { return proto.Size(d) - MaxEncoded }

	d.Warm, cut.Warm = cutFixed(d.Warm, over())
	for len(d.Carbon) > keepCarbonHours && over() > 0 {
		d.Carbon = d.Carbon[:len(d.Carbon)-1]
		cut.CarbonHours++
	}
	d.MissingCode, cut.MissingCode = cutFixed(d.MissingCode, over())
	for len(d.Carbon) > 1 && over() > 0 {
		d.Carbon = d.Carbon[:len(d.Carbon)-1]
		cut.CarbonHours++
	}
	for len(d.Gpus) > 0 && over() > 0 {
		cutModel(d)
		cut.Models++
	}
	return cut
}

// cutFixed drops as many 8-byte entries from the tail as cover over bytes.
func cutFixed(list []uint64, over int) ([]uint64, int) {
	if over <= 0 || len(list) == 0 {
		return list, 0
	}
	n := min((over+7)/8, len(list))
	return list[:len(list)-n], n
}

// cutModel drops the accelerator model with the fewest in total, the last of
// equals, from the models and from each capacity.
func cutModel(d *meshv1.Digest) {
	least := 0
	for i := range d.Gpus {
		if gpuAt(d.Total, i) <= gpuAt(d.Total, least) {
			least = i
		}
	}
	d.Gpus = append(d.Gpus[:least], d.Gpus[least+1:]...)
	for _, c := range []*meshv1.CapacityDigest{d.Total, d.Free, d.Widest} {
		if c != nil && least < len(c.Gpus) {
			c.Gpus = append(c.Gpus[:least], c.Gpus[least+1:]...)
		}
	}
}

// shorten cuts s to at most limit bytes, between characters.
func shorten(s string, limit int) string {
	if len(s) <= limit {
		return s
	}
	for limit > 0 && !utf8.RuneStart(s[limit]) {
		limit--
	}
	return s[:limit]
}

// Decode reads bytes that Encode made. It refuses what is larger than
// MaxEncoded (ErrTooLarge), what is no digest, and what Validate refuses
// (ErrInvalid). Fields of a later release are kept, so that a digest passes
// unharmed through a server that does not know them yet.
func Decode(b []byte) (*meshv1.Digest, error) {
	if len(b) > MaxEncoded {
		return nil, fmt.Errorf("gossip: decode digest of %d bytes: %w", len(b), ErrTooLarge)
	}
	d := new(meshv1.Digest)
	if err := proto.Unmarshal(b, d); err != nil {
		return nil, fmt.Errorf("gossip: decode digest: %w: %w", ErrInvalid, err)
	}
	if err := Validate(d); err != nil {
		return nil, err
	}
	return d, nil
}

// Validate reports why d may not be published or believed; the error wraps
// ErrInvalid.
func Validate(d *meshv1.Digest) error {
	if d == nil {
		return fmt.Errorf("gossip: validate digest: %w: none", ErrInvalid)
	}
	bad := func(format string, args ...any) error {
		return fmt.Errorf("gossip: validate digest of %q: %w: %s", d.Cell, ErrInvalid, fmt.Sprintf(format, args...))
	}
	for _, f := range []struct {
		name, value string
		limit       int
		required    bool
	}{
		{"cell", d.Cell, MaxCellName, true},
		{"region", d.Region, MaxRegionName, true},
		{"incarnation", d.Incarnation, MaxIncarnation, true},
		{"zone", d.Zone, MaxZoneName, false},
	} {
		switch {
		case f.required && f.value == "":
			return bad("%s is empty", f.name)
		case len(f.value) > f.limit:
			return bad("%s of %d bytes, at most %d", f.name, len(f.value), f.limit)
		}
	}
	if d.Term == 0 || d.Sequence == 0 {
		return bad("version %d.%d starts at 1.1", d.Term, d.Sequence)
	}
	return validateLists(d, bad)
}

func validateLists(d *meshv1.Digest, bad func(string, ...any) error) error {
	const lanes = int(mesh.Batch) + 1
	if len(d.Backlog) > lanes || len(d.WaitMs) > lanes {
		return bad("backlog of %d and wait of %d lanes, there are %d", len(d.Backlog), len(d.WaitMs), lanes)
	}
	if len(d.Runtimes) > MaxRuntimes {
		return bad("%d runtimes, at most %d", len(d.Runtimes), MaxRuntimes)
	}
	for _, r := range d.Runtimes {
		if r == "" || len(r) > MaxRuntimeName {
			return bad("runtime name %q", shorten(r, MaxRuntimeName))
		}
	}
	for i, m := range d.Gpus {
		if m == nil || m.Model == "" {
			return bad("accelerator %d has no model", i)
		}
		for _, other := range d.Gpus[:i] {
			if other.Model == m.Model {
				return bad("accelerator model %q twice", shorten(m.Model, MaxModelName))
			}
		}
	}
	for _, c := range []*meshv1.CapacityDigest{d.Total, d.Free, d.Widest} {
		if why := badCapacity(c, len(d.Gpus)); why != "" {
			return bad("%s", why)
		}
	}
	return validateText(d, bad)
}

// mostHeld bounds what a digest tells of costs, so that sums cannot overflow.
const mostHeld = 1 << 60

// badCapacity says what is wrong with one capacity, "" for nothing.
func badCapacity(c *meshv1.CapacityDigest, models int) string {
	if c == nil {
		return ""
	}
	if len(c.Gpus) > models {
		return fmt.Sprintf("counts of %d accelerator models, %d are named", len(c.Gpus), models)
	}
	if c.CpuMilli < 0 || c.MemoryMib < 0 {
		return "negative capacity"
	}
	for _, n := range c.Gpus {
		if n < 0 {
			return "negative count of accelerators"
		}
	}
	for _, list := range [][]int64{c.Most, c.Held} {
		if len(list) > 3 {
			return "more than three amounts of a cost"
		}
		for _, n := range list {
			if n < 0 || n > mostHeld {
				return "a cost beyond any cell"
			}
		}
	}
	return ""
}

// validateText keeps bytes that are no text out of logs and terminals; it also
// makes marshalling total, since protobuf refuses them.
func validateText(d *meshv1.Digest, bad func(string, ...any) error) error {
	texts := []string{d.Cell, d.Region, d.Incarnation, d.Zone, d.Health}
	texts = append(texts, d.Runtimes...)
	for _, m := range d.Gpus {
		texts = append(texts, m.Model)
	}
	for _, t := range texts {
		if !utf8.ValidString(t) || strings.ContainsFunc(t, func(r rune) bool { return r < ' ' || r == 0x7f }) {
			return bad("a name holds bytes that are no text")
		}
	}
	return nil
}
