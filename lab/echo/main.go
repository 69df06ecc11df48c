// Command echo is the lab's test pod: an HTTP server that says who it is and
// which address it saw the client with, and the client that asks it. It never
// guesses: addresses are those of the connection's two ends, not of a header.
// Datagrams (UDP) to the server's port are sent back as they came.
//
//	echo [serve]       serve until SIGTERM (the image's entry point)
//	echo get URL...    ask, and print an answer a line
//	echo ready BOOL    flip the readiness of the server in this container
//
// Each line printed is one JSON object that carries the wall clock and the
// kernel's monotonic clock, which all namespaces of a machine share: so what a
// pod logs can be ordered against what a router in another namespace saw.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"syscall"
	"time"
)

// unreadyFile stands for "not ready" while it exists. Its directory is in the
// image and the server's user may write to it.
const unreadyFile = "/state/unready"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Args[1:], os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "echo:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, out io.Writer) error {
	command := "serve"
	if len(args) > 0 {
		command, args = args[0], args[1:]
	}
	flags := flag.NewFlagSet("echo "+command, flag.ContinueOnError)
	switch command {
	case "serve":
		s := server{pod: os.Getenv("POD_NAME"), node: os.Getenv("NODE_NAME"), log: newLog(out)}
		if s.pod == "" {
			s.pod, _ = os.Hostname()
		}
		listen := flags.String("listen", ":8080", "`address` to listen on; without a host: all of both families")
		flags.StringVar(&s.unready, "unready-file", unreadyFile, "`file` that makes the server not ready while it exists")
		flags.DurationVar(&s.linger, "linger", 0, "`time` to go on serving after SIGTERM")
		if err := flags.Parse(args); err != nil {
			return err
		}
		return s.serve(ctx, *listen)

	case "get":
		c := client{log: newLog(out)}
		flags.IntVar(&c.count, "n", 1, "`times` that each URL is asked")
		flags.DurationVar(&c.timeout, "timeout", 2*time.Second, "`time` for one request, from connecting to the answer's end; 0: none")
		flags.DurationVar(&c.interval, "interval", 0, "`time` to wait between two rounds")
		flags.Float64Var(&c.rate, "rate", 0, "`times` a second that each URL is asked, whatever the answers take; 0: one request after the other")
		flags.BoolVar(&c.keep, "keep", false, "keep connections for later requests")
		flags.BoolVar(&c.follow, "follow", false, "print each line of the answer as it comes, as of /tick")
		if err := flags.Parse(args); err != nil {
			return err
		}
		if flags.NArg() == 0 {
			return errors.New("get: name at least one URL, as in http://[2001:db8::1]:8080/")
		}
		return c.get(ctx, flags.Args())

	case "ready":
		file := flags.String("unready-file", unreadyFile, "`file` that makes the server not ready while it exists")
		if err := flags.Parse(args); err != nil {
			return err
		}
		ok, err := strconv.ParseBool(flags.Arg(0))
		if err != nil {
			return fmt.Errorf("ready %q: want true or false", flags.Arg(0))
		}
		return setReady(*file, ok)
	}
	return fmt.Errorf("command %q: want serve, get or ready", command)
}

func setReady(file string, ok bool) error {
	if ok {
		if err := os.Remove(file); !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return err
	}
	return os.WriteFile(file, nil, 0o644)
}

// stamp is a moment by both clocks.
type stamp struct {
	Wall time.Time `json:"wall"`
	// Monotonic is CLOCK_MONOTONIC, in nanoseconds since the machine's start.
	Monotonic int64 `json:"monotonic"`
}

func now() stamp {
	return stamp{Wall: time.Now().UTC(), Monotonic: monotonic()}
}

// newLog returns what prints one value as one line.
func newLog(w io.Writer) func(any) {
	enc := json.NewEncoder(w)
	enc.SetEscapeHTML(false)
	return func(v any) { _ = enc.Encode(v) } // there is nowhere to report an error of stdout
}
