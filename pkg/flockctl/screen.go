package flockctl

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"time"
)

// colour is an SGR code (ECMA-48, 8.3.117).
type colour string

const (
	red   colour = "31"
	green colour = "32"
)

// paint colours text where there is somebody to see it.
func (s *session) paint(c colour, text string) string {
	if !s.colour {
		return text
	}
	return "\x1b[" + string(c) + "m" + text + "\x1b[0m"
}

// isTerminal reports whether w is a terminal that shows colours (no-color.org).
func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok || os.Getenv("NO_COLOR") != "" || os.Getenv("TERM") == "dumb" {
		return false
	}
	st, err := f.Stat()
	return err == nil && st.Mode()&os.ModeCharDevice != 0
}

// watchEvery is how often --watch looks.
const watchEvery = 2 * time.Second

// repeat runs a command again and again until ctx ends. On a terminal each answer takes
// the place of the one before; elsewhere only those are printed that differ from it.
func (s *session) repeat(ctx context.Context, run func(*session) error) error {
	var before string
	for {
		var out bytes.Buffer
		view := *s
		view.out, view.remarks, view.now = &out, &out, time.Now()
		if s.output != "" {
			view.remarks = s.remarks // a program reads the answers
		}
		if err := run(&view); err != nil && !errors.Is(err, errDenied) && ctx.Err() == nil {
			fmt.Fprintln(view.remarks, err) // it may pass
		}
		if ctx.Err() != nil {
			return nil
		}
		if text := out.String(); s.colour {
			fmt.Fprintf(s.out, "\x1b[H\x1b[2J%s, every %s; ctrl-C ends it\n\n%s", view.now.Format(time.TimeOnly), watchEvery, text)
		} else if text != before {
			fmt.Fprint(s.out, text)
			before = text
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(watchEvery):
		}
	}
}
