package agent_test

import (
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
