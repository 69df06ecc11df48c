package agent_test

import (
	"fmt"
	"testing"
	"time"
)

// A runtime that repeats an ADD while the link of the first one goes gets a pod
// with addresses of its own, or an error: never an answer that nothing records.
func TestAddWhileItsLinkGoes(t *testing.T) {
	t.Parallel()
	n := newNode(t, nodeConfig)
	n.start()
	const rounds = 60
	for i := range rounds {
		p := n.sandbox(fmt.Sprint("p", i))
		p.mustAdd()
		gone := make(chan error, 1)
		go func() {
			_, err := p.ns.Try("ip", "link", "del", "eth0")
			gone <- err
		}()
		time.Sleep(time.Duration(i) * time.Millisecond / 2) // over all of what the kernel takes for it
		_, err := p.add()
		if err := <-gone; err != nil {
			t.Fatal(err)
		}
		if err != nil {
			continue
		}
		eventually(t, n.agentLog, func() error {
			if _, err := p.ns.Try("ip", "link", "show", "eth0"); err != nil {
				return nil // it was the first one's
			}
			if err := p.check(); err != nil {
				return fmt.Errorf("round %d: ADD was answered, but CHECK: %w", i, err)
			}
			return nil
		})
	}
}
