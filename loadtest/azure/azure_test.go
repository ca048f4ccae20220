package azure_test

import (
	"bytes"
	"errors"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/isobar-mesh/isobar/internal/strictcsv"
	"github.com/isobar-mesh/isobar/loadtest/azure"
)

const (
	llmHeader = "TIMESTAMP,ContextTokens,GeneratedTokens\r\n"
	llmSample = llmHeader +
		"2023-11-16 18:15:46.6805900,374,44\r\n" +
		"2023-11-16 18:15:50.9951690,396,109\r\n" +
		"2023-11-16 18:15:50.9951690,0,55\r\n"
	functionsHeader = "app,func,end_timestamp,duration\n"
	functionsSample = functionsHeader + "a,f,0.0005,0.001\nb,g,57.15786,57.154\na,f,6.25,6.24\n"
)

func TestReadLLM(t *testing.T) {
	t.Parallel()
	for name, text := range map[string]string{
		"as published": llmSample,
		"with zones":   strings.NewReplacer("5900,", "5900+00:00,", "18:15:50.9951690", "19:15:50.995169+01:00").Replace(llmSample),
	} {
		got, start, err := azure.ReadLLM(strings.NewReader(text), "t.csv")
		want := []azure.Request{
			{Line: 2, Input: 374, Output: 44},
			{Line: 3, At: 4314579 * time.Microsecond, Input: 396, Output: 109},
			{Line: 4, At: 4314579 * time.Microsecond, Output: 55},
		}
		if diff := cmp.Diff(want, got); diff != "" || err != nil {
			t.Errorf("%s: %v\n%s", name, err, diff)
		}
		if !start.Equal(time.Date(2023, 11, 16, 18, 15, 46, 680590000, time.UTC)) {
			t.Errorf("%s: start %v", name, start)
		}
	}
}

func TestReadFunctions(t *testing.T) {
	t.Parallel()
	got, err := azure.ReadFunctions(strings.NewReader(functionsSample), "t.csv")
	if err != nil {
		t.Fatal(err)
	}
	// By start: 0 (rounded from half a millisecond before it), 3.86 ms, 10 ms.
	for i, want := range []azure.Invocation{
		{Line: 2, App: "a", Func: "f", Duration: 0.001},
		{Line: 3, App: "b", Func: "g", At: 3860 * time.Microsecond, Duration: 57.154},
		{Line: 4, App: "a", Func: "f", At: 10 * time.Millisecond, Duration: 6.24},
	} {
		off := got[i].At - want.At
		got[i].At = want.At
		if diff := cmp.Diff(want, got[i]); diff != "" || off.Abs() > time.Microsecond {
			t.Errorf("row %d: start off by %v\n%s", i, off, diff)
		}
	}
}

// TestErrors: each names file, line and field.
func TestErrors(t *testing.T) {
	t.Parallel()
	row := "2023-11-16 18:15:46.6805900,374,44\n"
	llm := func(text string) error { _, _, err := azure.ReadLLM(strings.NewReader(text), "t.csv"); return err }
	functions := func(text string) error { _, err := azure.ReadFunctions(strings.NewReader(text), "t.csv"); return err }
	for _, tt := range []struct {
		name  string
		read  func(string) error
		in    string
		want  string
		cause error
	}{
		{"empty", llm, "", "azure: read t.csv:1: not the header of the trace", azure.ErrHeader},
		{"other header", llm, "a,b,c\n", "t.csv:1: a: not the header of the trace", azure.ErrHeader},
		{"missing column", llm, "TIMESTAMP,ContextTokens\n1,2\n", "t.csv:1: TIMESTAMP: not the header", azure.ErrHeader},
		{"no header", llm, row, "t.csv:1: 2023-11-16 18:15:46.6805900: not the header", azure.ErrHeader},
		{"no rows", llm, llmHeader, "t.csv:1: no rows", strictcsv.ErrNoRows},
		{"two fields", llm, llmHeader + "2023-11-16 18:15:46.6805900,374\n", "t.csv:2: not a row", strictcsv.ErrSyntax},
		{"quote", llm, llmHeader + "\"2023,1,2\n", "t.csv:2: not a row", strictcsv.ErrSyntax},
		{"date", llm, llmHeader + "16.11.2023 18:15,374,44\n", `t.csv:2: TIMESTAMP: not a time as 2023-11-16 18:15:46.6805900: "16.11.2023 18:15"`, azure.ErrTime},
		{"too early a date", llm, llmHeader + "0001-11-16 18:15:46,374,44\n", "t.csv:2: TIMESTAMP: not a time", azure.ErrTime},
		{"backwards", llm, llmHeader + row + "2023-11-16 18:15:45,1,2\n", `t.csv:3: TIMESTAMP: time before that of the row above: "2023-11-16 18:15:45"`, azure.ErrUnsorted},
		{"negative", llm, llmHeader + row + "2023-11-16 18:15:47,-3,2\n", `t.csv:3: ContextTokens: not a whole number of tokens, 0 or more: "-3"`, azure.ErrTokens},
		{"fraction", llm, llmHeader + row + "2023-11-16 18:15:47,3,2.5\n", `t.csv:3: GeneratedTokens: not a whole number of tokens, 0 or more: "2.5"`, azure.ErrTokens},
		{"blank", llm, llmHeader + row + "2023-11-16 18:15:47,3,\n", "t.csv:3: GeneratedTokens: not a whole number of tokens", azure.ErrTokens},
		{"NaN", llm, llmHeader + "2023-11-16 18:15:47,NaN,1\n", `t.csv:2: ContextTokens: not a whole number of tokens, 0 or more: "NaN"`, azure.ErrTokens},
		{"huge", llm, llmHeader + "2023-11-16 18:15:47,3,1000000000\n", "t.csv:2: GeneratedTokens: not a whole number of tokens", azure.ErrTokens},

		{"functions, empty", functions, "", "t.csv:1: not the header of the trace", azure.ErrHeader},
		{"functions, missing column", functions, "app,func,duration\n", "t.csv:1: app: not the header", azure.ErrHeader},
		{"functions, no rows", functions, functionsHeader, "t.csv:1: no rows", strictcsv.ErrNoRows},
		{"functions, no app", functions, functionsHeader + ",f,1,1\n", "t.csv:2: app: is required", strictcsv.ErrRequired},
		{"functions, no func", functions, functionsHeader + "a,f,1,1\na,,1,1\n", "t.csv:3: func: is required", strictcsv.ErrRequired},
		{"functions, blank end", functions, functionsHeader + "a,f,,1\n", "t.csv:2: end_timestamp: is required", strictcsv.ErrRequired},
		{"functions, NaN", functions, functionsHeader + "a,f,NaN,1\n", `t.csv:2: end_timestamp: not a number: "NaN"`, strictcsv.ErrNotANumber},
		{"functions, negative duration", functions, functionsHeader + "a,f,1,-1\n", `t.csv:2: duration: must be 0 or more: "-1"`, strictcsv.ErrNegative},
		{"functions, too long", functions, functionsHeader + "a,f,1,1e12\n", `t.csv:2: duration: out of range`, strictcsv.ErrTooHigh},
		{"functions, before the trace", functions, functionsHeader + "a,f,1,1\na,f,1,1.002\n", `t.csv:3: duration: it began before the trace: the duration is longer than the end is late: "1.002"`, azure.ErrTooEarly},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			err := tt.read(tt.in)
			if _, ok := errors.AsType[*azure.ParseError](err); !ok || !errors.Is(err, tt.cause) || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("got %v, want %q", err, tt.want)
			}
		})
	}
}

// TestPublished reads the files that a checkout may have beside it.
func TestPublished(t *testing.T) {
	t.Parallel()
	const dir = "../../../shared/data"
	if _, err := os.Stat(dir); err != nil {
		t.Skipf("skipped: traces as published: %v", err)
	}
	f, err := os.Open(filepath.Join(dir, "azure-functions-2021-sample", "Azure2021_200.csv"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	got, err := azure.ReadFunctions(f, f.Name())
	if err != nil || len(got) != 199 {
		t.Errorf("%d invocations, %v", len(got), err)
	}
	g, err := os.Open(filepath.Join(dir, "azure-llm-2023", "AzureLLMInferenceTrace_code.csv.gz"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = g.Close() }()
	requests, _, err := azure.ReadLLM(g, g.Name())
	if err != nil || len(requests) != 8819 {
		t.Errorf("%d requests, %v", len(requests), err)
	}
}

// located fails unless the error says where.
func located(t *testing.T, err error) {
	t.Helper()
	bad, ok := errors.AsType[*azure.ParseError](err)
	if !ok || bad.File != "t.csv" || bad.Line < 1 || bad.Err == nil {
		t.Fatalf("error %#v does not say where", err)
	}
}

// FuzzReadLLM: any bytes give requests in order, or an error that says where.
func FuzzReadLLM(f *testing.F) {
	f.Add([]byte(llmSample))
	f.Add([]byte(llmHeader))
	f.Add([]byte(llmHeader + "2023-11-16 18:15:46.6805900,374\n"))
	f.Add([]byte(llmHeader + "\"2023-11-16 18:15:46\",1,\"2\n"))
	f.Add([]byte("\x1f\x8b"))
	f.Fuzz(func(t *testing.T, data []byte) {
		requests, start, err := azure.ReadLLM(bytes.NewReader(data), "t.csv")
		if err != nil {
			located(t, err)
			return
		}
		before := time.Duration(0)
		for _, q := range requests {
			if q.At < before || q.Input < 0 || q.Output < 0 || q.Line < 2 {
				t.Fatalf("bad request %+v after %v", q, before)
			}
			before = q.At
		}
		if len(requests) == 0 || start.IsZero() {
			t.Fatal("a trace of nothing")
		}
	})
}

// FuzzReadFunctions: the same for invocations.
func FuzzReadFunctions(f *testing.F) {
	f.Add([]byte(functionsSample))
	f.Add([]byte(functionsHeader + "a,f,1e3,1.5\n"))
	f.Add([]byte(functionsHeader + "\"a\nb\",f,1,0\n"))
	f.Fuzz(func(t *testing.T, data []byte) {
		got, err := azure.ReadFunctions(bytes.NewReader(data), "t.csv")
		if err != nil {
			located(t, err)
			return
		}
		before := time.Duration(0)
		for _, v := range got {
			if v.At < before || !(v.Duration >= 0) || math.IsInf(v.Duration, 0) || v.App == "" || v.Func == "" {
				t.Fatalf("bad invocation %+v after %v", v, before)
			}
			before = v.At
		}
		if len(got) == 0 {
			t.Fatal("a trace of nothing")
		}
	})
}
