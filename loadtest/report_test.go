package loadtest

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"math"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/types/known/durationpb"

	isobarv1 "github.com/isobar-mesh/isobar/proto/isobar/v1"
)

var rewrite = flag.Bool("rewrite", false, "write the golden files anew")

// outcomes is a small run: sentiment at home and moved, a thumbnail, one task
// whose home was ruled out, one that failed and one with a wrong result.
func outcomes() []Outcome {
	paid := func(usd, grams float64) func(*isobarv1.Candidate) {
		return func(c *isobarv1.Candidate) { c.Compute, c.Usd, c.Gco2Eq = usd, usd, grams }
	}
	stayed := &isobarv1.Decision{Home: "us-east-1", Candidates: []*isobarv1.Candidate{
		cand("us-east-1", "large", paid(2e-7, 1e-5)), cand("eu-north-1", "large", paid(2.2e-7, 1e-7), slow(1e-6)),
	}}
	moved := &isobarv1.Decision{Home: "ap-south-1", Candidates: []*isobarv1.Candidate{
		cand("eu-north-1", "large", paid(2.4e-7, 2e-7)),
		cand("ap-south-1", "large", paid(2e-7, 3e-5), slow(1e-5), func(c *isobarv1.Candidate) { c.Wait = durationpb.New(time.Second) }),
	}}
	away := &isobarv1.Decision{
		Home: "ap-south-1", Candidates: []*isobarv1.Candidate{cand("us-east-1", "default", paid(1e-6, 5e-5))},
		Counts: []*isobarv1.ConstraintCount{ruled("health", 1)},
	}
	var out []Outcome
	for i := range 20 {
		out = append(out, Outcome{
			Task: "t", Function: "sentiment", Region: "us-east", Variant: "large", Decision: stayed,
			Latency: time.Duration(i+1) * 10 * time.Millisecond, Answers: 10, Right: 8,
		})
	}
	for range 5 {
		out = append(out, Outcome{
			Task: "t", Function: "sentiment", Region: "eu-north", Variant: "large", Decision: moved, Moved: true,
			Latency: 1500 * time.Millisecond, Answers: 10, Right: 9,
		})
	}
	return append(out,
		Outcome{Task: "t", Function: "thumbnail", Region: "us-east", Variant: "default", Decision: away, Moved: true, Latency: 12 * time.Second},
		Outcome{Task: "t9", Function: "thumbnail", Kind: Failed, Problem: "dead: not a picture"},
		Outcome{
			Task: "t8", Function: "thumbnail", Region: "us-east", Variant: "default", Latency: time.Second,
			Kind: Wrong, Problem: "the result is 128x95, want 128x96",
		},
	)
}

func TestReport(t *testing.T) {
	t.Parallel()
	r := NewReport(outcomes())
	if r.Sent != 28 || r.All.Tasks != 27 || r.All.Moved != 6 || r.Bad() != 2 {
		t.Errorf("%d sent, %d completed, %d moved, %d bad; want 28, 27, 6, 2", r.Sent, r.All.Tasks, r.All.Moved, r.Bad())
	}
	if want := map[Problem]int{Failed: 1, Wrong: 1}; !reflect.DeepEqual(r.Problems, want) {
		t.Errorf("problems %v, want %v", r.Problems, want)
	}
	row := r.Rows[1]
	want := Row{
		Function: "sentiment", Variant: "large", Region: "us-east", Tasks: 20, P50: 0.1, P99: 0.2, Decided: 20,
		WhyPlace: Reason{"home: elsewhere is too far for what it saves", 20}, USD: row.USD, Grams: row.Grams,
	}
	if row != want {
		t.Errorf("row %+v, want %+v", row, want)
	}
	near := func(name string, got, want float64) {
		t.Helper()
		if math.Abs(got-want) > 1e-12+1e-9*want {
			t.Errorf("%s: got %v, want %v", name, got, want)
		}
	}
	near("USD of us-east", row.USD, 2e-4)
	near("grams of us-east", row.Grams, 1e-2)
	near("USD as placed", r.All.USD, (20*2e-7+5*2.4e-7+1e-6)/26*1000)
	near("USD at home", r.Home.AtHome.USD, 2e-4)
	near("grams at home", r.Home.AtHome.Grams, (20*1e-5+5*3e-5)/25*1000)
	near("USD as placed, of those with a home", r.Home.Placed.USD, (20*2e-7+5*2.4e-7)/25*1000)
	near("seconds at home", r.Home.AtHome.Seconds, 5.0/25)
	near("seconds as placed", r.Home.Placed.Seconds, 0)
	if r.Home.Tasks != 25 || r.Home.Missing != 2 {
		t.Errorf("%d with a candidate at home and %d without, want 25 and 2", r.Home.Tasks, r.Home.Missing)
	}
	if want := []Reason{{"moved: home was busy, waiting there costs more", 5}, {"moved: home could not run it (health)", 1}}; !reflect.DeepEqual(r.Moved, want) {
		t.Errorf("moved %v, want %v", r.Moved, want)
	}
	if want := []Answers{{Function: "sentiment", Variant: "large", Tasks: 25, Answers: 250, Right: 205}}; !reflect.DeepEqual(r.Answers, want) {
		t.Errorf("answers %+v, want %+v", r.Answers, want)
	}
}

// TestReportOrder: the order in which tasks ended does not show.
func TestReportOrder(t *testing.T) {
	t.Parallel()
	in := outcomes()
	one := NewReport(in)
	slices.Reverse(in)
	two := NewReport(in)
	one.Examples, two.Examples = nil, nil
	var a, b bytes.Buffer
	if err := errors.Join(one.Text(&a), two.Text(&b)); err != nil {
		t.Fatal(err)
	}
	if a.String() != b.String() {
		t.Errorf("one order:\n%s\nthe other:\n%s", a.String(), b.String())
	}
}

func TestReportText(t *testing.T) {
	t.Parallel()
	for name, in := range map[string][]Outcome{"mixed": outcomes(), "clean": outcomes()[:25], "empty": nil} {
		var b bytes.Buffer
		if err := NewReport(in).Text(&b); err != nil {
			t.Fatal(err)
		}
		golden(t, name+".txt", b.Bytes())
		for line := range strings.Lines(b.String()) {
			if len(line) > 121 && !strings.HasPrefix(line, " ") {
				t.Errorf("%s: a line of %d columns: %s", name, len(line), line)
			}
		}
	}
}

func TestReportJSON(t *testing.T) {
	t.Parallel()
	want := NewReport(outcomes())
	var b bytes.Buffer
	if err := want.JSON(&b); err != nil {
		t.Fatal(err)
	}
	golden(t, "mixed.json", b.Bytes())
	var got Report
	if err := json.Unmarshal(b.Bytes(), &got); err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("read back %+v, want %+v", got, want)
	}
}

type broken struct{}

func (broken) Write([]byte) (int, error) { return 0, os.ErrClosed }

func TestReportWriteErrors(t *testing.T) {
	t.Parallel()
	r := NewReport(outcomes())
	if err := r.Text(broken{}); !errors.Is(err, os.ErrClosed) {
		t.Errorf("text: %v", err)
	}
	if err := r.JSON(broken{}); !errors.Is(err, os.ErrClosed) {
		t.Errorf("JSON: %v", err)
	}
}

func TestAmounts(t *testing.T) {
	t.Parallel()
	for in, want := range map[float64]string{
		0: "0", 1234.5: "1234", 12.345: "12.3", 0.00012345: "0.000123", 1: "1.00", 0.9996: "1.00", -0.5: "-0.500",
	} {
		if got := amount(in); got != want {
			t.Errorf("amount(%v) is %s, want %s", in, got, want)
		}
	}
	for in, want := range map[int]string{0: "0", 999: "999", 1000: "1,000", -1000: "-1,000", -100: "-100", 1234567: "1,234,567"} {
		if got := grouped(in); got != want {
			t.Errorf("grouped(%d) is %s, want %s", in, got, want)
		}
	}
	for in, want := range map[float64]string{0.0004: "0 ms", 0.25: "250 ms", 1.234: "1.23 s", 12.34: "12.3 s", 123.4: "123 s"} {
		if got := latency(in); got != want {
			t.Errorf("latency(%v) is %s, want %s", in, got, want)
		}
	}
}

func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *rewrite {
		if err := os.WriteFile(path, got, 0o600); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s: got\n%s\nwant\n%s", path, got, want)
	}
}
