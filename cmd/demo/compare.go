package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/isobar-mesh/isobar/loadtest"
)

// errDiffer: two runs of one workload came to different ends.
var errDiffer = errors.New("the runs differ, see above")

// compareFiles is `demo compare A.json B.json`, of two --report files of the same
// workload.
func compareFiles(args []string, stdout, stderr io.Writer) int {
	if len(args) != 2 {
		_, _ = fmt.Fprintln(stderr, "demo: usage: demo compare A.json B.json")
		return exitUsage
	}
	var reports [2]loadtest.Report
	for i, path := range args {
		text, err := os.ReadFile(path)
		if err == nil {
			err = json.Unmarshal(text, &reports[i])
		}
		if err == nil && len(reports[i].Outputs) == 0 {
			err = errors.New("it has no outputs")
		}
		if err != nil {
			_, _ = fmt.Fprintf(stderr, "demo: read report %s: %v\n", path, err)
			return exitUsage
		}
	}
	if err := compare(reports[0].Outputs, reports[1].Outputs, stdout); err != nil {
		_, _ = fmt.Fprintln(stderr, "demo: compare:", err)
		return exitFailed
	}
	return 0
}

// compare holds that both runs had the same requests, that each completed in
// both, and that what a variant made of a request is the same in both. Which
// variant runs is placement's choice and may differ: such outputs are counted.
func compare(a, b []loadtest.Output, out io.Writer) error {
	bad := 0
	differ := func(format string, args ...any) {
		bad++
		_, _ = fmt.Fprintf(out, format+"\n", args...)
	}
	of := map[string]loadtest.Output{}
	for _, o := range b {
		if _, twice := of[o.Request]; twice {
			differ("%s is twice in the second run", o.Request)
		}
		of[o.Request] = o
	}
	same, others := 0, 0
	for _, x := range a {
		y, ok := of[x.Request]
		delete(of, x.Request)
		switch {
		case !ok:
			differ("%s is not in the second run, or twice in the first", x.Request)
		case x.SHA256 == "" || y.SHA256 == "":
			differ("%s did not complete in both: %q, %q", x.Request, x.SHA256, y.SHA256)
		case x.Function != y.Function:
			differ("%s is %s, and %s in the second run", x.Request, x.Function, y.Function)
		case x.Variant != y.Variant:
			others++
		case x.SHA256 != y.SHA256:
			differ("%s by %s/%s made %s, and %s in the second run", x.Request, x.Function, x.Variant, x.SHA256, y.SHA256)
		default:
			same++
		}
	}
	for request := range of {
		differ("%s is not in the first run", request)
	}
	_, _ = fmt.Fprintf(out, "%d requests in both: %d by the same variant with the same output, %d by another variant\n", same+others, same, others)
	if bad > 0 || same == 0 {
		return errDiffer
	}
	return nil
}
