package exits

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"flock.fritzlab.net/flock/pkg/pod"
)

// noon is when the story of each test begins.
var noon = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

func at(seconds int) time.Time { return noon.Add(time.Duration(seconds) * time.Second) }

// of is the container with that ID of a pod.
func of(id string) Container {
	return Container{ID: id, Name: "c", Pod: pod.Ref{Namespace: "shop", Name: "a", UID: "uid"}}
}

func runs(ids ...string) (states []state) {
	for _, id := range ids {
		states = append(states, state{Container: of(id), running: true})
	}
	return states
}

func hasEnded(id string, seconds int) []state {
	return []state{{Container: of(id), at: at(seconds)}}
}

// inWords writes exits in short: "x at 3, y at 5".
func inWords(exits []Exit) string {
	var words []string
	for _, e := range exits {
		words = append(words, fmt.Sprintf("%s at %d", e.ID, e.At.Sub(noon)/time.Second))
	}
	return strings.Join(words, ", ")
}

func TestTable(t *testing.T) {
	type step struct {
		do   func(table) []Exit
		want string
	}
	list := func(states ...[]state) func(table) []Exit {
		return func(t table) []Exit {
			var all []state
			for _, s := range states {
				all = append(all, s...)
			}
			exits, missing := t.list(all, at(99))
			for _, id := range missing {
				exits = append(exits, Exit{Container: Container{ID: "missing " + id}, At: noon})
			}
			return exits
		}
	}
	learn := func(id string) func(table) []Exit { return func(t table) []Exit { return t.learn(of(id)) } }
	end := func(id string, s int) func(table) []Exit { return func(t table) []Exit { return t.end(id, at(s)) } }
	reconnect := func(t table) []Exit { t.reconnected(); return nil }
	for name, story := range map[string][]step{
		"started and ended": {
			{learn("x"), ""}, {end("x", 3), "x at 3"},
		},
		"listed and ended": {
			{list(runs("x")), ""}, {end("x", 3), "x at 3"},
		},
		"ended before anybody looked": {
			{list(hasEnded("x", 3)), "x at 3"}, {end("x", 3), ""}, {list(hasEnded("x", 3)), ""},
		},
		"reported once": {
			{learn("x"), ""}, {end("x", 3), "x at 3"}, {end("x", 3), ""},
			{list(hasEnded("x", 3)), ""}, {learn("x"), ""}, {end("x", 4), ""},
		},
		"a list from before the end brings nothing back": {
			{learn("x"), ""}, {end("x", 3), "x at 3"}, {list(runs("x")), ""}, {end("x", 5), ""},
		},
		"its pod is learned after the end": {
			{end("x", 3), ""}, {end("x", 4), ""}, {learn("x"), "x at 3"}, {learn("x"), ""},
		},
		"its pod is in a list after the end": {
			{end("x", 3), ""}, {list(hasEnded("x", 3)), "x at 3"},
		},
		"the end is only in a list": {
			{list(runs("x", "y")), ""}, {list(runs("y"), hasEnded("x", 3)), "x at 3"},
		},
		"the end is in a list that does not say when": {
			{list(runs("x")), ""}, {list([]state{{Container: of("x")}}), "x at 99"},
		},
		"missing from a list": {
			{list(runs("x", "y")), ""}, {list(runs("y")), "missing x at 0"}, {end("x", 3), "x at 3"}, {list(runs("y")), ""}, {list(runs("y")), ""},
		},
		"missing from one list": {
			{list(runs("x", "y")), ""}, {list(runs("y")), "missing x at 0"}, {list(runs("x", "y")), ""}, {end("x", 3), "x at 3"},
		},
		"started since the list was taken": {
			{list(runs("x")), ""}, {learn("y"), ""}, {list(runs("x")), ""}, {end("y", 5), "y at 5"},
		},
		"gone while there was no stream": {
			{list(runs("x")), ""}, {learn("y"), ""}, {reconnect, ""}, {list(runs("x")), "missing y at 0"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			known := table{}
			for i, s := range story {
				if got := inWords(s.do(known)); got != s.want {
					t.Errorf("step %d: reported %q, want %q", i+1, got, s.want)
				}
			}
		})
	}
}
