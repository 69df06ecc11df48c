package bird

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"flock.fritzlab.net/flock/pkg/routing/routingtest"
)

// TestLearnedAndRefused has addresses lose the route that is announced and keep
// the one beside it that is refused, which is all that a withdrawal of anycast is,
// with a BIRD that tidies its table whenever it can. What it says of each must be
// so, also when it looks at everything again.
func TestLearnedAndRefused(t *testing.T) {
	t.Parallel()
	node, _ := pair(t)
	const eager = "ipv6 table master6 { gc threshold 1; gc period 1 ms; };\n"
	plain := string(nodeWith(t, `
    peers: [{name: tor, address: "2001:db8:0:1::1", remoteAS: 64512}]`))
	conf := func(filter string) []byte {
		tidy := strings.Replace(plain, "\nprotocol device", "\n"+eager+"protocol device", 1)
		return []byte(strings.Replace(tidy, "preference = 200;", "preference = 200;"+filter, 1))
	}
	b := startNode(t, node, conf(""))
	// Those that flip share BIRD's memory with those that stay.
	const flip, stay = "2001:db8:f::", "2001:db8:5::"
	batch := func(what, prefix string, metric int) {
		var lines strings.Builder
		for i := range 400 {
			fmt.Fprintf(&lines, "route %s %s%x/128 dev pod proto 85 metric %d\n", what, prefix, i, metric)
		}
		node.IPBatch(lines.String())
	}
	known := func(when string, want map[string]int) {
		t.Helper()
		routingtest.Eventually(t, 5*time.Second, func() error {
			got := map[string]int{}
			for _, line := range b.Show("show route table master6") {
				for prefix := range want {
					if strings.HasPrefix(line, prefix) {
						got[prefix]++
					}
				}
			}
			for prefix, n := range want {
				if got[prefix] != n {
					return fmt.Errorf("%s: BIRD has %d routes in %s, the kernel %d\n%s", when, got[prefix], prefix, n, b.Log())
				}
			}
			return nil
		})
	}
	for _, prefix := range []string{flip, stay} {
		batch("add", prefix, 1024)
	}
	batch("add", stay, 512)
	for range 5 {
		batch("add", flip, 512)
		known("announced", map[string]int{flip: 400, stay: 400})
		batch("del", flip, 512)
		known("withdrawn", map[string]int{flip: 0, stay: 400})
	}
	for i := range 3 {
		reconfigure(t, node, b, conf(fmt.Sprintf(" bgp_med = %d;", i)))
		known("reloaded", map[string]int{flip: 0, stay: 400})
	}
}
