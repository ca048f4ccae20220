// Command small is the cheap variant of the sentiment function.
package main

import (
	"fmt"
	"os"

	"github.com/isobar-mesh/isobar/examples/functions/sentiment"
)

func main() {
	if err := sentiment.Serve(os.Stdin, os.Stdout, sentiment.Lexicon); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
