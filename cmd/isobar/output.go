package main

import (
	"fmt"
	"io"
	"math"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"
	"unicode/utf8"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"
	"google.golang.org/protobuf/types/known/timestamppb"

	isobarv1 "github.com/isobar-mesh/isobar/proto/isobar/v1"
)

// printJSON prints a message in the JSON form of the API.
func (a *app) printJSON(m proto.Message) error {
	out, err := protojson.MarshalOptions{EmitUnpopulated: true, Multiline: true, Indent: "  "}.Marshal(m)
	if err != nil {
		return failed("this is a fault of isobar; please report it", "print answer: %w", err)
	}
	_, err = fmt.Fprintln(a.stdout, string(out))
	return err
}

// table prints rows in columns; the first is the header.
func table(w io.Writer, rows [][]string) {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, row := range rows {
		fmt.Fprintln(t, strings.TrimRight(strings.Join(row, "\t"), "\t"))
	}
	_ = t.Flush()
}

// fields prints names and values, one a line; empty values are left out.
func fields(w io.Writer, pairs ...string) {
	var rows [][]string
	for i := 0; i+1 < len(pairs); i += 2 {
		if pairs[i+1] != "" {
			rows = append(rows, []string{pairs[i] + ":", pairs[i+1]})
		}
	}
	table(w, rows)
}

// ms is a duration as people say it: 83ms, 1.2s, 3m20s, 26h0m.
func ms(d time.Duration) string {
	switch abs := d.Abs(); {
	case abs == 0:
		return "0s"
	case abs < time.Millisecond:
		return d.Round(time.Microsecond).String()
	case abs < time.Second:
		return d.Round(time.Millisecond).String()
	case abs < time.Minute:
		return d.Round(100 * time.Millisecond).String()
	case abs < time.Hour:
		return d.Round(time.Second).String()
	default:
		return strings.TrimSuffix(d.Round(time.Minute).String(), "0s")
	}
}

func duration(d *durationpb.Duration) string {
	if d == nil {
		return "-"
	}
	return ms(d.AsDuration())
}

func timestamp(t *timestamppb.Timestamp) string {
	if t == nil {
		return ""
	}
	return t.AsTime().UTC().Format("2006-01-02T15:04:05.000Z")
}

// bytesText is a size as people say it.
func bytesText(n uint64) string {
	switch {
	case n < 1<<10:
		return strconv.FormatUint(n, 10) + " B"
	case n < 1<<20:
		return strconv.FormatFloat(float64(n)/(1<<10), 'f', 1, 64) + " KiB"
	default:
		return strconv.FormatFloat(float64(n)/(1<<20), 'f', 1, 64) + " MiB"
	}
}

// number prints three significant digits without an exponent where that stays
// short.
func number(v float64) string {
	if v == 0 || math.IsInf(v, 0) || math.IsNaN(v) {
		return strconv.FormatFloat(v, 'g', -1, 64)
	}
	digits := 2 - int(math.Floor(math.Log10(math.Abs(v))))
	if digits > 12 {
		return strconv.FormatFloat(v, 'g', 3, 64)
	}
	text := strconv.FormatFloat(v, 'f', max(digits, 0), 64)
	if strings.Contains(text, ".") {
		text = strings.TrimSuffix(strings.TrimRight(text, "0"), ".")
	}
	return text
}

// state is a task's state in one word: "completed".
func state(s isobarv1.TaskState) string {
	return strings.ToLower(strings.TrimPrefix(s.String(), "TASK_STATE_"))
}

func ended(s isobarv1.TaskState) bool {
	switch s {
	case isobarv1.TaskState_TASK_STATE_COMPLETED, isobarv1.TaskState_TASK_STATE_DEAD,
		isobarv1.TaskState_TASK_STATE_CANCELLED, isobarv1.TaskState_TASK_STATE_EXPIRED:
		return true
	default:
		return false
	}
}

// safeText is bytes from a function as a terminal may show them; ok is false
// when they are no text. Control characters could drive the terminal.
func safeText(b []byte) (text string, ok bool) {
	if !utf8.Valid(b) {
		return "", false
	}
	return strings.Map(func(r rune) rune {
		if r != '\n' && r != '\t' && unicode.IsControl(r) {
			return '\uFFFD'
		}
		return r
	}, string(b)), true
}
