// Command probe is a function that behaves, well or badly, as MODE says. The
// tests of the runtimes run it as a WASI module and as a process.
package main

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"
)

func main() {
	mode, arg, _ := strings.Cut(os.Getenv("MODE"), " ")
	switch mode {
	case "echo":
		if _, err := io.Copy(os.Stdout, os.Stdin); err != nil {
			fatal(err)
		}
	case "exit":
		fmt.Fprintln(os.Stderr, "leaving with", arg)
		os.Exit(number(arg))
	case "panic":
		panic("as asked")
	case "loop":
		for n := uint64(1); ; n += n {
			if n == 3 {
				break
			}
		}
	case "sleep":
		time.Sleep(time.Hour)
	case "eat":
		eat(number(arg), 0)
	case "hold": // arg MiB, then end well
		hold := eat(number(arg), number(arg))
		fmt.Println(len(hold))
	case "keep": // arg MiB, and do not end
		hold := eat(number(arg), number(arg))
		time.Sleep(time.Hour)
		fmt.Println(len(hold))
	case "huge": // one allocation of arg MiB, not touched
		hold := make([]byte, number(arg)<<20)
		fmt.Println(len(hold))
	case "write":
		if _, err := os.Stdout.Write(bytes.Repeat([]byte("x"), number(arg))); err != nil {
			fatal(err)
		}
	case "flood":
		line := bytes.Repeat([]byte("y"), 4<<10)
		for {
			_, _ = os.Stdout.Write(line) // goes on whatever comes back
		}
	case "complain":
		for i := range number(arg) {
			fmt.Fprintln(os.Stderr, "line", i)
		}
	case "env":
		env := os.Environ()
		slices.Sort(env)
		fmt.Print(strings.Join(env, "\n"))
	case "reach":
		reach()
	default:
		fatal(fmt.Errorf("unknown MODE %q", mode))
	}
}

// eat takes memory for good, step MiB at a time, up to limit MiB; 0: for ever.
func eat(step, limit int) [][]byte {
	var hold [][]byte
	for total := 0; limit == 0 || total < limit; total += step {
		b := make([]byte, step<<20)
		for i := 0; i < len(b); i += 512 {
			b[i] = byte(i) | 1
		}
		hold = append(hold, b)
	}
	return hold
}

// reach tries what a module must not get at and prints what it got.
func reach() {
	for _, name := range []string{"/etc/hostname", "/", ".", "/proc/self/environ"} {
		if _, err := os.Open(name); err == nil {
			fmt.Println("opened", name)
		}
	}
	if err := os.WriteFile("/tmp/isobar-probe", nil, 0o600); err == nil {
		fmt.Println("wrote a file")
	}
	if _, err := net.DialTimeout("tcp", "127.0.0.1:7101", time.Second); err == nil || strings.Contains(err.Error(), "refused by host") {
		fmt.Println("dialled")
	}
	if _, err := net.Listen("tcp", "127.0.0.1:0"); err == nil {
		// The in-memory network of this platform answers itself.
		fmt.Fprintln(os.Stderr, "listening inside")
	}
	if time.Now().Year() < 2024 {
		fmt.Println("no clock")
	}
	fmt.Print("end")
}

func number(s string) int {
	n, err := strconv.Atoi(s)
	if err != nil {
		fatal(err)
	}
	return n
}

func fatal(err error) {
	fmt.Fprintln(os.Stderr, "probe:", err)
	os.Exit(1)
}
