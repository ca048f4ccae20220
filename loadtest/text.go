package loadtest

import (
	"fmt"
	"io"
	"math"
	"strconv"
	"strings"
)

// Text writes the report as a table for a person. The table is 98 columns wide;
// lines below it may be longer.
func (r Report) Text(w io.Writer) error {
	var b strings.Builder
	b.WriteString("function   variant   ran in         tasks   moved in       p50       p99   USD/1,000  gCO2eq/1,000\n")
	for i, row := range r.Rows {
		function := row.Function
		if i > 0 && r.Rows[i-1].Function == function {
			function = ""
		}
		writeRow(&b, function, row.Variant, row.Region, row)
		writeWhy(&b, row.WhyPlace)
		writeWhy(&b, row.WhyVariant)
	}
	writeRow(&b, "all", "", "", r.All)
	r.homeText(&b)
	b.WriteString("\n")
	r.movedText(&b)
	r.answersText(&b)
	b.WriteString("below each row: the commonest reasons, and how many tasks had them\n")
	b.WriteString("latency: from when the request was due (open loop) until its result was at hand\n")
	fmt.Fprintf(&b, "         %s\n", bars(r.Latency))
	b.WriteString("USD and gCO2eq: what the binding decision expected of the place it chose (compute and egress; kWh x intensity)\n")
	r.problemsText(&b)
	if _, err := io.WriteString(w, b.String()); err != nil {
		return fmt.Errorf("loadtest: write report: %w", err)
	}
	return nil
}

func writeRow(b *strings.Builder, function, variant, region string, row Row) {
	fmt.Fprintf(b, "%-10s %-9s %-11s %8s %10s %9s %9s  %10s  %12s\n", function, variant, region,
		grouped(row.Tasks), grouped(row.Moved), latency(row.P50), latency(row.P99), amount(row.USD), amount(row.Grams))
}

func writeWhy(b *strings.Builder, why Reason) {
	if why.Tasks > 0 {
		fmt.Fprintf(b, "           %s (%s)\n", why.Words, grouped(why.Tasks))
	}
}

func (r Report) homeText(b *strings.Builder) {
	h := r.Home
	fmt.Fprintf(b, "%-71s  %10s  %12s\n", "all at home", amount(h.AtHome.USD), amount(h.AtHome.Grams))
	b.WriteString("           computed from the stored decisions: the cheapest candidate at the task's home\n")
	if h.Missing > 0 {
		fmt.Fprintf(b, "           %s of %s tasks have no such candidate; the other %s as placed: USD %s and %s g per 1,000\n",
			grouped(h.Missing), grouped(h.Missing+h.Tasks), grouped(h.Tasks), amount(h.Placed.USD), amount(h.Placed.Grams))
	}
	fmt.Fprintf(b, "           time from that decision to the answer, expected: %s as placed, %s at home\n", latency(h.Placed.Seconds), latency(h.AtHome.Seconds))
}

func (r Report) movedText(b *strings.Builder) {
	if len(r.Moved) == 0 {
		return
	}
	parts := make([]string, 0, len(r.Moved))
	for _, m := range r.Moved {
		parts = append(parts, fmt.Sprintf("%s (%s)", strings.TrimPrefix(m.Words, "moved: "), grouped(m.Tasks)))
	}
	fmt.Fprintf(b, "%s of %s left the region of their home: %s\n", grouped(r.All.Moved), grouped(r.All.Tasks), strings.Join(parts, "; "))
}

func (r Report) answersText(b *strings.Builder) {
	for _, a := range r.Answers {
		fmt.Fprintf(b, "checked: %s/%s: %s of %s answers right (%.1f %%) in %s tasks\n",
			a.Function, a.Variant, grouped(a.Right), grouped(a.Answers), 100*a.Share(), grouped(a.Tasks))
	}
}

func (r Report) problemsText(b *strings.Builder) {
	if r.Bad() == 0 {
		fmt.Fprintf(b, "%s sent, all completed, every result checked\n", grouped(r.Sent))
		return
	}
	fmt.Fprintf(b, "%s sent, %s with a bad end:", grouped(r.Sent), grouped(r.Bad()))
	for _, kind := range [...]Problem{Refused, Failed, Lost, Wrong} {
		if n := r.Problems[kind]; n > 0 {
			fmt.Fprintf(b, " %s %s", grouped(n), kind)
		}
	}
	b.WriteString("\n")
	for _, e := range r.Examples {
		b.WriteString("  " + e + "\n")
	}
}

// bars prints a histogram in one line, empty buckets left out.
func bars(buckets []Bucket) string {
	if len(buckets) == 0 {
		return "none"
	}
	parts := make([]string, 0, len(buckets))
	for _, k := range buckets {
		if k.Count > 0 {
			parts = append(parts, fmt.Sprintf("<%s %d", latency(k.Below.Seconds()), k.Count))
		}
	}
	return strings.Join(parts, ", ")
}

// latency prints seconds with three digits.
func latency(s float64) string {
	if s < 1 {
		return fmt.Sprintf("%.0f ms", s*1000)
	}
	return fmt.Sprintf("%.3g s", s)
}

// amount prints three significant digits, without an exponent.
func amount(x float64) string {
	if x == 0 || math.IsNaN(x) || math.IsInf(x, 0) {
		return strconv.FormatFloat(x, 'f', -1, 64)
	}
	rounded, err := strconv.ParseFloat(strconv.FormatFloat(x, 'e', 2, 64), 64)
	if err != nil {
		rounded = x
	}
	digits := 2 - int(math.Floor(math.Log10(math.Abs(rounded))))
	return strconv.FormatFloat(x, 'f', max(digits, 0), 64)
}

// grouped prints a whole number with commas.
func grouped(n int) string {
	s := strconv.Itoa(n)
	for i := len(s) - 3; i > 0 && s[i-1] != '-'; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}
