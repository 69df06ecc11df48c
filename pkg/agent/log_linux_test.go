package agent_test

import (
	"encoding/json"
	"strings"
	"testing"
)

// TestEveryLineOfACallNamesIt: with --log-format=json each line is an object, and those
// of a call have its request, command and container, so that calls at the same time can
// be told apart.
func TestEveryLineOfACallNamesIt(t *testing.T) {
	t.Parallel()
	n := newNode(t, strings.Replace(nodeConfig, "10.1.0.0/24", "10.1.0.0/30", 1)) // two addresses
	n.start("--log-format=json")
	a, b, c := n.sandbox("a"), n.sandbox("b"), n.sandbox("c")
	pods := []*sandbox{a, b}
	inParallel(pods, func(_ int, p *sandbox) { p.mustAdd() })
	if _, err := c.add(); err == nil {
		t.Fatal("the third of two addresses was given out")
	}
	inParallel(pods, func(_ int, p *sandbox) { p.mustDel() })

	type line struct{ Msg, Request, Command, Container, Ifname string }
	calls := map[string]line{} // by request
	seen := map[string]int{}   // lines by command and message
	for text := range strings.Lines(n.agentLog()) {
		var l line
		if err := json.Unmarshal([]byte(text), &l); err != nil {
			t.Fatalf("%q is no JSON: %v", text, err)
		}
		ofCall := l.Request != ""
		switch {
		case !ofCall && (l.Msg == "pod attached" || strings.HasPrefix(l.Msg, "CNI call")):
			t.Errorf("%q does not name its call", text)
		case !ofCall:
			continue
		}
		seen[l.Command+" "+l.Msg]++
		if first, ok := calls[l.Request]; ok && (first.Command != l.Command || first.Container != l.Container) {
			t.Errorf("two calls have the request %s: %+v, %+v", l.Request, first, l)
		}
		calls[l.Request] = l
		if (l.Command == "ADD" || l.Command == "DEL") && (l.Container == "" || l.Ifname == "") {
			t.Errorf("%q names no container or interface", text)
		}
	}
	for want, times := range map[string]int{"ADD pod attached": 2, "ADD CNI call done": 2, "ADD CNI call failed": 1, "DEL CNI call done": 2} {
		if seen[want] != times {
			t.Errorf("%d lines %q, want %d: %v", seen[want], want, times, seen)
		}
	}
}
