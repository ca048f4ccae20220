package main

import (
	"bytes"
	"errors"
	"image"
	"image/color"
	"image/jpeg"
	"image/png"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"golang.org/x/image/draw"

	"github.com/isobar-mesh/isobar/carbon"
	"github.com/isobar-mesh/isobar/examples/functions/sentiment"
	"github.com/isobar-mesh/isobar/loadtest"
	"github.com/isobar-mesh/isobar/loadtest/azure"
)

const examplesFolder = "../../examples/functions"

// shrink does what the thumbnail function promises.
func shrink(t *testing.T, data []byte, side int) *image.RGBA {
	t.Helper()
	im, err := jpeg.Decode(bytes.NewReader(data))
	if err != nil {
		t.Fatal(err)
	}
	w, h := im.Bounds().Dx(), im.Bounds().Dy()
	if longest := max(w, h); longest > side {
		w, h = w*side/longest, h*side/longest
	}
	small := image.NewRGBA(image.Rect(0, 0, w, h))
	draw.CatmullRom.Scale(small, small.Bounds(), im, im.Bounds(), draw.Src, nil)
	return small
}

func asJPEG(t *testing.T, im image.Image) []byte {
	t.Helper()
	var b bytes.Buffer
	if err := jpeg.Encode(&b, im, &jpeg.Options{Quality: 85}); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// TestPictures: every width the workload can ask for makes a picture that fits
// a payload, and whose thumbnail passes.
func TestPictures(t *testing.T) {
	t.Parallel()
	for _, width := range []int{minWidth, 96, 128, 160, 1472, maxWidth} {
		p, err := newPicture(width)
		if err != nil {
			t.Fatal(err)
		}
		if len(p.jpeg) > 1<<20 {
			t.Errorf("width %d: %d bytes, a payload has at most 1 MiB", width, len(p.jpeg))
		}
		if err := p.check(asJPEG(t, shrink(t, p.jpeg, thumbnailSide))); err != nil {
			t.Errorf("width %d: %v", width, err)
		}
	}
}

func TestPictureCheckFails(t *testing.T) {
	t.Parallel()
	p, err := newPicture(640)
	if err != nil {
		t.Fatal(err)
	}
	good := shrink(t, p.jpeg, thumbnailSide)
	var asPNG bytes.Buffer
	if err := png.Encode(&asPNG, good); err != nil {
		t.Fatal(err)
	}
	grey := image.NewRGBA(good.Bounds())
	draw.Draw(grey, grey.Bounds(), image.NewUniform(color.Gray{Y: 20}), image.Point{}, draw.Src)
	for name, tt := range map[string]struct {
		result []byte
		want   string
	}{
		"nothing":         {nil, "no picture"},
		"garbage":         {[]byte("hello"), "no picture"},
		"another kind":    {asPNG.Bytes(), "is a png"},
		"not shrunk":      {p.jpeg, "is 640x480, want 128x96"},
		"too small":       {asJPEG(t, shrink(t, p.jpeg, 100)), "is 100x75, want 128x96"},
		"another picture": {asJPEG(t, grey), "colour"},
	} {
		if err := p.check(tt.result); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: got %v, want %q", name, err, tt.want)
		}
	}
}

func TestPictureWidth(t *testing.T) {
	t.Parallel()
	for tokens, want := range map[int]int{1: 64, 128: 64, 131: 96, 1469: 736, 4095: 2048, 1 << 30: maxWidth} {
		if got := pictureWidth(tokens); got != want {
			t.Errorf("%d tokens: %d pixels, want %d", tokens, got, want)
		}
	}
}

func labelled(t *testing.T) sentences {
	t.Helper()
	s, err := readSentences(filepath.Join(examplesFolder, sentimentName, "heldout.tsv"))
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// TestTexts: what the function answers is counted against the labels of the
// very sentences that were sent.
func TestTexts(t *testing.T) {
	t.Parallel()
	s := labelled(t)
	// The whole set, from the middle on, and round once more.
	whole := s.compose(2*9377/bytesPerToken, 100)
	var out bytes.Buffer
	if err := sentiment.Serve(strings.NewReader(whole.body), &out, sentiment.Lexicon); err != nil {
		t.Fatal(err)
	}
	answers, right, err := whole.check(out.Bytes())
	if err != nil {
		t.Fatal(err)
	}
	if share := float64(right) / float64(answers); answers < 390 || share < 0.6 || share > 0.67 {
		t.Errorf("%d of %d right, want about 400 answers and 0.635 of them right", right, answers)
	}
	if short := s.compose(1, 7); len(short.labels) != 1 || short.body != s[7*stride%len(s)].Text+"\n" {
		t.Errorf("one token makes %q", short.body)
	}
	if long := s.compose(1<<40, 0); len(long.body) > 1<<20 || len(long.labels)*43 > 256<<10 {
		t.Errorf("the longest text has %d bytes and %d lines: too much for a payload or its result", len(long.body), len(long.labels))
	}
}

func TestTextCheckFails(t *testing.T) {
	t.Parallel()
	two := text{body: "a\nb\n", labels: []bool{true, false}}
	good := `{"label":"positive","positive":0.9}` + "\n"
	for name, tt := range map[string]struct{ result, want string }{
		"nothing":      {"", "0 verdicts for 2"},
		"too few":      {good, "1 verdicts for 2"},
		"too many":     {good + good + good, "more than 2"},
		"no JSON":      {good + "hello\n", "verdict 2"},
		"other label":  {good + `{"label":"mixed","positive":0.5}`, "neither positive nor negative"},
		"no share":     {good + `{"label":"negative"}`, "no share"},
		"share beyond": {good + `{"label":"negative","positive":1.5}`, "no share"},
	} {
		if _, _, err := two.check([]byte(tt.result)); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: got %v, want %q", name, err, tt.want)
		}
	}
	answers, right, err := two.check([]byte(good + good))
	if err != nil || answers != 2 || right != 1 {
		t.Errorf("%d of %d right, %v; want 1 of 2", right, answers, err)
	}
}

func TestReadSentencesErrors(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	if _, err := readSentences(filepath.Join(dir, "none")); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no file: %v", err)
	}
	for name, body := range map[string]string{"empty": "", "bad": "fine\tgood soup\n"} {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(body), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := readSentences(path); err == nil || !strings.Contains(err.Error(), path) {
			t.Errorf("%s: got %v, want one that names the file", name, err)
		}
	}
}

func testOptions() options {
	return options{
		examples: examplesFolder, requests: 120, play: 10 * time.Second, span: 57 * time.Minute, seed: 1, cpu: 1, quality: 1e-6, ports: "auto", once: true,
	}
}

func TestPlanGenerated(t *testing.T) {
	t.Parallel()
	p, err := newPlan(testOptions())
	if err != nil {
		t.Fatal(err)
	}
	if len(p.jobs) != 120 || len(p.trace.Arrivals) != 120 || p.of < 20_000 {
		t.Errorf("%d jobs for %d arrivals of %d", len(p.jobs), len(p.trace.Arrivals), p.of)
	}
	if p.speed < 330 || p.speed > 343 {
		t.Errorf("57 minutes in 10 s are played %.1f times as fast, want about 342", p.speed)
	}
	seen := map[string]int{}
	for i, j := range p.jobs {
		seen[j.spec.GetFunction()]++
		seen["lane "+j.spec.GetLane()]++
		seen["at "+p.trace.Arrivals[i].Origin]++
		if j.deadline {
			seen["deadline"]++
		}
		if len(j.spec.GetResidency().GetAllowed()) == 1 {
			seen["eu"]++
		}
		if j.spec.GetMinQuality() > 0 {
			seen["careful"]++
		}
	}
	for _, want := range []string{
		"sentiment", "thumbnail", "lane interactive", "lane standard", "lane batch", "at eu-north", "at us-east", "at ap-south",
		"deadline", "eu", "careful",
	} {
		if seen[want] == 0 || seen[want] == len(p.jobs) {
			t.Errorf("%s: %d of %d jobs, want some and not all", want, seen[want], len(p.jobs))
		}
	}
	again, err := newPlan(testOptions())
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(p.trace, again.trace) {
		t.Error("two plans of one seed have other arrivals")
	}
	for i := range p.jobs {
		if p.jobs[i].spec.String() != again.jobs[i].spec.String() {
			t.Fatalf("job %d differs between two plans of one seed", i)
		}
	}
}

const (
	traceHead  = "TIMESTAMP,ContextTokens,GeneratedTokens\n"
	carbonHead = "datetime_utc,SE-SE1,US-MIDA-PJM,IN-MH\n"
)

func write(t *testing.T, name, body string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(body), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestPlanFromFiles: both streams by their calendar time, and carbon's clock at
// the same time of year.
func TestPlanFromFiles(t *testing.T) {
	t.Parallel()
	o := testOptions()
	o.traces = []string{
		write(t, "x_conv.csv", traceHead+"2023-01-01 05:30:00.0,100,20\n2023-01-01 05:32:00.0,200,400\n"),
		write(t, "x_code.csv", traceHead+"2023-01-01 05:31:00.0,300,10\n"),
	}
	rows := ""
	for h := range 24 {
		rows += time.Date(2022, 1, 1, h, 0, 0, 0, time.UTC).Format(time.RFC3339) + ",10,300,700\n"
	}
	o.carbon = write(t, "carbon.csv", carbonHead+rows)
	p, err := newPlan(o)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, j := range p.jobs {
		got = append(got, j.spec.GetFunction()+" "+j.spec.GetLane())
	}
	if want := []string{"sentiment interactive", "thumbnail interactive", "sentiment batch"}; !reflect.DeepEqual(got, want) {
		t.Errorf("jobs %q, want %q", got, want)
	}
	if p.speed != 12 {
		t.Errorf("two minutes in 10 s are played %v times as fast, want 12", p.speed)
	}
	if want := time.Date(2022, 1, 1, 5, 30, 0, 0, time.UTC); !p.carbonClock.Equal(want) {
		t.Errorf("carbon starts at %v, want %v", p.carbonClock, want)
	}

	// A table without that time of year starts at its begin.
	o.carbon = write(t, "carbon.csv", strings.ReplaceAll(carbonHead+rows, "2022-01", "2022-07"))
	if p, err = newPlan(o); err != nil {
		t.Fatal(err)
	}
	if want := time.Date(2022, 7, 1, 0, 0, 0, 0, time.UTC); !p.carbonClock.Equal(want) {
		t.Errorf("carbon starts at %v, want %v", p.carbonClock, want)
	}
}

func TestPlanErrors(t *testing.T) {
	t.Parallel()
	good := testOptions()
	for name, tt := range map[string]struct {
		change func(*options)
		cause  error
		usage  bool
	}{
		"trace that is not there": {func(o *options) { o.traces = []string{"none_code.csv"} }, fs.ErrNotExist, true},
		"trace of no service":     {func(o *options) { o.traces = []string{"trace.csv"} }, loadtest.ErrNoService, true},
		"bad trace":               {func(o *options) { o.traces = []string{write(t, "a_code.csv", traceHead+"x,1,2\n")} }, azure.ErrTime, true},
		"bad carbon":              {func(o *options) { o.carbon = write(t, "c.csv", carbonHead) }, carbon.ErrNoRows, true},
		"no examples":             {func(o *options) { o.examples = t.TempDir() }, fs.ErrNotExist, false},
	} {
		o := good
		tt.change(&o)
		_, err := newPlan(o)
		var usage *usageError
		if !errors.Is(err, tt.cause) || errors.As(err, &usage) != tt.usage {
			t.Errorf("%s: got %v (usage: %v), want %v (usage: %v)", name, err, errors.As(err, &usage), tt.cause, tt.usage)
		}
	}
}

func TestParseOptions(t *testing.T) {
	t.Parallel()
	o, err := parseOptions([]string{"--once", "--trace", "a_conv.csv, b_code.csv.gz", "--requests", "7", "--play", "5s"}, &bytes.Buffer{})
	if err != nil {
		t.Fatal(err)
	}
	if want := []string{"a_conv.csv", "b_code.csv.gz"}; !o.once || o.requests != 7 || o.play != 5*time.Second || !reflect.DeepEqual(o.traces, want) {
		t.Errorf("got %+v", o)
	}
	for _, args := range [][]string{
		{"more"}, {"--requests", "-1"}, {"--play", "0s"}, {"--span", "-1m"}, {"--cpu", "0.5"}, {"--cpu", "NaN"}, {"--quality-price", "-1"}, {"--ports", "7101"}, {"--nonsense"},
	} {
		if _, err := parseOptions(args, &bytes.Buffer{}); err == nil {
			t.Errorf("%q: no error", args)
		}
	}
}

// TestRunUsage: what is wrong with the arguments or the files they name is said
// before anything is started, with exit code 2.
func TestRunUsage(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		args []string
		code int
		want string
	}{
		{[]string{"--nonsense"}, exitUsage, "nonsense"},
		{[]string{"--help"}, 0, "--trace"},
		{[]string{"--examples", examplesFolder, "--trace", "none_code.csv"}, exitUsage, "demo: loadtest: read none_code.csv: no such file or directory"},
	} {
		var stdout, stderr bytes.Buffer
		if code := run(tt.args, &stdout, &stderr); code != tt.code {
			t.Errorf("%q: exit %d, want %d", tt.args, code, tt.code)
		}
		if all := strings.ReplaceAll(stderr.String(), "  -", "  --"); !strings.Contains(all, tt.want) {
			t.Errorf("%q: no %q in %s", tt.args, tt.want, &stderr)
		}
	}
}

// TestStride: every sentence has its turn before one comes again.
func TestStride(t *testing.T) {
	t.Parallel()
	s := labelled(t)
	seen := map[string]bool{}
	for i := range s {
		seen[s.compose(1, i).body] = true
	}
	if len(seen) != len(s) {
		t.Errorf("%d of %d sentences have a turn", len(seen), len(s))
	}
}
