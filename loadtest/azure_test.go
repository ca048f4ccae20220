package loadtest

import (
	"bytes"
	"compress/gzip"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"
)

const azureHeader = "TIMESTAMP,ContextTokens,GeneratedTokens\r\n"

const azureSample = azureHeader +
	"2023-11-16 18:15:46.6805900,374,44\r\n" +
	"2023-11-16 18:15:50.9951690,396,109\r\n" +
	"2023-11-16 18:15:50.9951690,0,55\r\n"

func wantAzureSample() Trace {
	return Trace{
		Start: time.Date(2023, 11, 16, 18, 15, 46, 680590000, time.UTC),
		Arrivals: []Arrival{
			{At: 0, Service: "conv", Input: 374, Output: 44},
			{At: 4314579 * time.Microsecond, Service: "conv", Input: 396, Output: 109},
			{At: 4314579 * time.Microsecond, Service: "conv", Input: 1, Output: 55},
		},
	}
}

func TestReadAzureLLM(t *testing.T) {
	t.Parallel()
	var packed bytes.Buffer
	zip := gzip.NewWriter(&packed)
	if _, err := zip.Write([]byte(azureSample)); err != nil {
		t.Fatal(err)
	}
	if err := zip.Close(); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		"as published": azureSample,
		"unix lines":   strings.ReplaceAll(azureSample, "\r", ""),
		"no last line": strings.TrimSuffix(azureSample, "\r\n"),
		"byte order":   "\ufeff" + azureSample,
		"gzip":         packed.String(),
	} {
		got, err := ReadAzureLLM(strings.NewReader(text), "t.csv", "conv")
		if err != nil {
			t.Errorf("%s: %v", name, err)
		} else if want := wantAzureSample(); !reflect.DeepEqual(got, want) {
			t.Errorf("%s: got %+v, want %+v", name, got, want)
		}
	}
}

func TestReadAzureLLMErrors(t *testing.T) {
	t.Parallel()
	row := "2023-11-16 18:15:46.6805900,374,44\n"
	for _, tt := range []struct {
		name, text, want string
		cause            error
	}{
		{"empty", "", "loadtest: read t.csv:1: not the header TIMESTAMP,ContextTokens,GeneratedTokens", ErrHeader},
		{"other header", "a,b,c\n", `loadtest: read t.csv:1: not the header TIMESTAMP,ContextTokens,GeneratedTokens: "a,b,c"`, ErrHeader},
		{"no header", row, `loadtest: read t.csv:1: not the header TIMESTAMP,ContextTokens,GeneratedTokens: "2023-11-16 18:15:46.6805900,374,44"`, ErrHeader},
		{"only header", azureHeader, "loadtest: read t.csv:1: no rows", ErrNoRows},
		{"two fields", azureHeader + "2023-11-16 18:15:46.6805900,374\n", `loadtest: read t.csv:2: not a row of three fields: "2023-11-16 18:15:46.6805900,374"`, ErrRow},
		{"four fields", azureHeader + row + "2023-11-16 18:15:47,1,2,3\n", `loadtest: read t.csv:3: not a row of three fields: "2023-11-16 18:15:47,1,2,3"`, ErrRow},
		{"quote", azureHeader + "\"2023,1,2\n", "loadtest: read t.csv:2: not a row of three fields: extraneous or missing \" in quoted-field", ErrRow},
		{"date", azureHeader + "16.11.2023 18:15,374,44\n", `loadtest: read t.csv:2: TIMESTAMP: not a time as 2023-11-16 18:15:46.6805900: "16.11.2023 18:15"`, ErrTime},
		{"early", azureHeader + "0001-11-16 18:15:46,374,44\n", `loadtest: read t.csv:2: TIMESTAMP: not a time as 2023-11-16 18:15:46.6805900: "0001-11-16 18:15:46"`, ErrTime},
		{"backwards", azureHeader + row + "2023-11-16 18:15:45,1,2\n", `loadtest: read t.csv:3: TIMESTAMP: time before that of the row above: "2023-11-16 18:15:45"`, ErrUnsorted},
		{"negative", azureHeader + row + "2023-11-16 18:15:47,-3,2\n", `loadtest: read t.csv:3: ContextTokens: not a whole number of tokens, 0 or more: "-3"`, ErrTokens},
		{"fraction", azureHeader + row + "2023-11-16 18:15:47,3,2.5\n", `loadtest: read t.csv:3: GeneratedTokens: not a whole number of tokens, 0 or more: "2.5"`, ErrTokens},
		{"blank", azureHeader + row + "2023-11-16 18:15:47,3,\n", "loadtest: read t.csv:3: GeneratedTokens: not a whole number of tokens, 0 or more", ErrTokens},
		{"huge", azureHeader + row + "2023-11-16 18:15:47,3,1" + strings.Repeat("0", 70) + "\n", `loadtest: read t.csv:3: GeneratedTokens: not a whole number of tokens, 0 or more: "1` + strings.Repeat("0", 59) + `…"`, ErrTokens},
		{"broken gzip", "\x1f\x8b\x08\x00", "loadtest: read t.csv:1: unexpected EOF", nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			_, err := ReadAzureLLM(strings.NewReader(tt.text), "t.csv", "conv")
			if _, ok := errors.AsType[*ParseError](err); !ok {
				t.Fatalf("got %v, want a ParseError", err)
			}
			if err.Error() != tt.want {
				t.Errorf("got  %s\nwant %s", err, tt.want)
			}
			if tt.cause != nil && !errors.Is(err, tt.cause) {
				t.Errorf("%v is not %v", err, tt.cause)
			}
		})
	}
}

// TestTraceTooLarge: what is cut short must not look whole.
func TestTraceTooLarge(t *testing.T) {
	t.Parallel()
	in := &limited{r: strings.NewReader("abcdef"), left: 3}
	if _, err := in.Read(make([]byte, 6)); !errors.Is(err, ErrTooLarge) {
		t.Errorf("got %v, want %v", err, ErrTooLarge)
	}
}

func TestReadAzureLLMFile(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	path := filepath.Join(dir, "AzureLLMInferenceTrace_conv.csv")
	if err := os.WriteFile(path, []byte(azureSample), 0o600); err != nil {
		t.Fatal(err)
	}
	got, err := ReadAzureLLMFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if want := wantAzureSample(); !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, want %+v", got, want)
	}
	if _, err := ReadAzureLLMFile(filepath.Join(dir, "trace.csv")); !errors.Is(err, ErrNoService) {
		t.Errorf("a name without a service: %v", err)
	}
	_, err = ReadAzureLLMFile(filepath.Join(dir, "none_code.csv.gz"))
	if !errors.Is(err, fs.ErrNotExist) || strings.Count(err.Error(), dir) != 1 {
		t.Errorf("a file that is not there: %v", err)
	}
}

// TestPublishedTrace reads the published files when the environment names the
// folder that has them, and finds the figures the shapes were fitted to.
func TestPublishedTrace(t *testing.T) {
	t.Parallel()
	dir := os.Getenv("AZURE_LLM_TRACE")
	if dir == "" {
		t.Skip("AZURE_LLM_TRACE names no folder with the published files")
	}
	for _, tt := range []struct {
		service             string
		rows                int
		inMedian, outMedian float64
		inMean, outMean     float64
	}{
		{"conv", 19366, 1020, 129, 1154.7, 211.1},
		{"code", 8819, 1469, 13, 2047.8, 27.9},
	} {
		trace, err := ReadAzureLLMFile(filepath.Join(dir, "AzureLLMInferenceTrace_"+tt.service+".csv.gz"))
		if err != nil {
			t.Fatal(err)
		}
		if len(trace.Arrivals) != tt.rows {
			t.Errorf("%s: %d rows, want %d", tt.service, len(trace.Arrivals), tt.rows)
		}
		var in, out []float64
		for _, a := range trace.Arrivals {
			in, out = append(in, float64(a.Input)), append(out, float64(a.Output))
		}
		median, mean := medianMean(in)
		within(t, tt.service+" input median", median, tt.inMedian, 0.0001)
		within(t, tt.service+" input mean", mean, tt.inMean, 0.0001)
		median, mean = medianMean(out)
		within(t, tt.service+" output median", median, tt.outMedian, 0.0001)
		within(t, tt.service+" output mean", mean, tt.outMean, 0.002)
	}
}

// FuzzReadAzureLLM: any bytes give a trace that is in order, or a ParseError
// that names the file and a line.
func FuzzReadAzureLLM(f *testing.F) {
	f.Add([]byte(azureSample))
	f.Add([]byte(azureHeader))
	f.Add([]byte(azureHeader + "2023-11-16 18:15:46.6805900,374\n"))
	f.Add([]byte(azureHeader + "\"2023-11-16 18:15:46\",1,\"2\n"))
	f.Add([]byte("\x1f\x8b"))
	f.Fuzz(func(t *testing.T, data []byte) {
		trace, err := ReadAzureLLM(bytes.NewReader(data), "t.csv", "code")
		if err != nil {
			var parse *ParseError
			if !errors.As(err, &parse) || parse.File != "t.csv" || parse.Line < 1 || parse.Err == nil {
				t.Fatalf("error %#v does not say where", err)
			}
			if len(trace.Arrivals) != 0 {
				t.Fatal("an error and a trace")
			}
			return
		}
		var before time.Duration
		for _, a := range trace.Arrivals {
			if a.At < before || a.Input < 1 || a.Output < 1 {
				t.Fatalf("bad arrival %+v after %v", a, before)
			}
			before = a.At
		}
		if len(trace.Arrivals) == 0 || trace.Start.IsZero() {
			t.Fatal("a trace of nothing")
		}
	})
}
