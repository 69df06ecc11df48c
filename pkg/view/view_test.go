package view

import (
	"bytes"
	"encoding/json"
	"fmt"
	"reflect"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/html"
)

// hostile is text that would be markup if it were not escaped.
const hostile = `<script>alert("x")</script>'"&`

// fill puts text into every string of a value, and makes slices of one element.
func fill(v reflect.Value, text string) {
	switch v.Kind() {
	case reflect.String:
		v.SetString(text)
	case reflect.Struct:
		if v.Type() == reflect.TypeFor[time.Time]() {
			v.Set(reflect.ValueOf(time.Unix(1e9, 0)))
			return
		}
		for i := range v.NumField() {
			fill(v.Field(i), text)
		}
	case reflect.Slice:
		v.Set(reflect.MakeSlice(v.Type(), 1, 1))
		fill(v.Index(0), text)
	case reflect.Uint64, reflect.Uint32:
		v.SetUint(7)
	case reflect.Int64, reflect.Int:
		v.SetInt(7)
	}
}

func parse(t *testing.T, n Node) (*html.Node, string) {
	t.Helper()
	var out bytes.Buffer
	if err := Page(&out, n); err != nil {
		t.Fatal(err)
	}
	text := out.String()
	root, err := html.Parse(&out)
	if err != nil {
		t.Fatal(err)
	}
	return root, text
}

// texts are the words between the tags.
func texts(n *html.Node) string {
	if n.Type == html.TextNode {
		return n.Data
	}
	var all strings.Builder
	for c := n.FirstChild; c != nil; c = c.NextSibling {
		all.WriteString(texts(c))
	}
	return all.String()
}

func elements(n *html.Node, name string) (all []*html.Node) {
	if n.Type == html.ElementNode && n.Data == name {
		all = append(all, n)
	}
	for c := n.FirstChild; c != nil; c = c.NextSibling {
		all = append(all, elements(c, name)...)
	}
	return all
}

// TestEverythingIsEscaped: no text of the node is markup, whichever it is.
func TestEverythingIsEscaped(t *testing.T) {
	var n Node
	fill(reflect.ValueOf(&n).Elem(), hostile)
	root, text := parse(t, n)
	if scripts := elements(root, "script"); len(scripts) > 0 || strings.Contains(text, "<script") {
		t.Errorf("the page has a script:\n%s", text)
	}
	if shown := strings.Count(texts(root), "alert"); shown < 20 {
		t.Errorf("%d of the node's texts are shown", shown)
	}
}

// TestPageHasEverything: each string and number of a node is on its page.
func TestPageHasEverything(t *testing.T) {
	hidden := map[string]bool{"Pod.Policies": true, "Pod.MTU": true, "Pod.State": true} // of flockctl pod, and of pods that come and go
	var check func(v reflect.Value, path string)
	n := Node{}
	fill(reflect.ValueOf(&n).Elem(), "x")
	count := 0
	check = func(v reflect.Value, path string) {
		switch v.Kind() {
		case reflect.String:
			if hidden[path] {
				return
			}
			count++
			mark := fmt.Sprintf("m%d", count)
			old := v.String()
			v.SetString(mark)
			if root, _ := parse(t, n); !strings.Contains(texts(root), mark) {
				t.Errorf("%s is not on the page", path)
			}
			v.SetString(old)
		case reflect.Struct:
			if v.Type() == reflect.TypeFor[time.Time]() {
				return
			}
			for i := range v.NumField() {
				check(v.Field(i), v.Type().Name()+"."+v.Type().Field(i).Name)
			}
		case reflect.Slice:
			check(v.Index(0), path)
		}
	}
	check(reflect.ValueOf(&n).Elem(), "Node")
	if count < 25 {
		t.Errorf("only %d texts", count)
	}
}

func TestEmptyNode(t *testing.T) {
	root, _ := parse(t, Node{Name: "node1", At: time.Unix(1e9, 0)})
	if text := texts(root); !strings.Contains(text, "node1") || !strings.Contains(text, "nothing is wrong") {
		t.Error(text)
	}
	n := Node{
		Conditions: []Condition{{Type: "Ready", Status: "False"}, {Type: "Accepted", Status: "True"}}, Errors: []string{"no kernel"},
		Pods: []Pod{{Problems: []string{"a", "b"}}, {}}, Sessions: []Session{{Up: true}, {}},
	}
	if n.Wrong() != 5 {
		t.Errorf("%d wrong, want 5", n.Wrong())
	}
	if root, _ := parse(t, n); !strings.Contains(texts(root), "5 wrong") {
		t.Error("the page does not count what is wrong")
	}
}

// TestJSON: what the agent writes flockctl reads.
func TestJSON(t *testing.T) {
	var n, back Node
	fill(reflect.ValueOf(&n).Elem(), hostile)
	n.At = n.At.UTC()
	text, err := json.Marshal(n)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(text, &back); err != nil {
		t.Fatal(err)
	}
	again, err := json.Marshal(back)
	if err != nil || !bytes.Equal(text, again) {
		t.Errorf("%v: %s\n%s", err, text, again)
	}
}

func TestAgo(t *testing.T) {
	now := time.Unix(1e9, 0)
	for d, want := range map[time.Duration]string{
		-time.Second: "0s", 0: "0s", 119 * time.Second: "119s", 2 * time.Minute: "2m", 119 * time.Minute: "119m", 2 * time.Hour: "2h", 48 * time.Hour: "2d",
	} {
		if got := ago(now, now.Add(-d)); got != want {
			t.Errorf("%s: %s, want %s", d, got, want)
		}
	}
	if ago(now, time.Time{}) != "" {
		t.Error("no time has an age")
	}
}
