package strictyaml

import (
	"fmt"
	"math"
	"strconv"
	"strings"
)

// Size is a number of bytes, written "64MiB", "1GiB" or a plain number of
// bytes. Units are powers of 1,024: KiB, MiB, GiB, TiB.
type Size int64

var sizeUnits = [...]struct { //nolint:gochecknoglobals // a constant table
	name  string
	bytes int64
}{{"TiB", 1 << 40}, {"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10}, {"B", 1}}

// UnmarshalText reads a size.
func (s *Size) UnmarshalText(text []byte) error {
	word := strings.TrimSpace(string(text))
	number, unit := word, int64(1)
	for _, u := range sizeUnits {
		if rest, ok := strings.CutSuffix(word, u.name); ok {
			number, unit = strings.TrimSpace(rest), u.bytes
			break
		}
	}
	n, err := strconv.ParseInt(number, 10, 64)
	if err != nil || n < 0 || n > math.MaxInt64/unit {
		return fmt.Errorf("must be a size such as 64MiB or 1GiB, got %q", word)
	}
	*s = Size(n * unit)
	return nil
}

// MarshalText writes the size in its largest exact unit.
func (s Size) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// MarshalYAML writes the size as one word.
func (s Size) MarshalYAML() ([]byte, error) { return []byte(s.String()), nil }

func (s Size) String() string {
	for _, u := range sizeUnits {
		if s != 0 && int64(s)%u.bytes == 0 {
			return strconv.FormatInt(int64(s)/u.bytes, 10) + u.name
		}
	}
	return strconv.FormatInt(int64(s), 10)
}
