package demo

import (
	"bytes"
	"encoding/json"
	"encoding/xml"
	"io"
	"strings"
	"testing"
	"time"
	"unicode/utf8"
)

const hostile = `<b>&"'` + "\x1b[2J"

func someFrames() []frame {
	var all []frame
	for i := range 9 {
		all = append(all, frame{time.Duration(i) * 250 * time.Millisecond, []line{
			{{"flock ", bold}, {hostile[:6], good}},
			{},
			{{strings.Repeat("ü", 200), bad}},
		}})
	}
	return all
}

// The picture is XML without a script, and shows what the frames have.
func TestSVG(t *testing.T) {
	var out bytes.Buffer
	if err := writeSVG(&out, `a title with <b>&"`, someFrames()); err != nil {
		t.Fatal(err)
	}
	groups, text := 0, ""
	d := xml.NewDecoder(&out)
	for {
		token, err := d.Token()
		if err == io.EOF {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		switch x := token.(type) {
		case xml.StartElement:
			switch x.Name.Local {
			case "g":
				groups++
			case "script", "b":
				t.Errorf("there is an element %s", x.Name.Local)
			}
		case xml.CharData:
			text += string(x)
		}
	}
	if groups != 9 || strings.Count(text, hostile[:6]) != 9 {
		t.Errorf("%d groups, text %q", groups, text)
	}
}

// The recording is an asciicast: a header, and lines of time, "o" and text.
func TestCast(t *testing.T) {
	var out bytes.Buffer
	began := time.Unix(1e9, 0)
	if err := writeCast(&out, "title", began, someFrames()); err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSpace(out.String()), "\n")
	var header struct {
		Version, Width, Height int
		Timestamp              int64
	}
	if err := json.Unmarshal([]byte(lines[0]), &header); err != nil || header.Version != 2 || header.Width != columns || header.Height != rows || header.Timestamp != 1e9 {
		t.Errorf("%v: %s", err, lines[0])
	}
	if len(lines) != 10 {
		t.Fatalf("%d lines", len(lines))
	}
	last := -1.0
	for _, l := range lines[1:] {
		var event []any
		if err := json.Unmarshal([]byte(l), &event); err != nil || len(event) != 3 || event[1] != "o" || event[0].(float64) <= last {
			t.Fatalf("%v: %s", err, l)
		}
		last = event[0].(float64)
	}
}

func TestLinesAreCut(t *testing.T) {
	for _, l := range someFrames()[0].lines {
		n := 0
		for _, s := range l.cut() {
			n += utf8.RuneCountInString(s.text)
		}
		if n > columns {
			t.Errorf("%d characters of %d", n, columns)
		}
	}
}

func TestThin(t *testing.T) {
	all := someFrames()
	thinned := thin(all, 500*time.Millisecond)
	if len(thinned) != 5 || thinned[0].at != 0 || thinned[4].at != 2*time.Second {
		t.Errorf("%d frames", len(thinned))
	}
	if got := thin(all[:8], 500*time.Millisecond); got[len(got)-1].at != 1750*time.Millisecond {
		t.Errorf("the last frame is at %s", got[len(got)-1].at)
	}
	if got := thin(all[:1], time.Second); len(got) != 1 {
		t.Errorf("%d frames of one", len(got))
	}
}

func TestFigures(t *testing.T) {
	began := time.Unix(1e9, 0)
	f := &flow{}
	f.read(strings.NewReader(`{"url":"u","ok":true,"ms":1.5,"body":{"pod":"a","node":"n"},"wall":"2001-09-09T01:46:40Z"}
not a line
{"url":"u","ok":true,"ms":2.5,"body":{"pod":"b"},"wall":"2001-09-09T01:46:40.02Z"}
{"url":"u","ok":false,"ms":300,"error":"timeout","wall":"2001-09-09T01:46:40.4Z"}
{"url":"u","ok":true,"ms":9,"body":{"pod":"b"},"wall":"2001-09-09T01:46:40.9Z"}
`))
	all := f.answers()
	got := figuresOf(all)
	if got.answered != 3 || got.failed != 1 || got.median != 2.5 || got.slowest != 9 || got.gap != 880*time.Millisecond {
		t.Errorf("%+v", got)
	}
	b := bar(all, began.Add(time.Second), 250*time.Millisecond, 4, 2, func(a answer) bool { return a.OK })
	if n := utf8.RuneCountInString(b); n != 4 || []rune(b)[0] == ' ' || []rune(b)[1] != ' ' || []rune(b)[3] == ' ' {
		t.Errorf("%q", b)
	}
	if got := figuresOf(nil); got.answered != 0 || got.String() == "" {
		t.Errorf("%+v", got)
	}
}
