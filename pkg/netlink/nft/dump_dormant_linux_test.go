package nft

import "testing"

// A table that somebody made dormant is seen to be, and is in force again once it is added.
func TestDormantTable(t *testing.T) {
	t.Parallel()
	c, ns := dial(t)
	ns.Exec("nft", "add table "+table.String()+" { flags dormant; }")
	for _, want := range []bool{true, false} {
		if got, err := c.Contents(table); err != nil || got.Dormant != want {
			t.Errorf("contents %+v, %v; want dormant: %t", got, err, want)
		}
		var b Batch
		b.AddTable(table)
		commit(t, c, &b)
	}
}
