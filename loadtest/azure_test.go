package loadtest

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/isobar-mesh/isobar/loadtest/azure"
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
	got, err := ReadAzureLLM(strings.NewReader(azureSample), "t.csv", "conv")
	if want := wantAzureSample(); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, %v, want %+v", got, err, want)
	}
	_, err = ReadAzureLLM(strings.NewReader(azureHeader+"x,1,1\n"), "t.csv", "conv")
	if bad, ok := errors.AsType[*azure.ParseError](err); !ok || bad.Line != 2 || bad.File != "t.csv" {
		t.Errorf("a bad row: %v", err)
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
