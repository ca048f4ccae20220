package strictcsv_test

import (
	"bytes"
	"compress/gzip"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/isobar-mesh/isobar/internal/strictcsv"
)

func packed(t *testing.T, text string) string {
	t.Helper()
	var b bytes.Buffer
	z := gzip.NewWriter(&b)
	if _, err := z.Write([]byte(text)); err != nil {
		t.Fatal(err)
	}
	if err := z.Close(); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// read sums the second column of a table of two.
func read(r io.Reader, most int64) (sum float64, err error) {
	t, err := strictcsv.Open(r, "t.csv", "test", most)
	if err != nil {
		return 0, err
	}
	if err := errors.Join(t.Require("a", "b"), t.Unique()); err != nil {
		return 0, err
	}
	for {
		more, err := t.Next()
		if err != nil || !more {
			return sum, err
		}
		x, cause := strictcsv.Decimal(t.Field(t.Column("b")), 100)
		if cause != nil {
			return 0, t.Fault(t.Column("b"), cause)
		}
		sum += x
	}
}

func TestReads(t *testing.T) {
	t.Parallel()
	const text = "a,b\r\nx,1\r\n\"y\nz\",2.5\r\n"
	for name, in := range map[string]string{
		"lines as in Windows": text, "as in Unix": strings.ReplaceAll(text, "\r", ""), "no last line": strings.TrimSuffix(text, "\r\n"),
		"byte order mark": "\ufeff" + text, "gzip": packed(t, "\ufeff"+text),
	} {
		if sum, err := read(strings.NewReader(in), 1000); sum != 3.5 || err != nil {
			t.Errorf("%s: %v, %v", name, sum, err)
		}
	}
}

func TestErrors(t *testing.T) {
	t.Parallel()
	whole := packed(t, "a,b\nx,1\n")
	for _, tt := range []struct {
		name, in, want string
		cause          error
	}{
		{"empty", "", "test: read t.csv:1: a: missing column", strictcsv.ErrMissingColumn},
		{"missing", "b\n1\n", "test: read t.csv:1: a: missing column", strictcsv.ErrMissingColumn},
		{"twice", "a,b,a\n1,1,1\n", "test: read t.csv:1: a: duplicate column", strictcsv.ErrDuplicateColumn},
		{"no rows", "a,b\n", "test: read t.csv:1: no rows", strictcsv.ErrNoRows},
		{"short", "a,b\n1,1\n1\n", "test: read t.csv:3: not a row of the table: wrong number of fields", strictcsv.ErrSyntax},
		{"quote", "a,b\n\"1,1\n", "test: read t.csv:2: not a row of the table", strictcsv.ErrSyntax},
		{"bad header", "\"a,b\n", "test: read t.csv:1: not a row of the table", strictcsv.ErrSyntax},
		{"blank", "a,b\n1,\n", "test: read t.csv:2: b: is required", strictcsv.ErrRequired},
		{"word", "a,b\n1,nan\n", `test: read t.csv:2: b: not a number: "nan"`, strictcsv.ErrNotANumber},
		{"hexadecimal", "a,b\n1,0x1\n", `b: not a number: "0x1"`, strictcsv.ErrNotANumber},
		{"two points", "a,b\n1,1.1.1\n", `b: not a number: "1.1.1"`, strictcsv.ErrNotANumber},
		{"negative", "a,b\n1,-1\n", `b: must be 0 or more: "-1"`, strictcsv.ErrNegative},
		{"too negative", "a,b\n1,-1e999\n", `b: must be 0 or more: "-1e999"`, strictcsv.ErrNegative},
		{"high", "a,b\n1,101\n", `b: out of range: "101"`, strictcsv.ErrTooHigh},
		{"too high", "a,b\n1,1e999\n", `b: out of range: "1e999"`, strictcsv.ErrTooHigh},
		{"long", "a,b\n1," + strings.Repeat("9", 70) + "\n", `b: out of range: "` + strings.Repeat("9", 60) + `…"`, strictcsv.ErrTooHigh},
		{"after a field of two lines", "a,b\n\"1\n2\",x\n", `test: read t.csv:3: b: not a number: "x"`, strictcsv.ErrNotANumber},
		{"too large", "a,b\n" + strings.Repeat("x,1\n", 1000), "test: read t.csv:1: file too large", strictcsv.ErrTooLarge},
		{"cut gzip", whole[:len(whole)-6], "unexpected EOF", io.ErrUnexpectedEOF},
		{"broken gzip", "\x1f\x8b\x08\x00", "test: read t.csv:1: unexpected EOF", io.ErrUnexpectedEOF},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			_, err := read(strings.NewReader(tt.in), 1000)
			if _, ok := errors.AsType[*strictcsv.Error](err); !ok || !errors.Is(err, tt.cause) || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
	_, err := read(io.MultiReader(strings.NewReader("a,b\n1,2\n"), iotest.ErrReader(io.ErrClosedPipe)), 1000)
	if !errors.Is(err, io.ErrClosedPipe) || !strings.Contains(err.Error(), "t.csv:3") {
		t.Errorf("a reader that fails: %v", err)
	}
}

func TestWhole(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]error{
		"0": nil, "7": nil, "8": strictcsv.ErrTooHigh, "": strictcsv.ErrRequired, "-1": strictcsv.ErrNotWhole, "1.5": strictcsv.ErrNotWhole,
		"1" + strings.Repeat("0", 30): strictcsv.ErrTooHigh, "x": strictcsv.ErrNotWhole,
	} {
		if _, err := strictcsv.Whole(in, 7); !errors.Is(err, want) {
			t.Errorf("%q: %v, want %v", in, err, want)
		}
	}
}

func TestDecimalIsNotMinusZero(t *testing.T) {
	t.Parallel()
	if x, err := strictcsv.Decimal("-0", 1); err != nil || 1/x < 0 {
		t.Errorf("%v, %v", x, err)
	}
}
