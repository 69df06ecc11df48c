package agent_test

import (
	"fmt"
	"os"
	"strings"
	"testing"
)

// A pod's ports of the node come with its ADD, go with its DEL, and outlive the agent.
func TestHostPorts(t *testing.T) {
	t.Parallel()
	n := newNode(t, nodeConfig)
	n.start()
	a, b := n.sandbox("a"), n.sandbox("b")
	a.portMappings = []map[string]any{{"hostPort": 8080, "containerPort": 80, "protocol": "TCP"}}
	addrs := a.mustAdd()
	b.mustAdd()
	forwards := func(want string) {
		t.Helper()
		ruleset := n.host.Exec("nft", "list", "ruleset")
		if got := strings.Contains(ruleset, "8080"); got != (want != "") || want != "" && !strings.Contains(ruleset, want) {
			t.Errorf("want ports of the node for %q in\n%s", want, ruleset)
		}
	}
	forwards(addrs[0].String() + " . 80")
	forwards(addrs[1].String() + " . 80")
	b.mustDel()
	forwards(addrs[0].String() + " . 80")
	n.kill()
	n.host.Exec("nft", "delete table inet flock-hostport")
	n.start()
	forwards(addrs[1].String() + " . 80")
	n.kill() // and the records are lost
	if err := os.RemoveAll(n.records()); err != nil {
		t.Fatal(err)
	}
	n.start()
	forwards(addrs[0].String() + " . 80")
	forwards(addrs[1].String() + " . 80")
	a.mustDel()
	forwards("")
}

// Of two pods with the same port the newest has it, also after a restart of the agent, whatever
// order their containers' IDs are in.
func TestNewestPodHasTheHostPort(t *testing.T) {
	t.Parallel()
	n := newNode(t, nodeConfig)
	n.start()
	want := map[string]bool{}
	for i, names := range [][]string{{"a", "b"}, {"d", "c"}} {
		for j, name := range names {
			s := n.sandbox(name)
			s.portMappings = []map[string]any{{"hostPort": 8080 + i, "containerPort": 80 + i, "protocol": "TCP"}}
			for _, a := range s.mustAdd() {
				want[fmt.Sprintf("%v . %d", a, 80+i)] = j == len(names)-1
			}
		}
	}
	check := func(when string) {
		t.Helper()
		ruleset := n.host.Exec("nft", "list", "ruleset")
		for to, has := range want {
			if strings.Contains(ruleset, ": "+to) != has {
				t.Errorf("%s: a port leads to %s: %t, want %t", when, to, !has, has)
			}
		}
	}
	check("before")
	n.kill()
	n.host.Exec("nft", "delete table inet flock-hostport")
	n.start()
	check("after a restart")
}
