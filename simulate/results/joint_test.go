package main

import (
	"compress/gzip"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// carried writes made-up data in the files that the tables are made from: three
// zones whose clean hours come at different times, and long requests.
func carried(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	write := func(name, text string) {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		f, err := os.Create(path)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		var w io.WriteCloser = f
		if strings.HasSuffix(name, ".gz") {
			w = gzip.NewWriter(f)
		}
		if _, err := io.WriteString(w, text); err != nil {
			t.Fatal(err)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
	}
	var table, pairs, trace strings.Builder
	table.WriteString("datetime_utc,A,B,C\n")
	start := time.Date(2022, 1, 1, 0, 0, 0, 0, time.UTC)
	for h := range 365 * 24 {
		table.WriteString(start.Add(time.Duration(h) * time.Hour).Format(time.RFC3339))
		for z := range 3 {
			fmt.Fprintf(&table, ",%.0f", 300+float64(50*z)-200*math.Cos(float64(h-8*z)*math.Pi/12))
		}
		table.WriteByte('\n')
	}
	zones := map[string]string{}
	pairs.WriteString("from,to,ms\n")
	for i, from := range places() {
		zones[from.Region] = string(rune('A' + i%3))
		for _, to := range places() {
			fmt.Fprintf(&pairs, "%s,%s,50\n", from.Region, to.Region)
		}
	}
	trace.WriteString("TIMESTAMP,ContextTokens,GeneratedTokens\n")
	for i := range 60 {
		fmt.Fprintf(&trace, "2023-11-16 18:%02d:00.0000000,1000,%d\n", i, 2000+i%7*800)
	}
	text, err := json.Marshal(zones)
	if err != nil {
		t.Fatal(err)
	}
	write("electricitymaps-2022/carbon-intensity-hourly-2022.csv.gz", table.String())
	write("latency-gcp/gcp-region-to-zone.json", string(text))
	write("latency-gcp/gcp-latency-pairs.csv", pairs.String())
	write("azure-llm-2023/AzureLLMInferenceTrace_conv.csv.gz", trace.String())
	return dir
}

// TestJointTable makes the table from small data: every row is there, its gains
// follow from its grams, and where there is room for all, the joint choice
// emits less than either sequence and nothing is late.
func TestJointTable(t *testing.T) {
	t.Parallel()
	out := t.TempDir()
	if err := run([]string{"-data", carried(t), "-out", out, "-only", "joint", "-starts", "1"}, io.Discard); err != nil {
		t.Fatal(err)
	}
	files, err := os.ReadDir(out)
	if err != nil || len(files) != 1 {
		t.Fatalf("%v, %v; want the one table", files, err)
	}
	page, err := os.ReadFile(filepath.Join(out, "joint.md"))
	if err != nil {
		t.Fatal(err)
	}
	rows := 0
	for line := range strings.Lines(string(page)) {
		cells := strings.Split(line, "|")
		load, isRow := strings.CutSuffix(strings.TrimSpace(cells[min(2, len(cells)-1)]), " %")
		if !isRow {
			continue
		}
		rows++
		number := func(i int) float64 {
			x, err := strconv.ParseFloat(strings.TrimSuffix(strings.TrimSpace(cells[i]), " %"), 64)
			if err != nil {
				t.Fatalf("column %d of %s: %v", i, line, err)
			}
			return x
		}
		sequence, booked, joint := number(6), number(7), number(8)
		for i, from := range []float64{sequence, booked} {
			if want := 100 * (from - joint) / from; math.Abs(number(9+i)-want) > 0.4 {
				t.Errorf("gain of %.1f %% where the grams give %.1f: %s", number(9+i), want, line)
			}
		}
		if load != "20" {
			continue
		}
		if joint >= sequence || joint >= booked {
			t.Errorf("with room for all the joint choice emits %.0f, in sequence %.0f and %.0f", joint, sequence, booked)
		}
		if late := number(13) + number(14) + number(15); late != 0 {
			t.Errorf("%.0f are late: %s", late, line)
		}
	}
	if rows != 8 {
		t.Errorf("%d rows of four loads and two forecasts:\n%s", rows, page)
	}
}
