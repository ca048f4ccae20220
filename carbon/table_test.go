package carbon_test

import (
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/isobar-mesh/isobar/carbon"
)

const small = `datetime_utc,SE-SE1,DE
2022-01-01T00:00:00Z,15.71,216.56
2022-01-01T01:00:00Z,15.76,220.88
2022-01-01T02:00:00Z,0,3e2
`

func at(s string) time.Time {
	t, err := time.Parse(time.RFC3339, s)
	if err != nil {
		panic(err)
	}
	return t
}

func packed(t testing.TB, text string) []byte {
	t.Helper()
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	if _, err := io.WriteString(w, text); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestTableAnswers(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "small.csv.gz")
	if err := os.WriteFile(path, packed(t, "\ufeff"+small), 0o600); err != nil {
		t.Fatal(err)
	}
	got, err := carbon.ReadFile(path, carbon.Average)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"DE", "SE-SE1"}, got.Zones()); diff != "" {
		t.Error(diff)
	}
	if s, e := got.Start(), got.End(); !s.Equal(at("2022-01-01T00:00:00Z")) || !e.Equal(at("2022-01-01T03:00:00Z")) {
		t.Errorf("from %v to %v", s, e)
	}
	for _, tt := range []struct {
		zone, at, hour string
		want           float64
		extrapolated   bool
	}{
		{"SE-SE1", "2022-01-01T00:00:00Z", "2022-01-01T00:00:00Z", 15.71, false},
		{"SE-SE1", "2022-01-01T00:59:59.999Z", "2022-01-01T00:00:00Z", 15.71, false},
		{"DE", "2022-01-01T02:30:00+01:00", "2022-01-01T01:00:00Z", 220.88, false},
		{"DE", "2022-01-01T02:59:59Z", "2022-01-01T02:00:00Z", 300, false},
		{"DE", "2022-01-01T03:00:00Z", "2022-01-01T03:00:00Z", 300, true},
		{"SE-SE1", "2522-01-01T03:00:00Z", "2522-01-01T03:00:00Z", 0, true},
	} {
		r, err := got.At(tt.zone, at(tt.at))
		if err != nil {
			t.Fatal(err)
		}
		want := carbon.Reading{
			Zone: tt.zone, Hour: at(tt.hour), Intensity: tt.want, Kind: carbon.Average,
			Source: "file " + path, Extrapolated: tt.extrapolated,
		}
		if diff := cmp.Diff(want, r); diff != "" {
			t.Errorf("%s at %s (-want +got):\n%s", tt.zone, tt.at, diff)
		}
	}
	if _, err := got.At("FR", got.Start()); !errors.Is(err, carbon.ErrUnknownZone) {
		t.Errorf("unknown zone: %v", err)
	}
	if _, err := got.At("DE", got.Start().Add(-1)); !errors.Is(err, carbon.ErrOutside) {
		t.Errorf("before the start: %v", err)
	}
	if err := got.Require("DE", "SE-SE1"); err != nil {
		t.Error(err)
	}
	if err := got.Require("DE", "FR"); !errors.Is(err, carbon.ErrMissingColumn) || err.Error() != "carbon: read "+path+":1: FR: missing column" {
		t.Errorf("require: %v", err)
	}
}

func TestTableIsStrict(t *testing.T) {
	t.Parallel()
	const head = "datetime_utc,SE-SE1,DE\n"
	const row0 = "2022-01-01T00:00:00Z,1,2\n"
	for _, tt := range []struct {
		name, text string
		line       int
		field      string
		cause      error
	}{
		{"empty", "", 1, "datetime_utc", carbon.ErrMissingColumn},
		{"no time column", "time,DE\n", 1, "datetime_utc", carbon.ErrMissingColumn},
		{"no zone", "datetime_utc\n", 1, "zone", carbon.ErrMissingColumn},
		{"zone without a name", "datetime_utc,,DE\n", 1, "column 2", carbon.ErrMissingColumn},
		{"zone with a space", "datetime_utc, DE\n", 1, "column 2", carbon.ErrMissingColumn},
		{"zone twice", "datetime_utc,DE,SE-SE1,DE\n", 1, "DE", carbon.ErrDuplicateColumn},
		{"time twice", "datetime_utc,DE,datetime_utc\n", 1, "datetime_utc", carbon.ErrDuplicateColumn},
		{"no rows", head, 1, "", carbon.ErrNoRows},
		{"field missing", head + "2022-01-01T00:00:00Z,1\n", 2, "", carbon.ErrSyntax},
		{"field too many", head + row0 + "2022-01-01T01:00:00Z,1,2,3\n", 3, "", carbon.ErrSyntax},
		{"open quote", head + row0 + "\"2022-01-01T01:00:00Z,1,2\n", 3, "", carbon.ErrSyntax},
		{"not a time", head + "yesterday,1,2\n", 2, "datetime_utc", carbon.ErrBadTime},
		{"no zone of time", head + "2022-01-01T00:00:00,1,2\n", 2, "datetime_utc", carbon.ErrBadTime},
		{"not UTC", head + "2022-01-01T00:00:00+01:00,1,2\n", 2, "datetime_utc", carbon.ErrBadTime},
		{"not a full hour", head + "2022-01-01T00:30:00Z,1,2\n", 2, "datetime_utc", carbon.ErrBadTime},
		{"hour twice", head + row0 + row0, 3, "datetime_utc", carbon.ErrDuplicateHour},
		{"unsorted", head + row0 + "2021-12-31T23:00:00Z,1,2\n", 3, "datetime_utc", carbon.ErrUnsorted},
		{"gap", head + row0 + "2022-01-01T02:00:00Z,1,2\n", 3, "datetime_utc", carbon.ErrGap},
		{"empty value", head + "2022-01-01T00:00:00Z,1,\n", 2, "DE", carbon.ErrNotANumber},
		{"NaN", head + "2022-01-01T00:00:00Z,NaN,2\n", 2, "SE-SE1", carbon.ErrNotANumber},
		{"infinite", head + "2022-01-01T00:00:00Z,1,+Inf\n", 2, "DE", carbon.ErrNotANumber},
		{"hexadecimal", head + "2022-01-01T00:00:00Z,1,0x1p4\n", 2, "DE", carbon.ErrNotANumber},
		{"a word", head + row0 + "2022-01-01T01:00:00Z,1,n/a\n", 3, "DE", carbon.ErrNotANumber},
		{"two dots", head + "2022-01-01T00:00:00Z,1,1.2.3\n", 2, "DE", carbon.ErrNotANumber},
		{"negative", head + "2022-01-01T00:00:00Z,1,-0.1\n", 2, "DE", carbon.ErrNegative},
		{"negative beyond range", head + "2022-01-01T00:00:00Z,1,-1e999\n", 2, "DE", carbon.ErrNegative},
		{"another unit", head + "2022-01-01T00:00:00Z,1,250000\n", 2, "DE", carbon.ErrTooHigh},
		{"beyond range", head + "2022-01-01T00:00:00Z,1,1e999\n", 2, "DE", carbon.ErrTooHigh},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			_, err := carbon.ReadTable(strings.NewReader(tt.text), "bad.csv", carbon.Average)
			var bad *carbon.ParseError
			if !errors.As(err, &bad) {
				t.Fatalf("got %v", err)
			}
			if bad.File != "bad.csv" || bad.Line != tt.line || bad.Field != tt.field || !errors.Is(err, tt.cause) {
				t.Errorf("got %s:%d field %q: %v, want line %d field %q: %v", bad.File, bad.Line, bad.Field, bad.Err, tt.line, tt.field, tt.cause)
			}
			if !strings.HasPrefix(err.Error(), fmt.Sprintf("carbon: read bad.csv:%d:", tt.line)) {
				t.Errorf("message %q", err)
			}
		})
	}
}

func TestTableReadErrors(t *testing.T) {
	t.Parallel()
	whole := packed(t, small)
	for _, tt := range []struct {
		name  string
		from  io.Reader
		cause error
	}{
		{"cut gzip", bytes.NewReader(whole[:len(whole)-6]), io.ErrUnexpectedEOF},
		{"reader fails", io.MultiReader(strings.NewReader(small), iotest.ErrReader(io.ErrClosedPipe)), io.ErrClosedPipe},
		{"too large", &endless{}, carbon.ErrTooLarge},
	} {
		_, err := carbon.ReadTable(tt.from, "bad.csv", carbon.Average)
		var bad *carbon.ParseError
		if !errors.As(err, &bad) || !errors.Is(err, tt.cause) {
			t.Errorf("%s: got %v, want %v", tt.name, err, tt.cause)
		}
	}
	if _, err := carbon.ReadTable(strings.NewReader(small), "x", "mean"); !errors.Is(err, carbon.ErrUnknownKind) {
		t.Errorf("unknown kind: %v", err)
	}
	if _, err := carbon.ReadFile(filepath.Join(t.TempDir(), "none.csv"), carbon.Average); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("missing file: %v", err)
	}
}

// endless is a header whose last zone never ends.
type endless struct{ begun bool }

func (e *endless) Read(b []byte) (int, error) {
	if !e.begun {
		e.begun = true
		return copy(b, "datetime_utc,"), nil
	}
	for i := range b {
		b[i] = 'x'
	}
	return len(b), nil
}

// TestPublishedTable reads the year that a checkout may have beside it.
func TestPublishedTable(t *testing.T) {
	t.Parallel()
	const path = "../../shared/data/electricitymaps-2022/carbon-intensity-hourly-2022.csv.gz"
	if _, err := os.Stat(path); err != nil {
		t.Skipf("skipped: carbon table of 2022: %v", err)
	}
	got, err := carbon.ReadFile(path, carbon.Average)
	if err != nil {
		t.Fatal(err)
	}
	if n := got.End().Sub(got.Start()); n != 8760*time.Hour || len(got.Zones()) != 36 {
		t.Errorf("%v of %d zones", n, len(got.Zones()))
	}
	if err := got.Require("SE-SE1", "US-MIDA-PJM", "IN-MH"); err != nil {
		t.Error(err)
	}
	r, err := got.At("US-MIDA-PJM", at("2022-12-31T23:59:00Z"))
	if err != nil || r.Extrapolated || r.Intensity <= 0 {
		t.Errorf("last hour: %+v, %v", r, err)
	}
}

func FuzzReadTable(f *testing.F) {
	f.Add([]byte(small))
	f.Add(packed(f, small))
	f.Add([]byte("\ufeffDE,datetime_utc\r\n\"1\",2022-01-01T00:00:00+00:00\r\n"))
	f.Add([]byte("datetime_utc,DE\n2022-01-01T00:00:00Z,-0\n"))
	f.Add([]byte("datetime_utc,DE\n9999-12-31T23:00:00Z,1\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		got, err := carbon.ReadTable(bytes.NewReader(data), "fuzz.csv", carbon.Marginal)
		if err != nil {
			var bad *carbon.ParseError
			if !errors.As(err, &bad) || bad.Line < 1 {
				t.Fatalf("not a ParseError with a line: %v", err)
			}
			return
		}
		again := rewrite(t, got)
		second, err := carbon.ReadTable(strings.NewReader(again), "fuzz.csv", carbon.Marginal)
		if err != nil {
			t.Fatalf("what was read cannot be read again: %v\n%s", err, again)
		}
		if third := rewrite(t, second); third != again {
			t.Fatalf("read twice, two tables:\n%s\n%s", again, third)
		}
	})
}

// rewrite prints a table from its answers, checking each.
func rewrite(t *testing.T, table *carbon.Table) string {
	var b strings.Builder
	b.WriteString("datetime_utc")
	for _, zone := range table.Zones() {
		b.WriteString(`,"` + strings.ReplaceAll(zone, `"`, `""`) + `"`)
	}
	for hour := table.Start(); hour.Before(table.End()); hour = hour.Add(time.Hour) {
		b.WriteString("\n" + hour.Format(time.RFC3339))
		for _, zone := range table.Zones() {
			r, err := table.At(zone, hour.Add(time.Minute))
			if err != nil || !(r.Intensity >= 0) || r.Extrapolated || r.Kind != carbon.Marginal || !r.Hour.Equal(hour) {
				t.Fatalf("%s at %v: %+v, %v", zone, hour, r, err)
			}
			fmt.Fprintf(&b, ",%g", r.Intensity)
		}
	}
	return b.String() + "\n"
}
