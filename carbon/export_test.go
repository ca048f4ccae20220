package carbon_test

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/isobar-mesh/isobar/carbon"
)

const (
	exportHead = "Datetime (UTC),Country,Zone name,Zone id,Carbon intensity gCO₂eq/kWh (direct),Carbon intensity gCO₂eq/kWh (Life cycle)," +
		"Carbon-free energy percentage (CFE%),Renewable energy percentage (RE%),Data source,Data estimated,Data estimation method\n"
	export = exportHead +
		"2024-01-01 00:00:00,Sweden,North Sweden,SE-SE1,1.5,16.25,99.9,80.1,entsoe.eu,false,\n" +
		"2024-01-01 01:00:00,Sweden,North Sweden,SE-SE1,2.5,17.25,99.8,80.2,entsoe.eu,true,TIME_SLICER_AVERAGE\n"
	// oldExport has the spelling of the exports of 2021 to 2023.
	oldExport = "Datetime (UTC),Country,Zone Name,Zone Id,Carbon Intensity gCO₂eq/kWh (direct),Carbon Intensity gCO₂eq/kWh (LCA),Low Carbon Percentage," +
		"Renewable Percentage,Data Source,Data Estimated,Data Estimation Method\n" +
		"2024-01-01 00:00:00,Germany,Germany,DE,301.5,360.5,50,45,entsoe.eu,false,\n" +
		"2024-01-01 01:00:00,Germany,Germany,DE,302.5,361.5,50,45,entsoe.eu,false,\n"
)

// values of a zone, hour by hour.
func values(t *testing.T, table *carbon.Table, zone string) []float64 {
	t.Helper()
	var out []float64
	for hour := table.Start(); hour.Before(table.End()); hour = hour.Add(time.Hour) {
		r, err := table.At(zone, hour)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, r.Intensity)
	}
	return out
}

func files(t *testing.T, texts ...string) []string {
	t.Helper()
	dir := t.TempDir()
	var paths []string
	for i, text := range texts {
		path := filepath.Join(dir, string(rune('a'+i))+".csv")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		paths = append(paths, path)
	}
	return paths
}

// TestExports: files as Electricity Maps has them, a zone each, make one table.
func TestExports(t *testing.T) {
	t.Parallel()
	paths := files(t, export, oldExport)
	for factors, want := range map[carbon.Factors][2][]float64{
		"":               {{16.25, 17.25}, {360.5, 361.5}},
		carbon.LifeCycle: {{16.25, 17.25}, {360.5, 361.5}},
		carbon.Direct:    {{1.5, 2.5}, {301.5, 302.5}},
	} {
		got, err := carbon.ReadFiles(carbon.Average, factors, paths...)
		if err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff([]string{"DE", "SE-SE1"}, got.Zones()); diff != "" {
			t.Error(diff)
		}
		if diff := cmp.Diff(want, [2][]float64{values(t, got, "SE-SE1"), values(t, got, "DE")}); diff != "" {
			t.Errorf("%s: %s", factors, diff)
		}
		named := factors
		if named == "" {
			named = carbon.LifeCycle
		}
		if want := "Electricity Maps export " + paths[0] + ", " + string(named) + " and 1 more"; got.Source() != want {
			t.Errorf("source %q, want %q", got.Source(), want)
		}
	}
}

// TestFilesJoin: years and zones may stand in files of their own, in any order
// and format; and one below the other in one file.
func TestFilesJoin(t *testing.T) {
	t.Parallel()
	wide := "datetime_utc,FR,SE-SE1\n2024-01-01T02:00:00Z,9,8\n"
	paths := files(t, "datetime_utc,FR\n2024-01-01T00:00:00Z,5\n2024-01-01T01:00:00Z,6\n", wide, export)
	got, err := carbon.ReadFiles(carbon.Average, carbon.LifeCycle, paths[1], paths[2], paths[0])
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([2][]float64{{5, 6, 9}, {16.25, 17.25, 8}}, [2][]float64{values(t, got, "FR"), values(t, got, "SE-SE1")}); diff != "" {
		t.Error(diff)
	}
	_, rows, _ := strings.Cut(export, "\n")
	got, err = carbon.ReadTable(strings.NewReader(export+strings.ReplaceAll(rows, "SE-SE1", "FI")), "two.csv", carbon.Average)
	if err != nil || !cmp.Equal(got.Zones(), []string{"FI", "SE-SE1"}) {
		t.Errorf("two zones in one file: %v", err)
	}
}

// TestBadExports: each error names file, line and field.
func TestBadExports(t *testing.T) {
	t.Parallel()
	const row = "2024-01-01 00:00:00,,,SE-SE1,1,2,,,,,\n"
	for _, tt := range []struct {
		name, in, want string
		cause          error
	}{
		{"no zone column", "Datetime (UTC),x\n", "bad.csv:1: Zone id: missing column", carbon.ErrMissingColumn},
		{"no figures", "Datetime (UTC),Zone id\n", "bad.csv:1: Carbon intensity gCO₂eq/kWh (Life cycle): missing column", carbon.ErrMissingColumn},
		{"twice", "Datetime (UTC),Zone id,Zone id,Carbon intensity gCO2eq/kWh (Life cycle)\n", "bad.csv:1: Zone id: duplicate column", carbon.ErrDuplicateColumn},
		{"no rows", exportHead, "bad.csv:1: no rows", carbon.ErrNoRows},
		{"short row", exportHead + "2024-01-01 00:00:00,1\n", "bad.csv:2: not a row", carbon.ErrSyntax},
		{"time", exportHead + "noon" + row[19:], `bad.csv:2: Datetime (UTC): not a full hour in UTC: "noon"`, carbon.ErrBadTime},
		{"half an hour", exportHead + "2024-01-01 00:30:00" + row[19:], "bad.csv:2: Datetime (UTC): not a full hour in UTC", carbon.ErrBadTime},
		{"another zone of time", exportHead + "2024-01-01 00:00:00+01:00" + row[19:], "bad.csv:2: Datetime (UTC): not a full hour", carbon.ErrBadTime},
		{"zone without a name", exportHead + "2024-01-01 00:00:00,,,,1,2,,,,,\n", "bad.csv:2: Zone id: no name of a zone", carbon.ErrNoZone},
		{"twice the hour", exportHead + row + row, "bad.csv:3: Datetime (UTC): hour given twice", carbon.ErrDuplicateHour},
		{"a day at a time", exportHead + row + "2024-01-02 00:00:00" + row[19:], "bad.csv:3: Datetime (UTC): gap before this hour", carbon.ErrGap},
		{"unsorted", exportHead + row + "2023-12-31 00:00:00" + row[19:], "bad.csv:3: Datetime (UTC): hours not in order", carbon.ErrUnsorted},
		{"empty", exportHead + "2024-01-01 00:00:00,,,SE-SE1,1,,,,,,\n", "bad.csv:2: Carbon intensity gCO₂eq/kWh (Life cycle): not a number", carbon.ErrNotANumber},
		{"NaN", exportHead + "2024-01-01 00:00:00,,,SE-SE1,1,NaN,,,,,\n", `(Life cycle): not a number: "NaN"`, carbon.ErrNotANumber},
		{"negative", exportHead + "2024-01-01 00:00:00,,,SE-SE1,1,-2,,,,,\n", `(Life cycle): must be 0 or more: "-2"`, carbon.ErrNegative},
		{"another unit", exportHead + "2024-01-01 00:00:00,,,SE-SE1,1,2e6,,,,,\n", "(Life cycle): intensity beyond any grid", carbon.ErrTooHigh},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			_, err := carbon.ReadTable(strings.NewReader(tt.in), "bad.csv", carbon.Average)
			if _, ok := errors.AsType[*carbon.ParseError](err); !ok || !errors.Is(err, tt.cause) || !strings.Contains(err.Error(), "carbon: read bad.csv") || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
	if _, err := carbon.ReadTable(strings.NewReader(export), "x.csv", carbon.Marginal); !errors.Is(err, carbon.ErrMixedKinds) {
		t.Errorf("an export read as marginal: %v", err)
	}
}

// TestBadFiles: what only shows when several files meet.
func TestBadFiles(t *testing.T) {
	t.Parallel()
	later := strings.NewReplacer("01:00", "03:00", "00:00:00", "02:00:00").Replace(export)
	for _, tt := range []struct {
		name    string
		texts   []string
		factors carbon.Factors
		want    string
		cause   error
	}{
		{"the same hours", []string{export, export}, "", `b.csv:2: Datetime (UTC): hour given twice: "SE-SE1 from 2024-01-01T00:00:00Z`, carbon.ErrDuplicateHour},
		{"a gap", []string{export, strings.ReplaceAll(export, "2024-01-01", "2024-01-02")}, "", "b.csv:2: Datetime (UTC): gap before this hour", carbon.ErrGap},
		{"other starts", []string{oldExport, later}, "", `b.csv:2: Datetime (UTC): the zones do not cover the same hours: "SE-SE1 from 2024-01-01T02:00:00Z to`, carbon.ErrOtherHours},
		{"other ends", []string{oldExport, "datetime_utc,FR\n2024-01-01T00:00:00Z,5\n"}, "", "b.csv:2: datetime_utc: the zones do not cover the same hours", carbon.ErrOtherHours},
		{"direct of a table", []string{small}, carbon.Direct, "a.csv:1: the table has one figure an hour", carbon.ErrNoFactors},
		{"no direct", []string{"Datetime (UTC),Zone id,Carbon intensity gCO2eq/kWh (LCA)\n2024-01-01 00:00:00,DE,1\n"}, carbon.Direct, "(direct): missing column", carbon.ErrMissingColumn},
		{"factors", []string{export}, "marginal", `factors "marginal": factors are neither`, carbon.ErrFactors},
		{"none", nil, "", "no rows", carbon.ErrNoRows},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			_, err := carbon.ReadFiles(carbon.Average, tt.factors, files(t, tt.texts...)...)
			if err == nil || !errors.Is(err, tt.cause) || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
	two, err := carbon.ReadFiles(carbon.Average, "", files(t, export, oldExport)...)
	if err != nil {
		t.Fatal(err)
	}
	if err := two.Require("FR"); err == nil || !strings.Contains(err.Error(), "a.csv and 1 more:1: FR: missing column") {
		t.Errorf("unknown zone: %v", err)
	}
}

// FuzzReadExport: any bytes below a header of the vendor's give a table, or an
// error that says where.
func FuzzReadExport(f *testing.F) {
	_, rows, _ := strings.Cut(export, "\n")
	f.Add([]byte(rows))
	f.Add([]byte("2024-01-01 00:00:00+00:00,,,A,1,2,,,,,\n2024-01-01 00:00:00,,,B,1,2,,,,,\n"))
	f.Add([]byte("\"2024-01-01 00:00:00\",,,\"A\nB\",-0,-0,,,,,\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		got, err := carbon.ReadTable(bytes.NewReader(append([]byte(exportHead), data...)), "fuzz.csv", carbon.Average)
		if err != nil {
			if bad, ok := errors.AsType[*carbon.ParseError](err); !ok || bad.Line < 1 || bad.File != "fuzz.csv" {
				t.Fatalf("not a ParseError with a line: %v", err)
			}
			return
		}
		if len(got.Zones()) == 0 || !got.Start().Before(got.End()) {
			t.Fatal("a table of nothing")
		}
		for _, zone := range got.Zones() {
			for _, x := range values(t, got, zone) {
				if !(x >= 0 && x <= 100_000) {
					t.Fatalf("%s: %g", zone, x)
				}
			}
		}
	})
}
