package wiring

import "testing"

func TestAttachConnects(t *testing.T) {
	t.Parallel()
	node := newNode(t)
	node.apply(t)
	a, b := node.pod(t), node.pod(t)
	node.attach(t, a)
	node.attach(t, b)
	a.Exec("ping", "-c1", "-W5", b.v6())
	a.Exec("ping", "-c1", "-W5", b.v4())
	if err := node.Check(a.File(), a.Attachment); err != nil {
		t.Error(err)
	}
}
