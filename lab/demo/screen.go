package demo

import (
	"encoding/json"
	"fmt"
	"html"
	"io"
	"strings"
	"time"
	"unicode/utf8"
)

// style is how text looks.
type style uint8

const (
	plain style = iota
	bold
	dim
	good
	bad
	warn
)

// span is text of one style. A frame is what a screen shows at one time.
type (
	span struct {
		text string
		style
	}
	line  []span
	frame struct {
		at    time.Duration // since the demo's start
		lines []line
	}
)

// The size of the screen, in characters. A line that is longer is cut.
const columns, rows = 92, 24

var sgr = map[style]string{plain: "", bold: "1", dim: "2", good: "32", bad: "31;1", warn: "33"}

// cut is the line as far as the screen has room for it.
func (l line) cut() (out line) {
	room := columns
	for _, s := range l {
		n := utf8.RuneCountInString(s.text)
		if n > room {
			s.text = string([]rune(s.text)[:room])
			n = room
		}
		if n > 0 {
			out = append(out, s)
		}
		room -= n
	}
	return out
}

// ansi is the frame for a terminal, from the top left on.
func (f frame) ansi() string {
	var b strings.Builder
	b.WriteString("\x1b[H")
	for _, l := range f.lines {
		for _, s := range l.cut() {
			if code := sgr[s.style]; code != "" {
				fmt.Fprintf(&b, "\x1b[%sm%s\x1b[0m", code, s.text)
			} else {
				b.WriteString(s.text)
			}
		}
		b.WriteString("\x1b[K\r\n")
	}
	b.WriteString("\x1b[J")
	return b.String()
}

// writeCast writes the frames as an asciicast, version 2
// (https://docs.asciinema.org/manual/asciicast/v2/).
func writeCast(w io.Writer, title string, began time.Time, frames []frame) error {
	header, err := json.Marshal(map[string]any{"version": 2, "width": columns, "height": rows, "timestamp": began.Unix(), "title": title, "env": map[string]string{"TERM": "xterm-256color"}})
	if err != nil {
		return err
	}
	if _, err := fmt.Fprintf(w, "%s\n", header); err != nil {
		return err
	}
	for i, f := range frames {
		text := f.ansi()
		if i == 0 {
			text = "\x1b[2J" + text
		}
		data, err := json.Marshal([]any{f.at.Seconds(), "o", text})
		if err != nil {
			return err
		}
		if _, err := fmt.Fprintf(w, "%s\n", data); err != nil {
			return err
		}
	}
	return nil
}

// Measures of the picture, in its units.
const charWidth, lineHeight, margin = 8.4, 18, 14

var fill = map[style]string{plain: "p", bold: "b", dim: "d", good: "g", bad: "r", warn: "y"}

// writeSVG writes the frames as a picture that plays them again and again, without a
// script. Where nothing moves, it shows the last one.
func writeSVG(w io.Writer, title string, frames []frame) error {
	width, height := columns*charWidth+2*margin, float64(rows*lineHeight+2*margin)
	total := frames[len(frames)-1].at + 3*time.Second
	var b strings.Builder
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %.0f %.0f" width="%.0f" height="%.0f" role="img">`+"\n<title>%s</title>\n", width, height, width, height, html.EscapeString(title))
	b.WriteString(`<style>
text { font: 14px ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono", monospace; white-space: pre; fill: #d8dee9; }
.b { font-weight: 700; fill: #fff; } .d { fill: #7b8794; } .g { fill: #7ec699; } .r { fill: #ff6b6b; font-weight: 700; } .y { fill: #f0c674; }
.f { visibility: hidden; }
.f:last-of-type { visibility: visible; }
@media (prefers-reduced-motion: no-preference) {
.f, .f:last-of-type { visibility: hidden; }
`)
	share := func(at time.Duration) float64 { return 100 * at.Seconds() / total.Seconds() }
	for i, f := range frames {
		end := total
		if i+1 < len(frames) {
			end = frames[i+1].at
		}
		fmt.Fprintf(&b, ".f%d { animation: k%d %.2fs step-end infinite; }\n@keyframes k%d { 0%% { visibility: %s; } %s%.3f%% { visibility: visible; } %.3f%% { visibility: %s; } }\n",
			i, i, total.Seconds(), i, map[bool]string{true: "visible", false: "hidden"}[i == 0], "", share(f.at), share(end), map[bool]string{true: "visible", false: "hidden"}[end == total])
	}
	fmt.Fprintf(&b, "}\n</style>\n<rect width=\"100%%\" height=\"100%%\" rx=\"8\" fill=\"#1f2430\"/>\n")
	for i, f := range frames {
		fmt.Fprintf(&b, "<g class=\"f f%d\">\n", i)
		f.texts(&b)
		b.WriteString("</g>\n")
	}
	b.WriteString("</svg>\n")
	_, err := io.WriteString(w, b.String())
	return err
}

// texts writes the frame's lines as SVG.
func (f frame) texts(b *strings.Builder) {
	for n, l := range f.lines[:min(len(f.lines), rows)] {
		if len(l) == 0 {
			continue
		}
		fmt.Fprintf(b, "<text x=\"%d\" y=\"%d\" xml:space=\"preserve\">", margin, margin+(n+1)*lineHeight-5)
		for _, s := range l.cut() {
			fmt.Fprintf(b, "<tspan class=\"%s\">%s</tspan>", fill[s.style], html.EscapeString(s.text))
		}
		b.WriteString("</text>\n")
	}
}

// thin leaves out frames so that the picture is small: those that come less than apart
// after the one before. The first and the last stay.
func thin(frames []frame, apart time.Duration) (out []frame) {
	for i, f := range frames {
		if i == 0 || f.at-out[len(out)-1].at >= apart {
			out = append(out, f)
		}
	}
	if last := frames[len(frames)-1]; out[len(out)-1].at != last.at {
		out[len(out)-1] = last
	}
	return out
}
