// Command large is the better and dearer variant of the sentiment function.
package main

import (
	"fmt"
	"os"

	"github.com/isobar-mesh/isobar/examples/functions/sentiment"
)

func main() {
	if err := run(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run() error {
	model, err := sentiment.NewLearned()
	if err != nil {
		return err
	}
	return sentiment.Serve(os.Stdin, os.Stdout, model.Positive)
}
